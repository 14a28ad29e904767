"""True shapes of published models on a GPU, with random weights: python bench/shapes.py [--minutes M] [--out FILE].

Rates, share of the measured matmul rate and peak memory of full, LoRA and QLoRA training, the longest context of
QLoRA in the memory of smaller GPUs, and TRL and Unsloth where they are installed. Each point is a process of its own.
The table is written anew after each point, so one that is cut short says what was not run.

    python bench/shapes.py --device cpu --tiny

runs the same code on models of two small layers.
"""

import argparse
import os
import time
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

from operations import CONVENTION
from points import Point, points
from trials import heading, in_process, results_file

from tunesmith.machine import probe

POINT_SECONDS, PEER_SECONDS, LONG_SECONDS = 60, 120, 100  # at most
LEAST_SECONDS = 15  # left, or a point is not begun
PUBLISHED_CONTEXT = 78475  # Unsloth's, of an 8B QLoRA of rank 32 in 24 GB


class Starter:
    """Starts points: forked from a process that has imported what they need, or anew where that does not work."""

    def __init__(self, device: str):
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a process that touched the GPU cannot be forked
        self._ours, self._anew = get_context("forkserver"), get_context("spawn")
        # Nothing that imports PEFT, and with it bitsandbytes, which touches the GPU.
        self._ours.set_forkserver_preload(
            [f"transformers.models.{name}.modeling_{name}" for name in ("llama", "qwen3", "qwen3_moe")]
        )
        self.rate = in_process(self._ours, "trials", "matmul_rates", device, limit_seconds=POINT_SECONDS)
        if "problem" in self.rate:
            print(f"{self.rate['problem']}: points are started anew, which takes longer", flush=True)
            self._ours = self._anew
            self.rate = in_process(self._ours, "trials", "matmul_rates", device, limit_seconds=POINT_SECONDS)

    def run(self, point: Point, seconds: float) -> dict:
        if point.tool != "tunesmith":
            return in_process(self._anew, "shapes_peers", "main", point, limit_seconds=min(seconds, PEER_SECONDS))
        if point.kind == "context":
            limit = min(seconds, LONG_SECONDS)
            return in_process(self._ours, "shapes_trial", "context", point, limit - 5, limit_seconds=limit)
        limit = min(seconds, LONG_SECONDS if point.variant == "compiled" else POINT_SECONDS)
        return in_process(self._ours, "shapes_trial", "steps", point, limit_seconds=limit)


def missing(point: Point) -> str | None:
    """What this machine lacks for a point."""
    needed = {"trl": ["trl"], "unsloth": ["unsloth", "trl"]}.get(point.tool, [])
    needed += ["bitsandbytes"] if point.kind in ("qlora", "context") else []
    absent = [package for package in needed if not find_spec(package)]
    return f"{' and '.join(absent)} not installed" if absent else None


def document(device: str, rate: dict, results: dict[Point, dict]):
    """The whole of what is known so far, in Markdown lines."""
    yield from heading(device)
    if "problem" in rate:
        yield f"\nNo matmul rate: {rate['problem']}."
    else:
        yield f"\nbfloat16 matmul rate: {rate['bfloat16'] / 1e12:.3g} TFLOP/s, measured beside."
    yield "\nRandom weights, random tokens, all supervised; median of the steps after warm-up (least to most)."
    yield f"\nShare of the matmul rate (6N + attention): {CONVENTION}.\n"
    yield "| model | trained | tokens of a row | tool | tokens/s | share | peak allocated | peak reserved | how |"
    yield "|" + "---|" * 9
    for point, result in results.items():
        if point.kind != "context":
            yield _row(point, result, rate)
    yield "\n## Longest row of QLoRA (nf4, rank 32), one a step\n"
    yield (
        "Activations recomputed and kept in host memory, MLPs tiled, loss in chunks. Tokens are those of the "
        "longest row of which a whole step ran; memory is what torch may hold, without what CUDA takes itself.\n"
    )
    yield "| model | memory | tokens | tokens/s of that step | peak allocated | peak reserved | more |"
    yield "|" + "---|" * 7
    for point, result in results.items():
        if point.kind == "context":
            yield _context_row(point, result)
    yield "\n## Aims, set for one H200\n"
    yield from aims(results, rate)


def _row(point: Point, result: dict, rate: dict) -> str:
    start = f"| {point.shape} | {point.kind} | {point.length} | {point.tool} | "
    if "problem" in result:
        return f"{start}| | | | {result['problem']} |"
    low, high = result["spread"]
    how = "; ".join([f"{result['how']}, {result['steps']} steps", *result.get("said", ())])
    return (
        f"{start}{result['tokens_per_second']:.0f} ({low:.0f} to {high:.0f}) | {_share(result, rate)} | "
        f"{_memory(result)} | {how} |"
    )


def _context_row(point: Point, result: dict) -> str:
    start = f"| {point.shape} | {point.cap_bytes / 1e9:.4g} GB | "
    if "problem" in result:
        return f"{start}| | | | {result['problem']} |"
    return f"{start}{result['tokens']:,} | {result['tokens_per_second']:.0f} | {_memory(result)} | {result['why']} |"


def _share(result: dict, rate: dict) -> str:
    if "bfloat16" not in rate:
        return ""
    return f"{result['tokens_per_second'] * result['operations_per_token'] / rate['bfloat16']:.0%}"


def _memory(result: dict) -> str:
    reserved = result["reserved_bytes"]  # 0 without a GPU
    return f"{result['allocated_bytes'] / 1e9:.2f} GB | " + (f"{reserved / 1e9:.2f} GB" if reserved else "")


def aims(results: dict[Point, dict], rate: dict):
    """What was aimed at and what was found."""
    done = {point: result for point, result in results.items() if "problem" not in result}
    full = [_share(r, rate) for p, r in done.items() if p.kind == "full" and "8B" in p.shape]
    yield f"- full training of 8B at 60 % of the matmul rate or more: {', '.join(full) or 'not measured'}"
    for peer, aim in (("unsloth", " (1.2 aimed at)"), ("trl", "")):
        theirs = {p: r["tokens_per_second"] for p, r in done.items() if p.tool == peer}
        ours = {
            r["tokens_per_second"]
            for q, r in done.items()
            if q.tool == "tunesmith" and any(replace(q, tool=p.tool, variant=p.variant) == p for p in theirs)
        }
        ratio = f"{max(ours) / max(theirs.values()):.2f}" if ours else "not measured"
        yield f"- LoRA beside {peer}{aim}: {ratio}"
    longest = [f"{r['tokens']:,}" for p, r in done.items() if p.kind == "context" and p.cap_bytes == 24 * 10**9]
    yield (
        f"- 8B QLoRA within 24 GB, more than {PUBLISHED_CONTEXT:,} tokens (Unsloth's published figure): "
        f"{', '.join(longest) or 'not measured'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two small layers in place of each shape")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing is begun or goes on")
    parser.add_argument("--only", help="points whose words hold this, e.g. 'Llama-3.1-8B lora'")
    parser.add_argument("--out", type=Path, help="file to write; by default in bench/results")
    asked = parser.parse_args()
    ends = time.monotonic() + asked.minutes * 60
    if (asked.device == "cuda") != bool(probe().gpus):
        parser.error(f"--device {asked.device}: Tunesmith trains on the GPU where there is one, and only there")
    starter = Starter(asked.device)
    file = asked.out or results_file("-shapes-tiny" if asked.tiny else "-shapes")
    wanted = [p for p in points(asked.device, asked.tiny) if (asked.only or "") in _words(p)]
    results: dict[Point, dict] = {point: {"problem": "not run: the time was up"} for point in wanted}
    for point in wanted:
        left = ends - time.monotonic()
        reason = missing(point)
        if reason:
            results[point] = {"problem": f"not run: {reason}"}
        elif left > LEAST_SECONDS:
            began = time.monotonic()
            results[point] = starter.run(point, left)
            found = results[point].get("problem") or results[point].get("tokens") or results[point]["tokens_per_second"]
            print(f"{_words(point)}: {found} ({time.monotonic() - began:.0f} s)", flush=True)
        file.write_text("\n".join(document(asked.device, starter.rate, results)) + "\n", "utf-8")
    print(file.read_text("utf-8"))


def _words(point: Point) -> str:
    size = f"{point.cap_bytes / 1e9:.4g}GB" if point.kind == "context" else point.length
    return " ".join(map(str, (point.shape, point.kind, size, point.tool, point.variant))).strip()


if __name__ == "__main__":
    main()
