"""The command line: one function a subcommand; what it needs is imported inside it.

Exit status: 0 done, 2 the user's mistake, 1 ours, 130 interrupted.
"""

import errno
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number

from tunesmith.errors import Ending, UserError, is_disk_full, quoted

# Help in plain text: what draws Markdown takes longer to import than all else that help needs.
app = App(
    name="tunesmith",
    help="Fine-tune language models on the workstation you own.",
    version_flags=["--version"],
    help_flags=["--help", "-h"],
    help_format="plaintext",
    exit_on_error=False,
    print_error=False,
)
PREPARE, TRAIN, USE, MORE = (
    Group(name, sort_key=place) for place, name in enumerate(("Prepare", "Train", "Use the result", "More"))
)
data = App(name="data", group=PREPARE, sort_key=2, help="Check data, or show rows as the model will see them.")
recipe_app = App(name="recipe", group=MORE, sort_key=2, help="Print the JSON Schema of recipes.")
app.command(data)
app.command(recipe_app)
app["--help"].group = app["--version"].group = MORE

DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)  # what only the user can mend
Switch = Parameter(negative="", show_default=False)
Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]
Columns = Annotated[list[str], Parameter(name="--columns", consume_multiple=True, negative="", show_default=False)]
AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]
DEFAULT_OUTPUT = Path("runs")


@app.command(group=PREPARE, sort_key=1)
def init(
    model: str,
    data: str,
    *,
    columns: Columns = [],
    output: Path = Path("recipe.yaml"),
    force: Annotated[bool, Switch] = False,
) -> None:
    """Write a short commented recipe that runs as it is.

    Args:
        model: Folder or hub id of the base model.
        data: File, folder, glob or hub:org/name of the examples.
        columns: The file's own names of columns, like question=Frage answer=Antwort.
        output: The file to write.
        force: Overwrite it if it exists.
    """
    from tunesmith.files import write_atomic
    from tunesmith.init import recipe_text

    if not output.parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.parent}")
    if output.exists() and not force:
        raise UserError(f"{output}: exists already; pass --force to overwrite it, or --output for another file")
    write_atomic(output, recipe_text(model, data, _columns(columns), output))
    print(f"Wrote {output}. Next:\n  tunesmith data check {quoted(output)}\n  tunesmith train {quoted(output)}")


app.command(
    "tunesmith.flags:train",
    name="train",
    group=TRAIN,
    sort_key=1,
    synonym=("finetune", "fine-tune", "sft"),
    help="Train from a recipe, or from flags alone. Every field of a recipe is also a flag; flags win over the recipe.",
)  # by its path: only this command waits for the recipe's classes


@app.command(group=TRAIN, sort_key=2)
def resume(run: Path, *, as_json: Json = False) -> None:
    """Continue a run from its last checkpoint.

    Args:
        run: The run's name or folder.
        as_json: Print the run's summary as JSON at the end.
    """
    from tunesmith.terminal import waiting

    with waiting("loading"):
        from tunesmith import screen
    screen.finished(screen.resume(run), as_json)


@app.command(name="eval", group=TRAIN, sort_key=4, synonym=("evaluate", "test"))
def evaluate(
    run: Path, *, data: str | None = None, format: str = "auto", columns: Columns = [], as_json: Json = False
) -> None:
    """Show how a run did on its held-out rows, before and after; with --data, measure it on other rows.

    Args:
        run: The run's name or folder.
        data: File, folder, glob or hub:org/name of rows to measure the finished run on.
        format: The format of --data, if it is not to be recognised.
        columns: The file's own names of columns, like question=Frage answer=Antwort.
        as_json: Print the numbers as JSON.
    """
    from tunesmith.files import read_json
    from tunesmith.run import Run

    opened = Run.open(run)
    if data:
        [source] = _asked(data, None, format, columns, None, None).sources
        from tunesmith.terminal import waiting

        with waiting(f"measuring {opened.name} on {data}"):
            from tunesmith.finetune.evaluation import evaluate as measure

            found = measure(opened, source)
    elif (found := read_json(opened.eval_file)) is None:
        raise UserError(
            f"{run}: not evaluated: it is not finished, or had no held-out rows; --data FILE measures a "
            "finished run on other rows"
        )
    if as_json:
        return print_json(found)

    from tunesmith.screen import evaluated, show_run

    evaluated(found) if data else show_run(opened)


@app.command(group=USE, sort_key=2, synonym=("merge", "convert", "quantize", "quantise", "push", "gguf"))
def export(
    run: Path,
    *,
    to: str,
    precision: str | None = None,
    into: Literal["full", "dequantised"] | None = None,
    importance: Annotated[bool, Switch] = False,
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
        precision: Of gguf and ollama: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q3_k_m or q2_k.
        into: Of a base trained in 4 or 8 bits: merge into its weights in full precision, or as training saw them,
            rounded.
        importance: Of K-quants: lose least where inputs of the training rows are large.
        output: The folder to write; RUN/FORM by default.
        parity: --no-parity writes without comparing, and records that.
        push: Also upload it to this repository of the hub, e.g. name/model, made private if there is none.
        as_json: Print what was compared as JSON.
    """
    from tunesmith.export.export import export as write
    from tunesmith.run import Run
    from tunesmith.screen import exported, note

    given = {"precision": precision, "into": into, "importance": importance or None}
    settings = {key: value for key, value in given.items() if value is not None}
    found = write(Run.open(run), to, output, settings, parity, push, note)
    print_json(found) if as_json else exported(found)


@app.command(group=USE, sort_key=1, synonym=("run", "ask", "generate", "inference"))
def chat(
    run: Path,
    *,
    base: bool = False,
    system: str | None = None,
    max_new_tokens: AtLeastOne = 512,
    temperature: Annotated[float, Parameter(validator=Number(gte=0, lte=2))] = 0.0,
    seed: int = 0,
) -> None:
    """Talk to a run's result. `/base` and `/tuned` switch the model, `/system` sets the system prompt, `/new` starts
    over, `/quit` ends. Ctrl-C stops an answer.

    Args:
        run: The run's name or folder.
        base: Start with the base model.
        system: The system prompt, or none; by default the one that most training rows had.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always gives the likeliest answer.
        seed: Of the sampling.
    """
    from tunesmith.chat.session import talk
    from tunesmith.run import Run

    talk(Run.open(run), base, system, max_new_tokens, temperature, seed)


app.command(
    "tunesmith.serve.connect:connect",
    name="connect",
    group=USE,
    sort_key=4,
    help="Print or write another program's configuration for a running server, and try it with a tool call.",
)  # by its path: its table gives the choices


@app.command(group=USE, sort_key=3, synonym=("server", "ui", "web", "studio"))
def serve(
    *models: Path,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8383,
    api_key: Annotated[str | None, Parameter(env_var="TUNESMITH_API_KEY")] = None,
    cors: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    allow_host: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    context: Annotated[int | None, Parameter(validator=Number(gte=2))] = None,
    batch: AtLeastOne = 64,
    queue: Annotated[int, Parameter(validator=Number(gte=0))] = 256,
    engine: Literal["here", "vllm"] = "here",
) -> None:
    """Serve runs and models over the APIs of OpenAI and Anthropic; a run with its base, on one copy of the weights.

    Args:
        models: Folders of runs and models, hub ids, or GGUF files, adapters among them after their base.
        host: The address to listen at. Any but this machine's own needs --api-key.
        port: The port to listen at; 0 takes a free one.
        api_key: What clients must send as key.
        cors: Origins, like http://localhost:3000, whose pages may call the server.
        allow_host: More names that requests may be addressed to, such as this machine's name in your network.
        context: Most tokens of prompt and answer together, if fewer than the model takes.
        batch: Most requests computed at once.
        queue: Most requests that may wait; more are answered with 429.
        engine: What computes: this process (here), or vllm, a program of its own.
    """
    from tunesmith.serve.command import run

    if not models:
        raise UserError("serve: name a run or a model")
    paths = [_served(model) for model in models]
    run(paths, host, port, api_key, cors, allow_host, context, batch, queue, engine)


@app.command(group=TRAIN, sort_key=3, synonym=("list", "show", "compare", "ls"))
def runs(
    action: Literal["list", "show", "compare"] = "list",
    *folders: Path,
    output: Path = DEFAULT_OUTPUT,
    as_json: Json = False,
) -> None:
    """List runs, show one, or compare some.

    Args:
        action: What to do.
        folders: The runs' names or folders; for list all in `output`.
        output: Where runs are.
        as_json: Print summaries as JSON.
    """
    from rich import get_console
    from rich import print as show

    from tunesmith.evaluate import summary
    from tunesmith.run import Run, list_runs

    chosen_runs = [Run.open(folder, output) for folder in folders] or list_runs(output)
    if action != "list" and len(folders) < (1 if action == "show" else 2):
        raise UserError(f"runs {action}: name {'a run' if action == 'show' else 'two runs or more'}")
    if as_json:
        return print_json([summary.summary(run) for run in chosen_runs])
    if not chosen_runs:
        print(f"No runs in {output} yet. `tunesmith demo` makes one.")
    elif action == "list":
        show(summary.list_table(chosen_runs))
    elif action == "compare":
        show(summary.compare(chosen_runs, get_console().width))
    else:
        for run in chosen_runs:
            show(summary.show(run))


@app.command(group=MORE, sort_key=1)
def demo(*, model: str | None = None, output: Path = DEFAULT_OUTPUT) -> None:
    """The main job on real data, offline: a small model learns facts about Python's standard library.

    Args:
        model: Folder or hub id of a model of yours, instead of the small one that is made from the documentation.
        output: Where runs are.
    """
    from tunesmith.demo.command import demonstrate

    demonstrate(model, output)


@data.command
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
    from tunesmith.data.inspect import check as look
    from tunesmith.data.inspect import report

    asked = _asked(file, model, format, columns, subset, split)
    tokenizer = asked.tokenizer()
    found = [look(source, tokenizer, asked.mask) for source in asked.sources]
    if as_json:
        return print_json(found if len(found) > 1 else found[0])
    for one in found:
        report(one, asked.sequence_length)


@data.command
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
    from tunesmith.data.inspect import show as draw

    asked = _asked(file, model, format, columns, subset, split)
    if (tokenizer := asked.tokenizer()) is None:
        raise UserError("data show: pass --model, whose template the rows are written with")
    for source in asked.sources:
        draw(source, tokenizer, rows, mask or asked.mask)


@dataclass
class Asked:
    """The sources to look at and how they are to be encoded, from a recipe or from flags."""

    sources: list
    model: Any = None  # the recipe's section
    mask: Literal["assistant", "last", "all"] = "assistant"
    sequence_length: int | None = None

    def tokenizer(self):
        from tunesmith.data.inspect import tokenizer_of
        from tunesmith.model.load import resolve

        return tokenizer_of(self.model, resolve(self.model), self.sources) if self.model else None


def _asked(
    file: str, model: str | None, format: str, columns: list[str], subset: str | None, split: str | None
) -> Asked:
    from pydantic import ValidationError

    from tunesmith.recipe import Model, Recipe, Source, first_problem

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
        source = Source(path=file, format=format, columns=_columns(columns), subset=subset, split=split)
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error)}") from None
    return Asked([source], Model(path=model) if model else None)


def _columns(pairs: list[str]) -> dict[str, str]:
    """`question=Frage` as {"question": "Frage"}."""
    parts = [pair.partition("=") for text in pairs for pair in text.split(",")]
    if wrong := [name for name, equals, column in parts if not (name and equals and column)]:
        raise UserError(f"--columns {wrong[0]}: write name=column, like question=Frage answer=Antwort")
    return {name.strip(): column.strip() for name, _, column in parts}


@recipe_app.command
def schema() -> None:
    """Print the JSON Schema of recipes."""
    from tunesmith.recipe import Recipe

    print_json(Recipe.model_json_schema())


def print_json(value) -> None:
    """For programs: on standard output, and nothing else there."""
    from tunesmith.files import json_text

    print(json_text(value, indent=2))


def main(arguments: list[str] | None = None) -> None:
    """Runs the command that the arguments name, by default those of this process, and ends with its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["train"], ["resume"]) and sys.stderr.isatty() and not {"--help", "-h"} & set(arguments):
        print("loading …", end="\r", file=sys.stderr, flush=True)  # until `waiting` clears it
    try:
        app(arguments)
    except Ending as error:
        _fail(str(error), error.status)
    except CycloptsError as error:
        _fail(_misused(error), UserError.status)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        if not is_disk_full(error) and (error.filename is None or error.errno not in DENIED):
            raise
        _fail(f"{error.filename or 'while writing'}: {error.strerror}", UserError.status)


def _misused(error: CycloptsError) -> str:
    """What is wrong with the command line, in one line."""
    from cyclopts import MissingArgumentError, UnknownCommandError, UnusedCliTokensError
    from pydantic import ValidationError

    from tunesmith.recipe import first_problem

    if isinstance(error.__cause__, ValidationError):
        flag = error.argument.name if error.argument else ""
        return first_problem(error.__cause__, flag.lstrip("-").replace("-", "_"))
    command = " ".join(error.command_chain or ())
    if isinstance(error, MissingArgumentError) and error.target and not error.keyword:
        return f"{command}: {error.argument.name.lstrip('-').upper()} is missing: {_usage(command, error.target)}"
    if isinstance(error, UnusedCliTokensError) and error.target:
        return f"{command}: {' '.join(error.unused_tokens)} is too much: {_usage(command, error.target)}"
    if isinstance(error, UnknownCommandError):  # its list of commands is cut off
        return (
            str(error).partition(" Available commands")[0]
            + f" `tunesmith {command} --help`".replace("  ", " ")
            + (" lists the commands")
        )
    return " ".join(str(error).split())


def _usage(command: str, function) -> str:
    """How a command is called with what it requires, and the choices for its arguments."""
    from inspect import Parameter as Signed
    from inspect import signature
    from typing import get_args

    words, choices = ["tunesmith", command], ""
    for name, parameter in signature(function).parameters.items():
        if parameter.default is Signed.empty or parameter.kind is Signed.VAR_POSITIONAL:
            words.append(f"--{name} {name.upper()}" if parameter.kind is Signed.KEYWORD_ONLY else name.upper())
            if allowed := [word for word in get_args(parameter.annotation) if isinstance(word, str)]:
                choices += f"; {name.upper()} is {', '.join(allowed)}"
    return " ".join(words) + choices


def _fail(message: str, status: int) -> None:
    print("\x1b[K" * sys.stderr.isatty() + f"tunesmith: {message}", file=sys.stderr)
    sys.exit(status)


def _served(model: Path) -> Path:
    """The folder of a run that is named, else the model as it is. Raises UserError for a folder that is not there,
    before it is taken for a hub id."""
    from tunesmith.run import Run, runs_there

    if run := Run.find(model):
        return run.folder
    if not model.exists() and (len(model.parts) == 1 or model.parent.is_dir()) and model.suffix != ".gguf":
        raise UserError(f"no folder {model}, and no such run: {runs_there(model, DEFAULT_OUTPUT)}")
    return model


if __name__ == "__main__":
    main()
