"""Problems of a machine, and what to do about each. Imports no torch."""

import platform
import re
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tunesmith.finetune.gpu_check import GpuCheck
from tunesmith.machine import Gpu, Machine
from tunesmith.planner.rates import LANE_BYTES_PER_SECOND, link_bytes_per_second
from tunesmith.units import NO_VALUE, size

PACKAGES = ("torch", "transformers", "peft")
EXTRAS = {
    "bnb": (("bitsandbytes",), "4-bit and 8-bit base models, 8-bit optimizers"),
    "gguf": (("gguf", "llama-cpp-python"), "GGUF and Ollama exports, GGUF models in chat and serve"),
    "fp8": (("compressed-tensors",), "FP8 and int4 exports for vLLM"),
    "ray": (("ray",), "training on several machines"),
    "serve": (("fastapi", "uvicorn", "httpx", "llguidance"), "the server, the chat page and the studio"),
    "tensorboard": (("tensorboard",), "a run's numbers in TensorBoard"),
    "mlflow": (("mlflow",), "a run's numbers in MLflow"),
    "trackio": (("trackio",), "a run's numbers in Trackio"),
    "wandb": (("wandb",), "a run's numbers in Weights & Biases"),
}
"""The optional parts of pyproject.toml: the packages of each, and what it is for."""

NVIDIA, DISPLAY = "0x10de", "0x03"  # a PCI vendor, and the beginning of the PCI class of GPUs
PCI_DEVICES = Path("/sys/bus/pci/devices")
SLOW_LINK_SHARE = 0.6  # of the expected rate of a link; less has a cause
HOT_CELSIUS = 3  # below the temperature at which a GPU slows down
LITTLE_DISK_BYTES = 20 * 10**9
LITTLE_MEMORY_SHARE = 0.2  # of the host memory


@dataclass(frozen=True)
class Problem:
    """A problem of this machine. `remedy` says what to do. A `severe` one keeps a part from being used."""

    about: str
    problem: str
    remedy: str
    severe: bool = False


def diagnose(machine: Machine, checks: Sequence[GpuCheck]) -> list[Problem]:
    """Returns the problems of a machine and of its GPUs, which were checked."""
    return [
        *_driver(machine),
        *(problem for check in checks for problem in _gpu(check)),
        *_pinning(checks),
        *_host(machine),
    ]


def _driver(machine: Machine) -> Iterator[Problem]:
    if not machine.gpus and machine.driver is None and _has_nvidia_gpu():
        yield Problem(
            "the NVIDIA GPU",
            "it is in this machine, and its driver does not answer",
            "install the NVIDIA driver and start the machine again; in a container, start it with --gpus all",
            severe=True,
        )


def _has_nvidia_gpu() -> bool:
    """Whether the PCI bus has a GPU of NVIDIA (Linux)."""
    try:
        return any(
            (device / "vendor").read_text().strip() == NVIDIA and (device / "class").read_text().startswith(DISPLAY)
            for device in PCI_DEVICES.iterdir()
        )
    except OSError:
        return False


def _gpu(check: GpuCheck) -> Iterator[Problem]:
    gpu = check.gpu
    if check.problem:
        problem, _, remedy = check.problem.partition("; ")
        yield Problem(check.name, problem, remedy or "check its riser, slot and power", severe=True)
    if check.note:
        yield Problem(check.name, check.note, "end other programs that use it, and check again")
    if _is_slowed(gpu):
        yield Problem(
            check.name,
            f"its link runs as PCIe {link_name(gpu.pcie_generation, gpu.pcie_lanes)}, and it is made for "
            f"{link_name(gpu.most_pcie_generation, gpu.most_pcie_lanes)}, which slows layers in host memory",
            "use a faster slot, or check its riser and the slot's speed in the BIOS",
        )
    elif (gpu.pcie_lanes or 0) and (measured := check.to_gpu_bytes_per_second):
        expected = link_bytes_per_second(gpu)
        if measured < SLOW_LINK_SHARE * expected:
            yield Problem(
                check.name,
                f"copies reach {measured / 1e9:.1f} GB/s, and a link of PCIe "
                f"{link_name(gpu.pcie_generation, gpu.pcie_lanes)} about {expected / 1e9:.0f}",
                "check its riser and slot; an error counter that grows (nvidia-smi -q: Replays) tells of a bad contact",
            )
    if gpu.celsius and gpu.slowdown_celsius and gpu.celsius > gpu.slowdown_celsius - HOT_CELSIUS:
        yield Problem(
            check.name,
            f"it has {gpu.celsius} °C and slows down at {gpu.slowdown_celsius}",
            f"clear its fans and give it air, or lower its power limit: sudo nvidia-smi -i {gpu.index} -pl WATTS",
        )


def _is_slowed(gpu: Gpu) -> bool:
    """Whether the slot gives a GPU less than the link that it is made for."""
    if not (gpu.pcie_generation and gpu.pcie_lanes and gpu.most_pcie_generation and gpu.most_pcie_lanes):
        return False
    newest = max(LANE_BYTES_PER_SECOND)

    def nominal(generation: int, lanes: int) -> float:
        return LANE_BYTES_PER_SECOND[min(generation, newest)] * lanes

    most = nominal(gpu.most_pcie_generation, gpu.most_pcie_lanes)
    return nominal(gpu.pcie_generation, gpu.pcie_lanes) < 0.9 * most


def link_name(generation: int | None, lanes: int | None) -> str:
    return f"{generation}.0 x{lanes}" if generation and lanes else NO_VALUE


def _pinning(checks: Sequence[GpuCheck]) -> Iterator[Problem]:
    if any(check.pinned is False for check in checks):
        limit = locked_memory_bytes()
        cause = "WSL2 pins little memory" if is_wsl() else "the system refused it"
        remedy = "train on Linux itself for full speed" if is_wsl() else "set `ulimit -l unlimited`"
        more = f" (ulimit -l: {size(limit)})" if limit is not None and not is_wsl() else ""
        yield Problem(
            "host memory",
            f"it cannot be pinned, so that copies to GPUs take about twice as long: {cause}{more}",
            remedy,
        )


def locked_memory_bytes() -> int | None:
    """Returns the limit of locked memory (`ulimit -l`), None if there is none."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def is_wsl() -> bool:
    return "microsoft" in platform.release().lower()


def _host(machine: Machine) -> Iterator[Problem]:
    if machine.free_memory_bytes < LITTLE_MEMORY_SHARE * machine.memory_bytes:
        yield Problem(
            "host memory",
            f"{size(machine.free_memory_bytes)} of {size(machine.memory_bytes)} are free",
            "end other programs, or raise the container's limit" if machine.container_bytes else "end other programs",
        )
    if machine.free_disk_bytes is not None and machine.free_disk_bytes < LITTLE_DISK_BYTES:
        yield Problem(
            "the disk here",
            f"{size(machine.free_disk_bytes)} are free; the checkpoints of a model of 8B take up to 96 GB",
            "make room, or choose another disk with --output",
        )
    for name in PACKAGES:
        if installed(name) is None:
            yield Problem(name, "it is not installed", f"pip install {name}", severe=True)


def installed(name: str) -> str | None:
    """Returns the version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Returns the versions of Python, of torch with its CUDA, and of other packages that training uses."""
    return {
        "python": platform.python_version(),
        **{name: installed(name) for name in (*PACKAGES, "bitsandbytes")},
        "cuda": torch_cuda(),
    }


def torch_cuda() -> str | None:
    """Returns the version of CUDA that torch is built for, None for a build without it. Importing torch would take
    seconds."""
    spec = find_spec("torch")
    if not spec or not spec.origin:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def extras() -> dict[str, bool]:
    """Returns whether each optional part is installed."""
    return {extra: all(map(installed, packages)) for extra, (packages, _) in EXTRAS.items()}
