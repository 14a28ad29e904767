"""`tunesmith data`: `check` and `show`."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from tunesmith.cli.parameters import AtLeastOne, Columns, Json, columns_of, print_json
from tunesmith.errors import UserError
from tunesmith.recipe import Model, Source

FIRST_ROWS = 10_000  # of a file, so that a long one is not read whole to show a few
MOST_TEXT = 20_000  # characters of a turn and of an example in JSON


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
    """Describe a file, or each source of a recipe: format, rows, problems and, with a model, lengths in tokens.

    Args:
        file: File, folder, glob, hub:org/name, or a recipe (YAML), whose model and columns are then used.
        model: Folder or hub id of the model whose tokenizer and chat template to use.
        format: The format, instead of recognising it.
        columns: The file's own column names, like question=Frage answer=Antwort.
        subset: The subset of a hub dataset or a folder.
        split: The split of a hub dataset or a folder; by default train, if there is one.
        as_json: Print the findings as JSON.
    """
    from tunesmith.cli.data_report import print_report
    from tunesmith.data.inspect import check as inspect

    selected = select(file, model, format, columns, subset, split)
    tokenizer = selected.tokenizer()
    encode = selected.encode(tokenizer) if tokenizer else None
    findings = [inspect(source, encode) for source in selected.sources]
    if as_json:
        return print_json(findings if len(findings) > 1 else findings[0])
    for one in findings:
        print_report(one, selected.sequence_length)


def show(
    file: str,
    *,
    model: str | None = None,
    rows: AtLeastOne = 3,
    offset: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    search: str = "",
    format: str = "auto",
    columns: Columns = [],
    mask: Literal["assistant", "last", "all"] | None = None,
    subset: str | None = None,
    split: str | None = None,
    source: AtLeastOne | None = None,
    as_json: Json = False,
) -> None:
    """Show rows as the model will see them, supervised tokens in colour. Whether rows have reasoning, which some chat
    templates must know, is found from the first 10,000 rows.

    Args:
        file: File, folder, glob, hub:org/name, or a recipe (YAML), whose model and columns are then used.
        model: Folder or hub id of the model.
        rows: The number of rows to show.
        offset: The number of rows to skip.
        search: Show only rows that have this text, in upper or lower case.
        format: The format, instead of recognising it.
        columns: The file's own column names, like question=Frage answer=Antwort.
        mask: The supervised tokens: assistant, last or all; by default the recipe's, or assistant.
        subset: The subset of a hub dataset or a folder.
        split: The split of a hub dataset or a folder; by default train, if there is one.
        source: Only this source of a recipe, counted from 1, those of data.eval after those of data.train.
        as_json: Print the rows as JSON, also without a model; long texts are cut.
    """
    from tunesmith.cli.data_report import print_rows

    selected = select(file, model, format, columns, subset, split)
    tokenizer = selected.tokenizer(FIRST_ROWS)
    if tokenizer is None and not as_json:
        raise UserError("data show: pass --model, whose chat template renders the rows")
    encode = selected.encode(tokenizer, mask) if tokenizer else None
    if source and source > len(selected.sources):
        raise UserError(f"--source {source}: {file} has {len(selected.sources)} sources")
    shown = selected.sources[source - 1 : source] if source else selected.sources
    if as_json:
        return print_json([_page(one, tokenizer, encode, offset, rows, search) for one in shown])
    for one in shown:
        print_rows(one, tokenizer, rows, encode, offset, search)


def _page(source, tokenizer, encode, offset: int, rows: int, search: str) -> dict:
    """Some rows of a source for programs. `next` is the offset at which to look for those that follow; None at the
    end."""
    from tunesmith.data.inspect import show

    page = list(islice(show(source, tokenizer, encode, offset, search, MOST_TEXT), rows))
    further = page[-1]["index"] + 1 if len(page) == rows else None
    return {"path": source.path, "format": source.format, "rows": page, "next": further}


@dataclass
class Selected:
    """The sources to inspect and how to encode them, from a recipe or from flags."""

    sources: list
    model: Any = None  # the recipe's section
    method: Any = None  # the recipe's section
    sequence_length: int | None = None

    def tokenizer(self, most_rows: int | None = None):
        """Returns the base model's tokenizer, without the recipe's new tokens, or None without a model. `most_rows`: of
        each source, among which reasoning is looked for; None: all."""
        from tunesmith.cli.terminal import waiting
        from tunesmith.data.source import tokenizer_for
        from tunesmith.inference.gguf_base import base_folder

        if not self.model:
            return None
        with waiting("reading the base model"):  # a GGUF is unpacked first
            base = base_folder(self.model)
        sources = [replace(source, most_rows=most_rows) for source in self.sources]
        return tokenizer_for(base, sources, self.model.chat_template_kwargs, self.model.chat_template)

    def encode(self, tokenizer, mask: str | None = None):
        """Returns a function that encodes a row with the recipe's method; without a recipe, conversations with sft and
        text with cpt."""
        from tunesmith.data.rows import Text
        from tunesmith.methods import Method, cpt, sft

        mask_given = {"mask": mask} if mask else {}
        if self.method:
            given = mask_given if "mask" in type(self.method).model_fields else {}
            return partial(Method(self.method.model_copy(update=given)).encode, tokenizer)
        text, conversation = Method(cpt.Settings()), Method(sft.Settings(**mask_given))
        return lambda row: (text if isinstance(row, Text) else conversation).encode(tokenizer, row)


def select(
    file: str, model: str | None, format: str, columns: list[str], subset: str | None, split: str | None
) -> Selected:
    """Returns the sources of a recipe or of flags. Raises UserError for an invalid recipe or flag."""
    from pydantic import ValidationError

    from tunesmith.data.source import resolve
    from tunesmith.recipe import Recipe, first_problem

    if Path(file).suffix in (".yaml", ".yml"):
        recipe = Recipe.load(file)
        length = recipe.data.sequence_length
        return Selected(
            [resolve(source) for source in (*recipe.data.train, *recipe.data.eval)],
            recipe.model.model_copy(update={"path": model} if model else {}),
            recipe.method,
            None if length == "max" else length,
        )
    try:
        source = Source(path=file, format=format, columns=columns_of(columns), subset=subset, split=split)
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error)}") from None
    return Selected([resolve(source)], Model(path=model) if model else None)
