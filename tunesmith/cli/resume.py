"""`tunesmith resume`."""

from pathlib import Path

from tunesmith.cli.parameters import Json


def resume(run: Path, *, as_json: Json = False) -> None:
    """Continue a run from its last checkpoint.

    Args:
        run: The run's name or folder.
        as_json: Print the run's summary as JSON at the end.
    """
    from tunesmith.cli.terminal import waiting

    with waiting("loading"):
        from tunesmith.cli import progress, runs
    runs.finished(progress.resume(run), as_json)
