"""Parameters that several commands share, and JSON output."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from tunesmith.errors import UserError

Switch = Parameter(negative="", show_default=False)

Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]

Columns = Annotated[list[str], Parameter(name="--columns", consume_multiple=True, negative="", show_default=False)]

AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]

DEFAULT_OUTPUT = Path("runs")


def columns_of(pairs: list[str]) -> dict[str, str]:
    """Parses pairs such as `question=Frage` into {"question": "Frage"}. Raises UserError for any other text."""
    parts = [pair.partition("=") for text in pairs for pair in text.split(",")]
    if wrong := [name for name, equals, column in parts if not (name and equals and column)]:
        raise UserError(f"--columns {wrong[0]}: write name=column, like question=Frage answer=Antwort")
    return {name.strip(): column.strip() for name, _, column in parts}


def print_json(value) -> None:
    """Prints a value as JSON to standard output, for programs."""
    from tunesmith.files import json_text

    print(json_text(value, indent=2))
