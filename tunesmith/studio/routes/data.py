"""Data: what a file holds, and its rows as the model will see them."""

from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from tunesmith.errors import UserError
from tunesmith.recipe import Model, Recipe, Source
from tunesmith.studio.commands import refuse_if_offline, while_connected
from tunesmith.studio.state import Studio

NO_MODEL = "none"  # stands for a model where a recipe must have one


class DataQuestion(BaseModel):
    """Rows to look at: those of one source, or of all sources of a recipe."""

    source: str | dict[str, Any] | None = None
    """A path, or a source as in `data.train`."""
    model: str | None = None
    """Folder, hub id or GGUF of the model whose tokenizer is used. A hub id must be in the cache."""
    recipe: dict[str, Any] | None = None
    """The recipe's values, instead of a source and a model."""
    download: bool = False
    """Whether hub datasets may be downloaded; without it they must be in the cache."""


class RowsQuestion(DataQuestion):
    """Which rows to show."""

    offset: Annotated[int, Field(ge=0)] = 0
    """Records to skip. For the next page: `next` of the last one."""
    limit: Annotated[int, Field(ge=1, le=200)] = 20
    search: Annotated[str, Field(max_length=1000)] = ""
    """Only rows that have this text, in upper or lower case."""
    mask: Literal["assistant", "last", "all"] | None = None
    number: Annotated[int, Field(ge=1)] | None = None
    """Only this source of the recipe, counted from 1, those of `data.eval` after those of `data.train`."""


class RowProblemView(BaseModel):
    """A row that is dropped."""

    where: str
    reason: str
    """A key, such as broken_json."""
    detail: str


class Longest(BaseModel):
    """The longest example."""

    where: str
    tokens: int


class DataReport(BaseModel):
    """The content of a source. The fields from `tokens` on need a model."""

    path: str
    format: str | None
    left_out: list[str]
    """Files beside it that are not read, in words."""
    read: int
    kept: int
    dropped: dict[str, int]
    """Rows by reason."""
    changed: dict[str, int]
    unread: dict[str, int]
    """Rows by column that no format reads."""
    first_problems: list[RowProblemView]
    tokens: int | None = None
    supervised_share: float | None = None
    histogram: dict[int, int] | None = None
    """Examples by the most tokens of a bin."""
    length_percentiles: dict[int, int] | None = None
    """Tokens."""
    lost_share: dict[int, float] | None = None
    """The share of examples that a sequence length would lose."""
    longest: Longest | None = None


class Turn(BaseModel):
    """A message of a row, or its whole text."""

    role: str
    """Empty for plain text."""
    text: str


class SegmentView(BaseModel):
    """A run of tokens that are all learned, or all not."""

    text: str
    learned: bool
    ids: list[int]
    pieces: list[str]
    """The text of each token; a character of several tokens is the last one's. Empty where it is not known."""


class ExampleView(BaseModel):
    """A token sequence that a row becomes."""

    tokens: int
    learned: int
    changes: list[str]
    """The changes that were made, in words."""
    segments: list[SegmentView]
    is_cut: bool
    """Whether its text is longer than what is here."""


class RowView(BaseModel):
    """A row as the file has it, and as the model sees it."""

    index: int
    where: str
    """FILE:LINE."""
    kind: str
    """chat or text; empty if it cannot be read."""
    problem: str
    """Why it is dropped; empty if it is not."""
    detail: str
    turns: list[Turn]
    examples: list[ExampleView]
    """Empty without a model."""


class RowsView(BaseModel):
    """A page of rows of one source."""

    path: str
    format: str | None
    rows: list[RowView]
    next: int | None
    """The offset of the next page; None at the end."""


async def ask(studio: Studio, command: str, asked: DataQuestion, *flags: str) -> list[dict]:
    """Runs `tunesmith data`; one answer for each source. Only hub datasets are downloaded, and only if that is asked.
    Raises UserError."""
    if asked.recipe is not None:
        recipe = Recipe.build(asked.recipe)
        await run_in_threadpool(studio.roots.check, recipe)
        sources = [*recipe.data.train, *recipe.data.eval]
        answer = await studio.commands.run_on_recipe(
            recipe, "data", command, flags=[*flags, "--json"], online=_is_online(sources, recipe, asked)
        )
    elif asked.source is not None:
        recipe = Recipe.build({"model": asked.model or NO_MODEL, "data": {"train": [asked.source]}}, "data")
        await run_in_threadpool(studio.roots.check, recipe)
        (source,) = recipe.data.train
        flags = (*flags, *_source_flags(source), *([f"--model={asked.model}"] if asked.model else []))
        answer = await studio.commands.run(
            "data", command, *flags, "--json", "--", source.path, online=_is_online([source], recipe, asked)
        )
    else:
        raise UserError("source: name a file, or give a recipe")
    return answer if isinstance(answer, list) else [answer]


def _source_flags(source: Source) -> list[str]:
    """Raises UserError for what flags cannot say."""
    if source.revision or any("," in text for pair in source.columns.items() for text in pair):
        raise UserError("source: a revision, and columns whose names have a comma, need a recipe")
    flags = [f"--{name}={value}" for name in ("format", "subset", "split") if (value := getattr(source, name))]
    return flags + [f"--columns={name}={column}" for name, column in source.columns.items()]


def _is_online(sources: list[Source], recipe: Recipe, asked: DataQuestion) -> bool:
    """Whether a command downloads hub datasets, which must be asked for. Raises UserError if it cannot without, or if
    it would download something else too."""
    hub = [source for source in sources if source.path.startswith("hub:")]
    if not hub:
        return False
    if not asked.download:
        for source in hub:
            _check_cached(source)
        return False
    _check_model(recipe.model)
    refuse_if_offline()
    return True


def _check_cached(source: Source) -> None:
    """Raises UserError if a hub dataset would have to be downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    name = source.path.removeprefix("hub:")
    try:
        snapshot_download(name, repo_type="dataset", revision=source.revision, local_files_only=True)
    except LocalEntryNotFoundError:
        raise UserError(f"{source.path}: not in the hub's cache on this machine") from None
    except HFValidationError:
        raise UserError(f"{source.path}: not a hub dataset; write hub:org/name") from None


def _check_model(model: Model) -> None:
    """Raises UserError if a model would have to be downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with suppress(HFValidationError):  # it is a path
        if "/" in model.path and try_to_load_from_cache(model.path, "config.json", revision=model.revision) is None:
            raise UserError(f"model.path: {model.path} is not in the hub's cache; download it first")


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["data"])

    @router.post("/data/check", response_model=list[DataReport])
    async def check_data(asked: DataQuestion, request: Request) -> Any:
        return await while_connected(request, ask(studio, "check", asked))

    @router.post("/data/rows", response_model=list[RowsView])
    async def show_rows(asked: RowsQuestion, request: Request) -> Any:
        flags = [f"--rows={asked.limit}", f"--offset={asked.offset}", f"--search={asked.search}"]
        flags += [f"--mask={asked.mask}"] if asked.mask else []
        flags += [f"--source={asked.number}"] if asked.number else []
        return await while_connected(request, ask(studio, "show", asked, *flags))

    return router
