"""`tunesmith resume`."""

from pathlib import Path
from typing import Annotated

from tunesmith.cli.parameters import Json, Switch


def resume(
    run: Path,
    *,
    processes: int | None = None,
    cluster: str | None = None,
    share_gpus: Annotated[bool, Switch] = False,
    as_json: Json = False,
) -> None:
    """Continue a run from its last checkpoint.

    Args:
        run: The run's name or folder.
        processes: Train with another number of processes than before, for example on a GPU that was added. By default
            those of the plan, or fewer if GPUs are gone.
        cluster: Train on the machines of a Ray cluster. auto: the one that this machine is part of, or HOST:PORT.
        share_gpus: Use GPUs on which another run trains too. By default they are left out.
        as_json: Print the run's summary as JSON at the end.
    """
    from tunesmith.cli.terminal import waiting

    with waiting("loading"):
        from tunesmith.cli import progress, runs
    runs.finished(progress.resume(run, processes, cluster, True, share_gpus), as_json)
