"""Loading for several processes: the first one loads, and host memory holds the model once."""

import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tests import tiny
from tunesmith.finetune import launch
from tunesmith.model.adapt import adapt
from tunesmith.model.load import load
from tunesmith.model.memory import SECONDS_BETWEEN_LOOKS, peak_host_memory, trim_heap
from tunesmith.recipe import Adapter, Model
from tunesmith.training import distributed
from tunesmith.training.home import Home, TrainedHome, load_once
from tunesmith.training.layer_transforms import decoder_layers

CPU, FLOAT32 = torch.device("cpu"), torch.float32
CASES = {
    "LoRA": ("none", Adapter(rank=4), False),
    "nf4": ("nf4", Adapter(rank=4), False),
    "new tokens": ("none", Adapter(rank=4), True),
    "all weights": ("none", Adapter(kind="full"), True),
}


def loaded(base: Path, quantize: str, adapter: Adapter, grows: bool):
    model = load(Model(path="m", quantize=quantize), base, FLOAT32, None, 0)
    torch.manual_seed(0)
    rows = model.get_input_embeddings().num_embeddings
    return adapt(model, adapter, [rows] if grows else [], rows + grows)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40)[None]).logits


def loaded_first(*how):
    assert distributed.rank() == 0, "another process loads"
    return loaded(*how)


def process(folder: Path, bases: list[Path]) -> None:
    """Loads each base, trained in each way. Notes the logits, and the bytes of the layers before they are placed."""
    distributed.join("cpu")
    kept = [1] * distributed.world()
    noted = {}
    for base in bases:
        for case, how in CASES.items():
            whole = case == "all weights"
            model = load_once(partial(loaded_first, base, *how), whole)
            layers = decoder_layers(model)
            frozen = [p for layer in layers for p in layer.parameters() if whole or not p.requires_grad]
            storages = [getattr(p, "packed", p).untyped_storage() for p in frozen]
            frozen_bytes = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
            home = TrainedHome(model, layers, kept, CPU, FLOAT32, FLOAT32) if whole else Home(layers, kept, CPU)
            home.place(model)
            noted[base.name, case] = logits(model), frozen_bytes
            distributed.wait()
    torch.save(noted, folder / f"{distributed.rank()}.pt")


@pytest.mark.slow
def test_the_first_process_loads_for_all(family, tmp_path):
    bases = {name: family(name) for name in tiny.FAMILIES}
    launch.launch(process, 2, tmp_path, [*bases.values()])
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len(first) == len(bases) * len(CASES)
    for name, base in bases.items():
        for case, how in CASES.items():
            expected = logits(loaded(base, *how))
            for found, _ in (first[base.name, case], second[base.name, case]):
                assert torch.equal(found, expected), (name, case)
            assert second[base.name, case][1] < 4096 < first[base.name, case][1]


def test_the_peak_of_host_memory_is_seen():
    trim_heap()  # else other tests' memory may be used again
    with peak_host_memory() as peak:
        before = peak.own + peak.shared
        filled = torch.ones(2**24)
        time.sleep(5 * SECONDS_BETWEEN_LOOKS)
        del filled
    assert 2**26 <= peak.own + peak.shared - before < 2**27
