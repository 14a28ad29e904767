"""`tunesmith data`: `check` and `show`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.cli.parameters import Columns, Json, columns_of, print_json
from tunesmith.errors import UserError
from tunesmith.recipe import Model, Source


def check(
    file: str,
    *,
    model: str | None = None,
    format: str = "auto",
    columns: Columns = [],
    subset: str | None = None,
    split: str | None = None,
    as_json: Json = False,
) -> None:
    """Say what a file, or each source of a recipe, holds: format, counts, problems, and with a model the lengths.

    Args:
        file: File, folder, glob, hub:org/name, or a recipe (YAML), whose model and columns then count.
        model: Folder or hub id of the model whose tokenizer and template count.
        format: The format, if it is not to be recognised.
        columns: The file's own names of columns, like question=Frage answer=Antwort.
        subset: Of a hub dataset or a folder.
        split: Of a hub dataset or a folder; train if there is one.
        as_json: Print the findings as JSON.
    """
    from tunesmith.cli.data_report import print_report
    from tunesmith.data.inspect import check as look

    asked = asked_for(file, model, format, columns, subset, split)
    tokenizer = asked.tokenizer()
    found = [look(source, tokenizer, asked.mask) for source in asked.sources]
    if as_json:
        return print_json(found if len(found) > 1 else found[0])
    for one in found:
        print_report(one, asked.sequence_length)


def show(
    file: str,
    *,
    model: str | None = None,
    rows: int = 3,
    format: str = "auto",
    columns: Columns = [],
    mask: Literal["assistant", "last", "all"] | None = None,
    subset: str | None = None,
    split: str | None = None,
) -> None:
    """Show rows as the model will see them, supervised tokens in colour.

    Args:
        file: File, folder, glob, hub:org/name, or a recipe (YAML), whose model and columns then count.
        model: Folder or hub id of the model.
        rows: How many.
        format: The format, if it is not to be recognised.
        columns: The file's own names of columns, like question=Frage answer=Antwort.
        mask: What is learned: assistant (by default), last or all; or what the recipe says.
        subset: Of a hub dataset or a folder.
        split: Of a hub dataset or a folder; train if there is one.
    """
    from tunesmith.cli.data_report import print_rows

    asked = asked_for(file, model, format, columns, subset, split)
    if (tokenizer := asked.tokenizer()) is None:
        raise UserError("data show: pass --model, whose template the rows are written with")
    for source in asked.sources:
        print_rows(source, tokenizer, rows, mask or asked.mask)


@dataclass
class Asked:
    """The sources to look at and how they are to be encoded, from a recipe or from flags."""

    sources: list
    model: Any = None  # the recipe's section
    mask: Literal["assistant", "last", "all"] = "assistant"
    sequence_length: int | None = None

    def tokenizer(self):
        """The base's, without new tokens; None without a model."""
        from tunesmith.cli.terminal import waiting
        from tunesmith.data.source import tokenizer_for
        from tunesmith.inference.gguf_base import base_folder

        if not self.model:
            return None
        with waiting("reading the base model"):  # a GGUF is unpacked first
            base = base_folder(self.model)
        return tokenizer_for(base, self.sources, self.model.chat_template_kwargs, self.model.chat_template)


def asked_for(
    file: str, model: str | None, format: str, columns: list[str], subset: str | None, split: str | None
) -> Asked:
    from pydantic import ValidationError

    from tunesmith.recipe import Recipe, first_problem

    if Path(file).suffix in (".yaml", ".yml"):
        recipe = Recipe.load(file)
        length, cpt = recipe.data.sequence_length, recipe.method.name == "cpt"
        return Asked(
            [*recipe.data.train, *recipe.data.eval],
            recipe.model.model_copy(update={"path": model} if model else {}),
            "all" if cpt else recipe.method.mask,
            None if length == "max" else length,
        )
    try:
        source = Source(path=file, format=format, columns=columns_of(columns), subset=subset, split=split)
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error)}") from None
    return Asked([source], Model(path=model) if model else None)
