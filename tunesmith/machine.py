"""What this machine has: cards, cores, memory, disk. Probed without torch, so that asking is quick."""

import os
import platform
import shutil
import sysconfig
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Card:
    """One CUDA device. `fast_bf16`: it computes bfloat16 in hardware (compute capability 8.0 and later)."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]

    @property
    def fast_bf16(self) -> bool:
        return self.capability >= (8, 0)


@dataclass(frozen=True)
class Machine:
    system: str
    processor: str
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int
    cpu_fast_bf16: bool
    compiles_cpp: bool = False
    driver: str | None = None
    cards: list[Card] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)


def probe(folder: Path = Path(".")) -> Machine:
    """Looks at this machine; disk is that of `folder`."""
    driver, cards = _cards()
    total, free = memory()
    return Machine(
        system=platform.platform(),
        processor=_cpuinfo("model name") or platform.processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=total,
        free_memory_bytes=free,
        free_disk_bytes=shutil.disk_usage(_existing(folder)).free,
        cpu_fast_bf16=bool({"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split())),
        compiles_cpp=_compiles_cpp(),
        driver=driver,
        cards=cards,
    )


def _compiles_cpp() -> bool:
    """Whether there is what torch.compile needs to build its kernels: a compiler and Python's headers."""
    compiler = os.environ.get("CXX") or ("clang++" if platform.system() == "Darwin" else "g++")
    return bool(shutil.which(compiler)) and (Path(sysconfig.get_path("include")) / "Python.h").exists()


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(p for p in (folder, *folder.parents) if p.exists())


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def memory() -> tuple[int, int]:
    """(total, available) bytes, from /proc where there is one."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024


def _cards() -> tuple[str | None, list[Card]]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, []  # no NVIDIA driver: a machine without a card
    try:
        cards = []
        for index, handle in _visible(pynvml):
            try:
                found = pynvml.nvmlDeviceGetMemoryInfo(handle)
                total, free = found.total, found.free
            except pynvml.NVMLError_NotSupported:  # a card that shares the memory of the machine (GB10)
                total, free = memory()
            cards.append(Card(index, pynvml.nvmlDeviceGetName(handle), total, free,
                              tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))))
        return pynvml.nvmlSystemGetDriverVersion(), cards
    finally:
        pynvml.nvmlShutdown()


def _visible(pynvml) -> list[tuple[int, object]]:
    """(index, handle) of the cards, or parts of cards (MIG), that a program may use."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if parts := [name.strip() for name in asked.split(",") if name.strip().startswith("MIG-")]:
        return [(index, pynvml.nvmlDeviceGetHandleByUUID(name)) for index, name in enumerate(parts)]
    handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    return [(index, handle) for index, handle in enumerate(handles)
            if _is_visible(index, pynvml.nvmlDeviceGetUUID(handle))]


def _is_visible(index: int, uuid: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES, which names cards by number or the start of their UUID, lets a program use it."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return True
    names = [name.strip() for name in asked.split(",") if name.strip()]
    return str(index) in names or any(uuid.startswith(name) for name in names if not name.isdigit())
