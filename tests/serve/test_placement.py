"""GPUs for answers beside other work, on simulated GPUs: a choice from their memory and holders."""

import os
from pathlib import Path

import pytest

from tests.leasing import holding
from tunesmith.errors import UserError
from tunesmith.leases import Holder, holders
from tunesmith.machine import Gpu
from tunesmith.model.spread import device_bytes
from tunesmith.run import Run
from tunesmith.serve import placement
from tunesmith.serve.open_models import open_models
from tunesmith.serve.placement import choose, placed, room_on

GB = 10**9


def gpu(index: int, free: float, total: float = 24) -> Gpu:
    return Gpu(index, "RTX 3090", int(total * GB), int(free * GB), (8, 6), f"GPU-{index}")


def holder(index: int, use: str, nbytes: float | None = None, exclusive: bool = False) -> Holder:
    asked = None if nbytes is None else int(nbytes * GB)
    return Holder(f"GPU-{index}", use, asked, exclusive, 12, 1, 0.0, "/runs/alpha", None)


def training(index: int) -> Holder:
    return holder(index, "training", exclusive=True)


def chosen(gpus, others, weights: float) -> list[int]:
    return [gpu.index for gpu in choose(gpus, others, int(weights * GB)).gpus]


def test_without_others_all_gpus_are_used_the_freest_first():
    found = choose([gpu(0, 20), gpu(1, 23)], [], 10 * GB)
    assert [gpu.index for gpu in found.gpus] == [1, 0] and found.kv_bytes is None


def test_a_gpu_in_training_is_left_alone_whatever_it_has_free():
    assert chosen([gpu(0, 24), gpu(1, 12)], [training(0)], 5) == [1]
    with pytest.raises(UserError):
        choose([gpu(0, 24)], [training(0)], 1)


def test_also_one_whose_training_shares_it_but_has_not_said_how_much_it_needs():
    assert chosen([gpu(0, 24), gpu(1, 12)], [holder(0, "training")], 5) == [1]


def test_a_gpu_is_shared_where_what_others_asked_for_leaves_room():
    chat = holder(0, "chat", 9)
    loading, loaded = gpu(0, 24), gpu(0, 15)  # before and after the other process has taken its memory
    for state in (loading, loaded):
        assert room_on(state, [chat]) == 15 * GB
        found = choose([state, gpu(1, 24)], [chat, training(1)], 10 * GB)
        assert [gpu.index for gpu in found.gpus] == [0] and found.kv_bytes == 5 * GB
    with pytest.raises(UserError):
        choose([gpu(0, 24), gpu(1, 24)], [chat, training(1)], 13 * GB)  # 16.25 with keys and values


def test_programs_that_hold_nothing_count_by_what_is_free():
    assert room_on(gpu(0, 4), [holder(0, "chat", 9)]) == 4 * GB


def test_one_gpu_is_preferred_to_several_and_a_free_one_to_a_shared_one():
    gpus = [gpu(0, 24), gpu(1, 10), gpu(2, 10)]
    shared = [holder(0, "chat", 4)]
    assert chosen(gpus, shared, 7) == [1, 2]  # fits on one that no process holds
    assert chosen(gpus, shared, 14) == [0]  # fits only beside the other
    assert chosen(gpus, [training(0)], 14) == [1, 2]  # in parts


def test_the_refusal_has_numbers_and_a_way_out():
    with pytest.raises(UserError) as refused:
        choose([gpu(0, 2), gpu(1, 24)], [holder(0, "chat", 20), training(1)], 8 * GB)
    assert str(refused.value) == (
        "the models need 10.0 GB of GPU memory: GPU 0 (RTX 3090) has 2.0 GB of 24.0 GB left beside alpha (chat, "
        "process 12, 20.0 GB); GPU 1 (RTX 3090) is held by alpha (training, process 12); wait for the others' end, "
        "serve smaller models, or compute on the CPU with --cpu"
    )


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is restored
    monkeypatch.setattr(placement, "find_gpus", lambda: ("600", [gpu(0, 24), gpu(1, 20)]))


def test_a_process_sees_only_what_it_may_use_and_holds_it_while_it_loads(own_cache, runs):
    with holding(["GPU-0"]), placed([Path(runs[0])], "serving", on_cpu=False):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1"
        [mine] = holders(["GPU-1"])
        assert (mine.use, mine.exclusive, mine.pid) == ("serving", False, os.getpid()) and mine.nbytes > 0
    assert holders() == []
    with holding(["GPU-0", "GPU-1"]), pytest.raises(UserError, match="--cpu"), placed([Path(runs[0])], "chat", False):
        pass


def test_on_the_cpu_no_gpu_is_seen(own_cache, runs):
    os.environ["CUDA_VISIBLE_DEVICES"] = "GPU-0,GPU-1"
    with holding(["GPU-0", "GPU-1"]), placed([Path(runs[0])], "chat", on_cpu=True) as found:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and found.gpus == []


def test_the_weights_of_runs_are_counted_as_they_are_in_memory(runs, mistral):
    opened = open_models([*runs, mistral])
    copies = {id(served.weights): served.weights for served in opened.values()}
    expected = sum(sum(device_bytes(weights.inner).values()) for weights in copies.values())
    counted = placement._weight_bytes([*map(Path, runs), mistral])
    assert Run(runs[0]).base == Run(runs[1]).base
    assert expected * 0.9 < counted < expected * 1.1
