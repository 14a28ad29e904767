"""Structured outputs: reads the form that constrains an answer from the fields of OpenAI, Anthropic, vLLM
(`structured_outputs`, `guided_…`), llama.cpp (`json_schema`, `grammar`) and SGLang (`regex`, `ebnf`)."""

import json
from typing import Any

from tunesmith.inference.interface import Form, Refused
from tunesmith.serve.options import Options

ANY_OBJECT = {"type": "object"}
KINDS = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "grammar": "grammar",
    "regex": "regex",
    "ebnf": "grammar",
}
IN_STRUCTURED = {"json": "json", "regex": "regex", "choice": "choice", "grammar": "grammar"}


class FormOptions(Options):
    """Sampling options, and the fields that constrain the answer."""

    guided_json: dict | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    structured_outputs: dict | None = None
    structural_tag: Any = None
    json_schema: dict | None = None
    grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None

    def form(self, response_format, parameter: str = "response_format") -> Form | None:
        """Returns the requested form, or None. Raises Refused for an invalid form, or more than one."""
        forms = {
            parameter: _response_form(response_format, parameter),
            "structured_outputs": self._structured(),
            "guided_json_object": Form("json", ANY_OBJECT) if self.guided_json_object else None,
        }
        for name, kind in KINDS.items():
            value = getattr(self, name)
            forms[name] = None if value is None else _form(kind, value, name)
        if self.structural_tag is not None:
            raise Refused(
                "structural_tag: not supported; give a JSON Schema, a regular expression, a choice or a grammar",
                parameter="structural_tag",
            )
        given = {name: form for name, form in forms.items() if form is not None}
        if len(given) > 1:
            raise Refused(f"give one form, not {' and '.join(given)}", parameter=list(given)[1])
        return next(iter(given.values()), None)

    def _structured(self) -> Form | None:
        given = {key: value for key, value in (self.structured_outputs or {}).items() if value not in (None, False)}
        known = {key: value for key, value in given.items() if key in IN_STRUCTURED or key == "json_object"}
        if self.structured_outputs is None or not (given.keys() - {"whitespace_pattern", "backend"}):
            return None
        if len(known) != 1:
            raise Refused(
                "structured_outputs: give one of json, json_object, regex, choice and grammar",
                parameter="structured_outputs",
            )
        ((key, value),) = known.items()
        return Form("json", ANY_OBJECT) if key == "json_object" else _form(IN_STRUCTURED[key], value, key)


def _response_form(form, parameter: str) -> Form | None:
    """Returns the form of a response format, or None for text. Raises Refused."""
    form = {"type": form} if isinstance(form, str) else form or {}
    kind = form.get("type", "text")
    around = form.get("json_schema") if isinstance(form.get("json_schema"), dict) else form
    schema = next((around[key] for key in ("schema", "value") if isinstance(around.get(key), dict)), None)
    if kind == "text":
        return None
    if kind in ("json_object", "json") and schema is None and around is form:
        return Form("json", ANY_OBJECT)
    if kind in ("json_object", "json", "json_schema") and schema is not None:
        return Form("json", schema)
    text = next((form[key] for key in (kind, "pattern", "value") if isinstance(form.get(key), str)), None)
    if kind in ("regex", "grammar") and text is not None:
        return Form(kind, text)
    raise Refused(
        f"{parameter} of type {kind!r}: give text, json_object, json_schema with a schema, regex or grammar",
        parameter=parameter,
    )


def _form(kind: str, value, parameter: str) -> Form:
    if kind == "json" and isinstance(value, str):
        value = _schema(value, parameter)
    wanted = {"json": dict, "choice": list}.get(kind, str)
    if not isinstance(value, wanted) or (not value and kind != "json"):
        raise Refused(
            f"{parameter}: give {'a JSON Schema' if kind == 'json' else f'a {wanted.__name__}'}", parameter=parameter
        )
    if kind == "choice" and not all(isinstance(text, str) and text for text in value):
        raise Refused(f"{parameter}: give a list of texts", parameter=parameter)
    return Form(kind, value)


def _schema(text: str, parameter: str):
    try:
        return json.loads(text)
    except ValueError:
        raise Refused(f"{parameter}: not valid JSON", parameter=parameter) from None
