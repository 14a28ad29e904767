"""The real packages, offline: what each wrote, read with its own reader. `pip install tensorboard mlflow` for these."""

from importlib.util import find_spec

import pytest

from tunesmith import train
from tunesmith.run import Run

pytestmark = pytest.mark.slow


@pytest.fixture
def tracked(recipe, monkeypatch):
    """Trains with a tracker; returns the run and {(step, name): value} of the events."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)

    def build(tracker: str) -> tuple[Run, dict[tuple[int, str], float]]:
        if not find_spec(tracker):
            pytest.skip(f"needs {tracker}: pip install {tracker}")
        steps = {"max_steps": 4, "eval_every": 2}
        run = train(recipe(name=f"a {tracker}?#%", data={"eval_share": 0.1}, train=steps, trackers=[tracker]))
        assert not [event for event in run.events("warning") if "trackers" in event["message"]]
        losses = {(e["step"], "train/loss"): e["loss"] for e in run.events("step")}
        return run, losses | {(e["step"], "eval/loss"): e["loss"] for e in run.events("eval")}

    return build


def test_tensorboard(tracked):
    run, losses = tracked("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "trackers/tensorboard"))
    events.Reload()
    sent = [(e.step, tag, e.value) for tag in ("train/loss", "eval/loss") for e in events.Scalars(tag)]
    assert {(step, tag): value for step, tag, value in sent} == pytest.approx(losses) and len(sent) == len(losses)
    [text] = events.Tensors("recipe")
    assert "| train.max_steps | 4 |" in text.tensor_proto.string_val[0].decode()


def test_mlflow(tracked, monkeypatch):
    run, losses = tracked("mlflow")
    from mlflow import MlflowClient

    monkeypatch.chdir(run.folder / "trackers/mlflow")
    client = MlflowClient("sqlite:///mlflow.db")
    [record] = client.search_runs([client.get_experiment_by_name("tunesmith").experiment_id])
    assert (record.info.run_name, record.info.status) == (run.name, "FINISHED")
    assert record.data.params["train.max_steps"] == "4"
    names = ("train/loss", "eval/loss")
    sent = [(m.step, name, m.value) for name in names for m in client.get_metric_history(record.info.run_id, name)]
    assert {(step, name): value for step, name, value in sent} == losses and len(sent) == len(losses)
