"""Loads a model folder's tokenizer and chat template, without torch.

The ids are the same as those of transformers' `apply_chat_template`; tests compare the two for every model family.
"""

import hashlib
import json
import re
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from tunesmith.data.rows import RowProblem
from tunesmith.errors import UserError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NOW = re.compile(r"""\bstrftime_now\(\s*(["'])(.*?)\1\s*\)""")
BUILT_IN = {name: Path(__file__).parent / "templates" / f"{name}.jinja" for name in ("plain", "chatml")}


class Tokenizer:
    """A tokenizer with a chat template. Create it with `Tokenizer.load`. It pickles as its folder and settings, so it
    is cheap to send to a worker process."""

    def __init__(self, folder: Path, chat_template: str, template_kwargs: dict, day: str | None = None):
        self.folder, self._day = folder, day
        self.template_kwargs = template_kwargs
        """Extra variables for every render, e.g. `{"enable_thinking": False}`."""
        self._chat_template = chat_template
        self._file = _read(folder / "tokenizer.json")
        self._backend = _backend(folder, self._file)
        plain = self._backend.encode("").ids
        # The post-processor adds tokens that no caller wants, and may trim spaces from offsets, which would move the
        # beginning of a span.
        self._backend.post_processor = None
        config = _settings(folder / "tokenizer_config.json")
        self.named_tokens = _named_tokens({**_settings(folder / "special_tokens_map.json"), **config})
        self.adds_bos = self.bos_id is not None and plain[:1] == [self.bos_id]
        """Whether the tokenizer adds bos before plain text."""
        self.template_name, templates = _templates(folder, config, chat_template)
        self._templates = {name: _dated(text, day) if day else text for name, text in templates.items()}

    @classmethod
    def load(cls, folder: str | Path, chat_template: str = "auto", template_kwargs: dict | None = None) -> "Tokenizer":
        """Reads a model folder. `chat_template` is auto (the model's own, else plain), plain, chatml, or a Jinja file.
        Raises UserError if a file is missing or invalid."""
        return cls(Path(folder), chat_template, dict(template_kwargs or {}))

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.folder, self._chat_template, self.template_kwargs, self._day)

    def on(self, day: str | None) -> "Tokenizer":
        """Returns a tokenizer whose templates use this day (ISO 8601) as today, or itself if they write no date."""
        if day and any("strftime_now" in template for template in self._templates.values()):
            return Tokenizer(self.folder, self._chat_template, self.template_kwargs, day)
        return self

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns ids and their offsets in `text`, (start, end) in characters. Adds no special tokens."""
        encoding = self._encoding(text)
        return encoding.ids, encoding.offsets

    def encode_rest(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Like `encode`, for text that continues other text: no space is added before the first word."""
        anchor = self.anchor
        encoding = self._encoding(anchor + text)
        shift = len(anchor)
        skip = 1 if anchor else 0
        return encoding.ids[skip:], [(start - shift, end - shift) for start, end in encoding.offsets[skip:]]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def render(
        self, messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False, **kwargs: Any
    ) -> str:
        """Renders a conversation with the chat template. Raises RowProblem if the template refuses it."""
        variables = {**self.named_tokens, **self.template_kwargs, **kwargs}
        return rendered(self._templates, self.template_name, messages, tools, add_generation_prompt, variables)

    @property
    def chat_template(self) -> str:
        return self._templates["default"]

    @cached_property
    def template_variables(self) -> frozenset[str]:
        """The variables that the chat templates use, such as `enable_thinking`."""
        from transformers.utils.chat_template_utils import _get_template_variables  # slow to import

        try:
            return frozenset().union(*map(_get_template_variables, self._templates.values()))
        except TemplateSyntaxError:
            return frozenset()  # rendering reports the error

    @property
    def eos_token(self) -> str | None:
        return self.named_tokens.get("eos_token")

    @property
    def bos_token(self) -> str | None:
        return self.named_tokens.get("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._id("eos_token")

    @property
    def bos_id(self) -> int | None:
        return self._id("bos_token")

    @property
    def pad_id(self) -> int:
        """The padding id, else that of eos, else 0. Padded positions are masked, so any id will do."""
        return next((i for i in (self._id("pad_token"), self.eos_id) if i is not None), 0)

    @property
    def vocab_size(self) -> int:
        """The number of ids, including added tokens. The model's embedding may have more rows."""
        return self._backend.get_vocab_size()

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """All added tokens marked special, and the named tokens such as bos and eos."""
        return frozenset(t.content for t in self._added if t.special) | frozenset(self.named_tokens.values())

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of `special_tokens`."""
        return frozenset(i for i in map(self._backend.token_to_id, self.special_tokens) if i is not None)

    @cached_property
    def added_ids(self) -> dict[str, int]:
        """The added tokens, which are matched in text before it is split further, and their ids."""
        return {token.content: index for index, token in self._backend.get_added_tokens_decoder().items()}

    @property
    def json(self) -> str:
        """The content of tokenizer.json."""
        return self._file.decode("utf-8")

    def expected(self, text: str) -> str:
        """Returns the text that decoding the ids of `text` gives: normalized Unicode, without the whitespace that added
        tokens such as Phi-3's consume."""
        text = self._unicode_form.normalize_str(text)
        return self._eaten.sub("", text) if self._eaten else text

    @cached_property
    def _unicode_form(self) -> tokenizers.normalizers.Normalizer:
        normalizer = json.loads(self._file)["normalizer"] or {}
        types = [part.get("type") for part in normalizer.get("normalizers", [normalizer])]
        forms = [getattr(tokenizers.normalizers, type_)() for type_ in types if type_ in ("NFC", "NFD", "NFKC", "NFKD")]
        return tokenizers.normalizers.Sequence(forms)

    @cached_property
    def taking_whitespace(self) -> frozenset[str]:
        """The added tokens that consume the whitespace before or after them (`lstrip`, `rstrip`)."""
        return frozenset(token.content for token in self._added if token.rstrip or token.lstrip)

    def takes_whitespace(self, text: str) -> bool:
        """Whether an added token consumes whitespace in this text."""
        return bool(self._eaten and self._eaten.search(text))

    @cached_property
    def _eaten(self) -> re.Pattern | None:
        after = [rf"(?<={re.escape(t.content)})\s+" for t in self._added if t.rstrip]
        before = [rf"\s+(?={re.escape(t.content)})" for t in self._added if t.lstrip]
        return re.compile("|".join(after + before)) if after or before else None

    @property
    def fingerprint(self) -> str:
        """A hash of everything that the ids depend on."""
        settings = [self.named_tokens, self._templates, self.template_kwargs]
        text = json.dumps(settings, sort_keys=True, default=str)
        return hashlib.blake2b(self._file + text.encode(), digest_size=16).hexdigest()

    @cached_property
    def _added(self) -> list[tokenizers.AddedToken]:
        return list(self._backend.get_added_tokens_decoder().values())

    @cached_property
    def anchor(self) -> str:
        """A special token that does not consume the whitespace after it, or "" if there is none."""
        return next((t.content for t in self._added if t.special and not t.rstrip), "")

    def _encoding(self, text: str) -> tokenizers.Encoding:
        try:
            return self._backend.encode(text, add_special_tokens=False)
        except TypeError:  # tokenizers raises this for text that is not valid Unicode
            raise RowProblem("mask_unproved", "its text has a lone surrogate, which is not a character") from None

    def _id(self, name: str) -> int | None:
        token = self.named_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)


def rendered(
    templates: dict[str, str],
    name: str,
    messages: list[dict],
    tools: list[dict] | None,
    add_generation_prompt: bool,
    variables: dict,
) -> str:
    """Renders a conversation with the template `tool_use` if there are tools and such a template, else with `default`.
    Raises RowProblem if the template refuses the conversation, and UserError with its `name` if it is invalid Jinja."""
    from transformers.utils.chat_template_utils import render_jinja_template  # slow to import

    # As in apply_chat_template: many templates write "None" for a key whose value is None. Content stays, because some
    # templates test whether it is none.
    messages = [{key: value for key, value in m.items() if value is not None or key == "content"} for m in messages]
    template = templates.get("tool_use", templates["default"]) if tools else templates["default"]
    try:
        rendered: Any = render_jinja_template(
            conversations=[messages],
            tools=[*tools] if tools else None,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        written, _ = rendered
    except TemplateSyntaxError as error:
        where = f"{name}, line {error.lineno}"
        raise UserError(f"model.chat_template: {where}: not valid Jinja: {error.message}") from None
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise RowProblem("template_refused", str(error)) from None
    return written[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"model.path: {path.parent} has no {path.name}; make one with "
            f"`AutoTokenizer.from_pretrained(...).save_pretrained({str(path.parent)!r})` of transformers"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _backend(folder: Path, file: bytes) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(file.decode("utf-8"))
    except Exception as error:  # the Rust library raises plain Exception
        raise UserError(f"{folder / 'tokenizer.json'}: not a tokenizer: {error}") from None
    backend.no_truncation()
    backend.no_padding()
    return backend


def _settings(path: Path) -> dict:
    """Returns the mapping in a JSON file, or {} if there is no file."""
    if not path.exists():
        return {}
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def _named_tokens(config: dict) -> dict[str, str]:
    values = {name: config.get(name) for name in NAMED}
    return {name: v["content"] if isinstance(v, dict) else v for name, v in values.items() if v}


def _templates(folder: Path, config: dict, chosen: str) -> tuple[str, dict[str, str]]:
    """Returns (name of the choice, {name: template}). A model may have several templates; `default` always exists."""
    if chosen != "auto":
        return chosen, {"default": _template_text(BUILT_IN.get(chosen, Path(chosen)))}
    own = config.get("chat_template") or {}
    templates = {"default": own} if isinstance(own, str) else {}
    if isinstance(own, list):
        templates = {t["name"]: t["template"] for t in own}
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    templates |= {name: _template_text(path) for name, path in files.items() if path.exists()}
    if "default" in templates:
        return "own", templates
    return "plain", {"default": _template_text(BUILT_IN["plain"])}


def _dated(template: str, day: str) -> str:
    """Replaces the current date in a template by a fixed day, because transformers has no option for it."""
    then = datetime.fromisoformat(day)
    return NOW.sub(lambda call: json.dumps(then.strftime(call[2])), template)


def _template_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"model.chat_template: {path} cannot be read; "
            f"give `auto`, {', '.join(f'`{name}`' for name in BUILT_IN)} or a Jinja file"
        ) from None
