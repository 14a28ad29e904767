"""Host memory and time while a base in the shape of Llama 70B is loaded, adapted and moved to its home.

    python bench/loading.py [--layers 1 3] [--processes 1 2] [--quantize nf4]

No layer is kept, so all weights end in shared host memory. The files of the base are sparse: they hold zeros and take
no disk. Memory grows by the same bytes with each layer, so two depths give that of all 80 layers.
"""

import argparse
import json
import math
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig

from tunesmith.finetune import launch
from tunesmith.model.adapt import adapt
from tunesmith.model.load import empty, load
from tunesmith.model.memory import HostMemory, peak_host_memory
from tunesmith.recipe import Adapter, Model
from tunesmith.training import distributed
from tunesmith.training.home import Home, load_once
from tunesmith.training.layer_transforms import decoder_layers

LAYERS = 80
SHAPE = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_attention_heads=64,
    num_key_value_heads=8,
    dtype="bfloat16",
)
CPU = torch.device("cpu")


def save(folder: Path, layers: int) -> Path:
    """Writes a base of so many layers, all of whose weights are 0."""
    folder.mkdir()
    SHAPE.num_hidden_layers = layers
    SHAPE.save_pretrained(folder)
    header, end = {}, 0
    for name, tensor in empty(SHAPE).state_dict().items():
        begin, end = end, end + 2 * math.prod(tensor.shape)
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def process(base: Path, quantize: str, noted: Path) -> None:
    """Loads the base as one of several training processes."""
    distributed.join("cpu")
    torch.set_num_threads(1)

    def loaded():
        model = load(Model(path=str(base), quantize=quantize), base, torch.bfloat16, None, 0, on_host=True)
        return adapt(model, Adapter(), [], 0)

    if quantize != "none":
        import tunesmith.model.quantize  # noqa: F401  its libraries are not the model's memory
    distributed.wait()
    before, began = HostMemory.now(), time.monotonic()
    with peak_host_memory() as peak:
        model = load_once(loaded, trains_whole=False)
        home = Home(decoder_layers(model), [0] * distributed.world(), CPU)
        home.place(model)
    peaks = distributed.gather((peak.own - before.own, peak.shared))
    if distributed.rank() == 0:
        own, shared = zip(*peaks)
        noted.write_text(json.dumps([sum(own) + max(shared), home.nbytes, time.monotonic() - began]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=[1, 3], help="two depths")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quantize", choices=["none", "nf4"], default="nf4")
    options = parser.parse_args()
    print(f"{'processes':>9} {'layers':>6} {'peak':>10} {'at home':>10} {'time':>7}")
    with tempfile.TemporaryDirectory() as name:
        bases = {layers: save(Path(name) / str(layers), layers) for layers in options.layers}
        for processes in options.processes:
            found = {}
            for layers, base in bases.items():
                noted = Path(name) / "noted.json"
                launch.launch(partial(process, base, options.quantize, noted), processes)
                found[layers] = json.loads(noted.read_text())
                print(row(processes, layers, *found[layers]), flush=True)
            print(row(processes, LAYERS, *extended(found)), "by these two")


def extended(found: dict[int, list[float]]) -> list[float]:
    """The values at all layers, on the line through two depths."""
    (few, low), (many, high) = found.items()
    return [b + (b - a) / (many - few) * (LAYERS - many) for a, b in zip(low, high)]


def row(processes: int, layers: int, peak: float, at_home: float, seconds: float) -> str:
    return f"{processes:9} {layers:6} {peak / 1e9:7.2f} GB {at_home / 1e9:7.2f} GB {seconds:5.0f} s"


if __name__ == "__main__":
    main()
