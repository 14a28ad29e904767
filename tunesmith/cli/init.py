"""`tunesmith init`."""

from pathlib import Path
from typing import Annotated

from tunesmith.cli.parameters import Columns, Switch, columns_of
from tunesmith.errors import UserError, quoted


def init(
    model: str,
    data: str,
    *,
    columns: Columns = [],
    output: Path = Path("recipe.yaml"),
    force: Annotated[bool, Switch] = False,
) -> None:
    """Write a short commented recipe that is ready to run.

    Args:
        model: Folder, hub id or GGUF file of the base model.
        data: File, folder, glob or hub:org/name of the examples.
        columns: The file's own column names, like question=Frage answer=Antwort.
        output: The file to write.
        force: Overwrite it if it exists.
    """
    from tunesmith.cli.terminal import waiting
    from tunesmith.files import write_atomic
    from tunesmith.planner.suggest import recipe_text

    if not output.parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.parent}")
    if output.exists() and not force:
        raise UserError(f"{output}: exists already; pass --force to overwrite it, or --output for another file")
    with waiting("reading the base model and the data"):
        text = recipe_text(model, data, columns_of(columns), output)
    write_atomic(output, text)
    print(f"Wrote {output}. Next:\n  tunesmith data check {quoted(output)}\n  tunesmith train {quoted(output)}")
