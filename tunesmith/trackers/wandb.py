"""Weights & Biases, as the user's own settings say: online, offline or disabled. Without any it is offline."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.trackers import PROJECT, Point, Subject

package = "wandb"


def start(subject: Subject) -> "_Record":
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    parts: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT") or PROJECT,
        "name": subject.name,
        "id": subject.id,
        "resume": "allow",
        "dir": os.environ.get("WANDB_DIR") or subject.folder.parent,  # it makes a folder `wandb` there
        "config": dict(subject.config),
        "settings": wandb.Settings(console="off"),
    }
    try:
        return _Record(wandb.init(**parts))
    except wandb.errors.UsageError:  # no login
        if os.environ.get("WANDB_MODE"):
            raise
        run = wandb.init(**parts, mode="offline")
        subject.warn(
            f"trackers: wandb has no login on this machine, so the run is kept in {subject.folder} and sent nowhere; "
            "`wandb login` and `wandb sync` send it, and WANDB_MODE=offline keeps it here without this warning"
        )
        return _Record(run)


class _Record:
    def __init__(self, run: Any):
        self._run = run

    def send(self, points: Sequence[Point]) -> None:
        for step, values in points:
            self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, Any], finished: bool) -> None:
        self._run.summary.update({f"run/{key}": value for key, value in summary.items()})
        self._run.finish(exit_code=0 if finished else 1)
