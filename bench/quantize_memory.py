"""Memory while a base is loaded, in full and quantised: python bench/quantize_memory.py [none|nf4|int8].

Writes a model of 0.4 GB in bfloat16 to a temporary folder and samples this process's own memory; the mapped file is
not counted, as the system may drop it at any time. Each kind is measured in a process of its own.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.model.load import load
from tunesmith.recipe import Model


def own_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def measure(folder: Path, kind: str) -> None:
    import tunesmith.model.quantize  # noqa: F401  its libraries are not the model's memory

    before, samples, done = own_bytes(), [], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            samples.append(own_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    began = time.monotonic()
    load(Model(path=str(folder), quantize=kind), folder, torch.bfloat16, None, 0)
    seconds = time.monotonic() - began
    done.set()
    thread.join()
    print(f"{kind:5} peak {(max(samples) - before) / 2**20:.0f} MiB, {seconds:.1f} s")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(
            vocab_size=1000,
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=12,
            num_attention_heads=16,
            num_key_value_heads=16,
        )
        LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
        for kind in sys.argv[1:] or ["nf4", "int8"]:
            subprocess.run([sys.executable, __file__, "--in", folder, kind], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in"]:
        measure(Path(sys.argv[2]), sys.argv[3])
    else:
        main()
