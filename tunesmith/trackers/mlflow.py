"""MLflow: a server that MLFLOW_TRACKING_URI names, else a SQLite file in the run's folder."""

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.trackers import PROJECT, Point, Subject

package = "mlflow"

ID_TAG = "tunesmith.id"
MOST_METRICS = 1000  # of a request
MOST_PARAMETERS = 100  # of a request
LONGEST_VALUE = 6000  # of a parameter, in characters


def start(subject: Subject) -> "_Record":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        os.chdir(subject.folder)  # a path within the URI would need escapes, and MLflow makes folders here
        mlflow.set_tracking_uri("sqlite:///mlflow.db")
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        experiment = mlflow.set_experiment(experiment_id=experiment_id)
    else:
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
    client = mlflow.MlflowClient()
    there = client.search_runs([experiment.experiment_id], f"tags.`{ID_TAG}` = '{subject.id}'")
    if there:
        client.update_run(there[0].info.run_id, status="RUNNING")
        return _Record(client, there[0].info.run_id)
    made = client.create_run(experiment.experiment_id, tags={ID_TAG: subject.id}, run_name=subject.name)
    record = _Record(client, made.info.run_id)
    record.describe(subject.config)
    return record


class _Record:
    def __init__(self, client: Any, run_id: str):
        self._client, self._id = client, run_id

    def describe(self, config: Mapping[str, Any]) -> None:
        """Sends the recipe. MLflow refuses most signs in a key, and long values."""
        from mlflow.entities import Param

        parameters = [
            Param(re.sub(r"[^\w./ -]", "_", key, flags=re.ASCII), str(value)[:LONGEST_VALUE])
            for key, value in config.items()
        ]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(self._id, params=parameters[first : first + MOST_PARAMETERS])

    def send(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for step, values in points for name, value in values.items()]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + MOST_METRICS])

    def finish(self, summary: Mapping[str, Any], finished: bool) -> None:
        from mlflow.entities import Metric, RunTag

        now, step = round(time.time() * 1000), summary["steps_done"]
        numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        self._client.log_batch(
            self._id,
            metrics=[
                Metric(f"summary/{key}", value, now, step) for key, value in numbers.items() if math.isfinite(value)
            ],
            tags=[RunTag(f"{PROJECT}.{key}", str(value)) for key, value in summary.items() if key not in numbers],
        )
        stopped = "KILLED" if summary["status"] in ("interrupted", "cut off") else "FAILED"
        self._client.set_terminated(self._id, "FINISHED" if finished else stopped)
