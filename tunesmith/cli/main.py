"""The command line: lists the commands, runs one, and reports mistakes in one line.

Exit status: 0 success, 2 a mistake of the user, 1 any other error, 130 interrupted.
"""

import errno
import sys

from cyclopts import App, CycloptsError, Group

from tunesmith.errors import Ending, UserError, is_disk_full

# Help is plain text, because importing a Markdown renderer takes longer than everything else that help needs.
app = App(
    name="tunesmith",
    help="Fine-tune language models on the workstation you own.",
    version_flags=["--version"],
    help_flags=["--help", "-h"],
    help_format="plaintext",
    exit_on_error=False,
    print_error=False,
)
GROUPS = {
    name: Group(name, sort_key=place) for place, name in enumerate(("Prepare", "Train", "Use the result", "More"))
}
# Each command is imported when it is used, so that none waits for the imports of another.
COMMANDS = {
    "Prepare": {
        "init": ("init:init", "Write a short commented recipe that is ready to run.", ()),
    },
    "Train": {
        "plan": (
            "plan:plan",
            "Show what a recipe needs on this machine, and whether it fits. Nothing is loaded, downloaded or trained.",
            ("estimate", "fit"),
        ),
        "train": (
            "train:train",
            "Train from a recipe, or from flags alone. Every field of a recipe is a flag; flags win over the recipe.",
            ("finetune", "fine-tune", "sft"),
        ),
        "resume": ("resume:resume", "Continue a run from its last checkpoint.", ()),
        "runs": (
            "runs:runs",
            "List runs, show one, compare some, or pause, continue or stop a running one.",
            ("list", "show", "compare", "ls", "pause", "stop"),
        ),
        "eval": (
            "eval:evaluate",
            "Compare a run's model with its base on the held-out rows. With --data, measure it on other rows.",
            ("evaluate", "test"),
        ),
    },
    "Use the result": {
        "chat": (
            "chat:chat",
            "Chat in the terminal with a run's result and its base model.",
            ("run", "ask", "generate", "inference"),
        ),
        "export": (
            "export:export",
            "Write a run's result in the form in which it is used, and compare that with the trained model.",
            ("merge", "convert", "quantize", "quantise", "push", "gguf"),
        ),
        "serve": (
            "serve:serve",
            "Serve runs and models over the APIs of OpenAI and Anthropic. A run shares the weights of its base.",
            ("server",),
        ),
        "studio": (
            "studio:studio",
            "Open the workstation in the browser: data, recipes, the queue, runs, chat, exports and servers.",
            ("ui", "web", "gui", "page", "app"),
        ),
        "connect": (
            "connect:connect",
            "Print or write another program's configuration for a running server, and test it with a tool call.",
            (),
        ),
    },
    "More": {
        "demo": (
            "demo:demo",
            "Fine-tune a small model offline on facts about Python's standard library.",
            (),
        ),
        "doctor": (
            "doctor:doctor",
            "Show this machine, its problems and what to do about each, and check its GPUs, in a few seconds.",
            ("info", "gpus", "diagnose"),
        ),
    },
}
for group, commands in COMMANDS.items():
    for place, (name, (home, text, synonyms)) in enumerate(commands.items()):
        app.command(
            f"tunesmith.cli.{home}", name=name, group=GROUPS[group], sort_key=place, synonym=synonyms, help=text
        )
data = App(
    name="data", group=GROUPS["Prepare"], sort_key=1, help="Check data, or show rows as the model will see them."
)
data.command(
    "tunesmith.cli.data:check",
    name="check",
    help="Describe a file, or each source of a recipe: format, rows, problems and, with a model, lengths in tokens.",
)
data.command(
    "tunesmith.cli.data:show", name="show", help="Show rows as the model will see them, supervised tokens in colour."
)
recipe = App(name="recipe", group=GROUPS["More"], sort_key=1, help="Print the JSON Schema of recipes.")
recipe.command("tunesmith.cli.recipe:schema", name="schema", help="Print the JSON Schema of recipes.")
app.command(data)
app.command(
    "tunesmith.cli.queue:queue",
    name="queue",
    group=GROUPS["Train"],
    sort_key=5,
    help="Have this workstation do jobs one after another.",
)
app.command(recipe)
app["--help"].group = app["--version"].group = GROUPS["More"]

DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)  # errors that only the user can fix


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line, by default this process's arguments, and exits the process with the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["train"], ["resume"]) and sys.stderr.isatty() and not {"--help", "-h"} & set(arguments):
        print("loading …", end="\r", file=sys.stderr, flush=True)  # until `waiting` clears it
    try:
        app(arguments)
    except Ending as error:
        _fail(str(error), error.status)
    except CycloptsError as error:
        _fail(_usage_problem(error), UserError.status)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        if not is_disk_full(error) and (error.filename is None or error.errno not in DENIED):
            raise
        _fail(f"{error.filename or 'while writing'}: {error.strerror}", UserError.status)


def _usage_problem(error: CycloptsError) -> str:
    """Returns one line about a mistake in the command line."""
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
        return f"{command}: {' '.join(error.unused_tokens)} is one argument too many: {_usage(command, error.target)}"
    if isinstance(error, UnknownCommandError):  # cyclopts cuts off its list of commands
        return (
            str(error).partition(" Available commands")[0]
            + f" `tunesmith {command} --help`".replace("  ", " ")
            + (" lists the commands")
        )
    return " ".join(str(error).split())


def _usage(command: str, function) -> str:
    """Returns a command's usage line: its required arguments, and the choices of each."""
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
