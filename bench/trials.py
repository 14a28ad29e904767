"""What the benchmarks share: a trial in a process of its own, this machine in words, and where results go."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import date
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tunesmith.errors import first_line
from tunesmith.machine import probe

HERE = Path(__file__).parent
PACKAGES = ("tunesmith", "trl", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers")


def trial(script: str, *arguments: str, python: Path = Path(sys.executable), watch_memory: bool = False) -> dict:
    """Runs a trial's script; its result and, if watched (which takes time), the peak memory of its process tree."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([python, HERE / script, *arguments], stdout=said, stderr=errors)
        peak = 0
        while watch_memory and process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(0.1)
        process.wait()
        said.seek(0), errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{script} {arguments}: {errors.read().decode()[-2000:]}")
        return json.loads(said.read().decode().splitlines()[-1]) | {"tree_bytes": peak}


def tree_bytes(process_id: int) -> int:
    """Unique memory of a process and its children; pages of mapped files that others share do not count."""
    import psutil

    def own_bytes(process: psutil.Process) -> int:
        try:
            return process.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return 0  # it ended while we looked

    root = psutil.Process(process_id)
    return sum(map(own_bytes, (root, *root.children(recursive=True))))


def matmul_rate(device: str, dtype: str) -> float:
    """Operations a second of large matmuls on this machine: the best of five."""
    import torch

    size, count = (2048, 1) if device == "cpu" else (8192, 20)  # on a GPU, so many that waiting for it is no time
    a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        for _ in range(count):
            c = a @ b
        c[0, 0].item()
        best = max(best, count * 2 * size**3 / (time.perf_counter() - began))
    return best


def matmul_rates(device: str) -> dict[str, float]:
    return {dtype: matmul_rate(device, dtype) for dtype in ("float32", "bfloat16")}


def heading(device: str):
    """The machine and its packages, in Markdown lines."""
    machine = probe()
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    yield f"# {date.today()}, {machine.processor}, {machine.cores} cores, {machine.memory_bytes / 1e9:.0f} GB"
    yield f"\nDevice {device}; GPUs: {', '.join(gpu.name for gpu in machine.gpus) or 'none'}; {machine.system}"
    yield f"\nPython {platform.python_version()}; " + ", ".join(f"{p} {_version(p)}" for p in PACKAGES)
    yield f"\nLoad average at the start: {load}."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def results_file(part: str) -> Path:
    """Named by day and GPU, or processor where there is none."""
    machine = probe()
    name = machine.gpus[0].name if machine.gpus else machine.processor
    plain = "".join(c if c.isalnum() else "-" for c in name).strip("-").lower()
    return HERE / "results" / f"{date.today()}-{plain}{part}.md"


def in_process(context, module: str, function: str, *arguments, limit_seconds: float) -> dict:
    """What `module.function(*arguments)` returns in a process of its own; else {problem: why there is nothing}.

    `context` is one of multiprocessing.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, module, function, arguments))
    process.start()
    sender.close()
    try:
        ended = receiver.poll(limit_seconds)
        answer = receiver.recv() if ended else {"problem": f"stopped after {limit_seconds:.0f} s"}
    except EOFError:
        process.join()
        answer = {"problem": f"its process ended with status {process.exitcode}"}
    process.join(10 if "problem" not in answer else 0)
    process.kill()  # one that goes on, or does not come to its end
    process.join()
    return answer


def _answer(sender, module: str, function: str, arguments: tuple) -> None:
    try:
        sender.send(getattr(import_module(module), function)(*arguments))
    except Exception as error:  # of any kind: it is the point's result
        traceback.print_exc()
        sender.send({"problem": first_line(error)})
