"""Each command that computes with a model says so while it does: on which device, and with how much memory."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.conftest import sums, write_rows
from tunesmith.cli.chat_session import Models
from tunesmith.cli.data import select
from tunesmith.cli.serve import open_and_serve
from tunesmith.export.export import export
from tunesmith.finetune.evaluation import evaluate
from tunesmith.leases import CPU, Holder, holders
from tunesmith.run import Run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.fixture(autouse=True)
def own_leases(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


class Enough(Exception):
    """Ends what is under way."""


def watched(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Holder]:
    """The holders at the call of a function, which ends there."""
    seen: list[Holder] = []

    def look(*_, **__):
        seen.extend(holders())
        raise Enough

    monkeypatch.setattr(name, look)
    return seen


def check(holder: Holder, use: str, run: Run, least_bytes: int) -> None:
    expected = (CPU, use, False, os.getpid(), str(run.folder.absolute()))
    assert (holder.device, holder.use, holder.exclusive, holder.pid, holder.folder) == expected
    assert least_bytes <= holder.nbytes < 1.2 * least_bytes  # buffers that no file has
    assert not holders()


def weight_bytes(folder: Path) -> int:
    """The bytes of the tensors in a folder's safetensors, all of which are float32."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            total += sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118
    return total


def result_bytes(run: Run) -> int:
    return weight_bytes(run.base) + weight_bytes(run.result)


def test_chat(runs):
    run = Run(runs[0])
    models = Models(run)
    [holder] = holders()
    limit = models.engine("tuned").metrics()["kv_limit_bytes"]
    models.close()
    check(holder, "chat", run, int(result_bytes(run) + limit))


def test_serve(runs, monkeypatch):
    run, limits = Run(runs[0]), []

    def note(engine, *_):
        limits.append(engine.metrics()["kv_limit_bytes"])
        seen.extend(holders())

    seen: list[Holder] = []
    monkeypatch.setattr("tunesmith.serve.app.serve", note)
    open_and_serve([run.folder], "127.0.0.1", 0, None, (), (), None, 4, 4, "here")
    [holder] = seen
    check(holder, "serving", run, int(result_bytes(run) + limits[0]))


def test_eval(runs, tmp_path, monkeypatch):
    run, data = Run(runs[0]), write_rows(tmp_path / "rows.jsonl", sums(2))
    seen = watched(monkeypatch, "tunesmith.evaluate.heldout.row_losses")
    with pytest.raises(Enough):
        evaluate(run, select(str(data), None, "auto", [], None, None).sources[0])
    [holder] = seen
    check(holder, "evaluation", run, result_bytes(run))


def test_the_parity_gate_of_an_export(runs, tmp_path, monkeypatch):
    run = Run(runs[0])
    seen = watched(monkeypatch, "tunesmith.export.export.observe")
    with pytest.raises(Enough):
        export(run, "adapter", tmp_path / "adapter")
    [holder] = seen
    check(holder, "export", run, result_bytes(run))
