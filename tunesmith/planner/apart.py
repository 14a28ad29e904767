"""Predicts in a process of its own: tracing takes about 0.5 GB, and bitsandbytes keeps tables for the process.

The process is not started by multiprocessing, which would import the script of a user who calls `train`.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

from tunesmith.errors import CHILD_DIED, UserError
from tunesmith.machine import Machine
from tunesmith.planner.prediction import Prediction
from tunesmith.recipe import Recipe


class NotPredicted(Exception):
    """The process that predicts has failed."""


def predict_apart(recipe: Recipe, machine: Machine, base: Path) -> Prediction:
    """As `predict.predict`. Raises NotPredicted if the process fails, say for want of memory."""
    paths = os.pathsep.join(filter(None, sys.path))  # it must find the modules that this process finds
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__],
        input=pickle.dumps((recipe, machine, base)),
        capture_output=True,
        env=os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise NotPredicted(lines[-1] if lines else CHILD_DIED)
    found = pickle.loads(done.stdout)
    if isinstance(found, UserError):
        raise found
    return found


def main() -> None:
    recipe, machine, base = pickle.load(sys.stdin.buffer)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print
    from tunesmith.model.load import config_of
    from tunesmith.planner.predict import predict

    try:
        found: Prediction | UserError = predict(recipe, machine, config_of(base), base)
    except UserError as error:
        found = error
    answers.write(pickle.dumps(found))
    answers.close()


if __name__ == "__main__":
    main()
