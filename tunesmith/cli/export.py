"""`tunesmith export`, and the settings of all forms as its flags."""

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from cyclopts import Group, Parameter
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.table import Table

from tunesmith.cli.flags import arity, default_text, flag_name, flags_of
from tunesmith.cli.parameters import Json, print_json
from tunesmith.errors import UserError
from tunesmith.export.forms import all_settings
from tunesmith.export.uses import commands_for
from tunesmith.run import Run
from tunesmith.units import size

RESERVED = ("run", "to", "output", "parity", "push", "json", "help")


def form_fields() -> dict[str, FieldInfo]:
    """The settings of all forms by name; the help of each says which forms take it. Raises UserError for a setting that
    cannot be a flag."""
    found: dict[str, dict[str, FieldInfo]] = {}
    for form, settings in all_settings().items():
        for name, field in settings.model_fields.items():
            if name in RESERVED:
                raise UserError(
                    f"the export form {form} has a setting {name}: {flag_name(name)} is a flag of every export"
                )
            found.setdefault(name, {})[form.replace("_", "-")] = field
    return {name: _field(name, by_form) for name, by_form in found.items()}


def _field(name: str, by_form: dict[str, FieldInfo]) -> FieldInfo:
    """The fields of that name of several forms as one. Forms with the same field share a sentence of its help."""
    if len({arity(field.annotation) for field in by_form.values()}) > 1:
        raise UserError(
            f"{flag_name(name)}: the export forms {', '.join(by_form)} differ in how many values follow it; rename the "
            "setting of a form that is not Tunesmith's"
        )
    meanings: dict[tuple, list[str]] = {}
    for form, field in by_form.items():
        meanings.setdefault((field.description, default_text(field), str(field.annotation)), []).append(form)
    one = copy(next(iter(by_form.values())))
    texts = [
        f"{', '.join(forms)}: {text or ''}" + (f" (default: {default})" if len(meanings) > 1 and default else "")
        for (text, default, _), forms in meanings.items()
    ]
    one.description = " ".join(texts)
    if len(meanings) > 1:
        one.default, one.default_factory = None, None
        one.annotation = Union[tuple(field.annotation for field in by_form.values())]  # noqa: UP007  of a tuple
    return one


if TYPE_CHECKING:
    FormFlags = dict[str, Any]  # made from the forms' fields, which a type checker cannot follow
else:
    FormFlags = flags_of(form_fields(), Group("Settings of forms", sort_key=1))


def export(
    run: Path,
    *,
    to: str,
    settings: Annotated[FormFlags | None, Parameter(name="*")] = None,
    output: Path | None = None,
    parity: bool = True,
    push: str | None = None,
    as_json: Json = False,
) -> None:
    """Write a run's result in the form in which it is used, and compare that with the trained model.

    Args:
        run: The run's name or folder.
        to: adapter, merged (a model folder for transformers and vLLM), fp8 and int4 (the same in 8 and 4 bits), gguf,
            gguf-adapter, ollama, or a form that a package adds.
        output: The folder to write; RUN/FORM by default.
        parity: --no-parity writes without comparing, and records that.
        push: Also upload it to this repository of the hub, e.g. name/model, made private if there is none.
        as_json: Print what was compared as JSON.
    """
    from tunesmith.export.export import export as write

    found = write(Run.open(run), to, output, dict(settings or {}), parity, push, note)
    print_json(found) if as_json else exported(found)


def note(line: str) -> None:
    """Prints a line of progress on stderr."""
    Console(stderr=True, highlight=False).print(line, style="dim", markup=False)


def exported(found: dict) -> None:
    """Prints the outcome of an export. `found`: as `tunesmith.export.export.export` returns it."""
    console, folder, precision = Console(highlight=False), Path(found["folder"]), found["settings"].get("precision")
    written = f"{folder}, {size(sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()))}"
    if found["passed"] is None:
        console.print(f"\n{written}: not verified, as --no-parity was passed", style="yellow", markup=False)
    else:
        console.print(_parity_table(found))
        engines = [found["engine"], *(n for n, there in found["elsewhere"].items() if there["passed"])]
        for name, there in found["elsewhere"].items():
            if there["passed"] is None:
                note(f"note    not compared in {name}: {there['problem']}")
        within = f" within {precision} precision" if precision else ""
        console.print(
            f"\n✓ {written}: verified in {' and '.join(engines)}; it matches the trained model{within}",
            style="green",
            markup=False,
        )
    for command in commands_for(found["form"], folder):
        console.print(f"  {command}", markup=False, soft_wrap=True)


def _parity_table(found: dict) -> Table:
    """A column for each engine that was asked."""
    asked = [found, *(there for there in found["elsewhere"].values() if there["passed"] is not None)]
    shown = Table(
        title=f"exported compared with trained, on {found['rows']} {found['rows_from']}", title_justify="left"
    )
    for column in ("", *(f"in {one['engine']}" for one in asked), "bound"):
        shown.add_column(column)

    def row(what: str, bound: str, value) -> None:
        """A bound, where there is one, holds: an export that is not the trained model is not shown."""
        shown.add_row(what, *(f"✓ {value(one)}" if bound else value(one) for one in asked), bound)

    def of_logits(text):
        return lambda one: text(one["logits"]) if one["logits"] else "not told"

    bound = found["bound"]
    row(
        "token ids",
        "identical",
        lambda one: f"of {one['tokens']['texts']} texts, {one['tokens']['conversations']} conversations",
    )
    for key, what in (("excused", "other ids, as noted"), ("not_expressed", "conversations not compared")):
        if any(one["tokens"][key] for one in asked):
            row(what, "", lambda one, key=key: ", ".join(map(repr, one["tokens"][key])))
    row("mean KL of logits, nats", f"{bound['kl']:g}", of_logits(lambda logits: f"{logits['mean_kl']:.2e}"))
    row("same top token", f"{bound['top1']:.0%}", of_logits(lambda logits: f"{logits['top1_agreement']:.1%}"))
    row("largest drift of a logit, of the spread", "", of_logits(lambda logits: f"{logits['largest_drift']:.2e}"))
    row(
        "answers that stop",
        f"{found['answers']['bound']:.0%}",
        lambda one: f"{one['answers']['stopped_of_them']} of {one['answers']['stopped_trained']}",
    )
    row("answers word for word the same", "", lambda one: f"{one['answers']['identical']} of {one['answers']['asked']}")
    for name, values in found["measure"].items():
        what = f"{name.replace('_', ' ')}, trained {values['trained']:.4f}"
        row(what, "", lambda one, name=name: _exported(one["measure"][name]["exported"]))
    return shown


def _exported(value: float | None) -> str:
    return "not told" if value is None else f"{value:.4f}"
