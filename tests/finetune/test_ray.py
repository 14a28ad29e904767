"""Training on the machines of a Ray cluster. Two Ray nodes on this machine stand for two machines."""

from pathlib import Path

import pytest

from tunesmith.finetune import job
from tunesmith.run import Run

ROOT = Path(__file__).parents[2]
MEMORY_BYTES = 80 * 2**20  # of Ray's object store, which nothing here uses
TRAIN = {"max_steps": 12, "eval_every": 4, "save_every": 1, "processes": 2}


@pytest.fixture
def asked(recipe):
    def build(name: str = "run", **settings):
        return recipe(name=name, data={"eval_share": 0.1}, adapter={"dropout": 0}, train=TRAIN | settings)

    return build


@pytest.fixture
def cluster(cache, monkeypatch):
    """A Ray cluster of two nodes with a core each."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'tunesmith[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    settings = {"num_cpus": 1, "object_store_memory": MEMORY_BYTES}
    started = Cluster(initialize_head=True, head_node_args=settings | {"include_dashboard": False})
    try:
        started.add_node(**settings)
        yield started
    finally:
        started.shutdown()


def losses(run: Run) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in run.events("step", "eval")]


@pytest.mark.slow
def test_two_machines_learn_what_two_processes_of_one_learn(asked, cluster):
    expected = job.train(asked("alone"))
    run = job.train(asked(), cluster=cluster.address)
    assert losses(run) == losses(expected)
