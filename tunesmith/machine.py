"""The hardware of this machine: GPUs, cores, memory, disk. Probed without torch, which takes seconds to import."""

import fcntl
import math
import os
import platform
import shutil
import socket
import struct
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError

# Where Linux tells the memory limit of a container and its use: version 2 of control groups, and version 1.
CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
SIOCGIFADDR = 0x8915  # Linux: the request for the IPv4 address of an interface
NO_GPU = ("-1", "none", "void", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that hide every GPU


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: a GPU, or a MIG device of a GPU. `index` is the GPU's number in nvidia-smi. None is unknown."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    uuid: str = ""
    pcie_generation: int | None = None
    """The generation that its link reaches in its slot. An idle link reports a lower one."""
    pcie_lanes: int | None = None
    """The lanes of its link in its slot."""
    most_pcie_generation: int | None = None
    """The generation that the GPU itself is made for."""
    most_pcie_lanes: int | None = None
    power_watts: float | None = None
    """The power limit that is set."""
    default_power_watts: float | None = None
    """The power limit that the GPU starts with."""
    celsius: int | None = None
    """Its temperature now."""
    slowdown_celsius: int | None = None
    """The temperature at which it reduces its clock."""

    @property
    def label(self) -> str:
        """Names it for people."""
        return f"GPU {self.index} ({self.name})"

    @property
    def fast_bf16(self) -> bool:
        """Whether the hardware computes bfloat16."""
        return self.capability >= (8, 0)

    @property
    def takes_fp16(self) -> bool:
        """Whether float16 is at least as good as float32. From 7.0 on (V100, T4, RTX 20xx) tensor cores compute it many
        times faster, and 6.0 (P100) at twice the rate. 6.1 (P40, GTX 10xx) has native arithmetic in float16 at 1/64 of
        the rate, but torch's matrix products do not use it: they read float16 and compute in float32. So they are as
        fast as in float32, and take half the memory."""
        return self.capability >= (6, 0)


def best_precision(gpus: Sequence[Gpu]) -> str:
    """The precision to compute in that suits every one of these GPUs."""
    if all(gpu.fast_bf16 for gpu in gpus):
        return "bfloat16"
    return "float16" if all(gpu.takes_fp16 for gpu in gpus) else "float32"


@dataclass(frozen=True)
class Machine:
    system: str
    processor: str
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int | None
    """None: not known, as of a machine that is only described."""
    cpu_fast_bf16: bool
    compiles_cpp: bool = False
    driver: str | None = None
    gpus: list[Gpu] = field(default_factory=list)
    nodes: int = 1
    """Machines of a cluster. `cores` and `gpus` are then those of all of them."""
    container_bytes: int | None = None
    """The limit of this process's container, which `memory_bytes` is within. None: there is no limit."""
    rates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Speeds that `tunesmith doctor --measure` measured, by UUID of a GPU and "cpu". `planner/rates.py` reads them."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def probe(folder: Path = Path(".")) -> Machine:
    """Reads the state of this machine. `free_disk_bytes` is that of the disk that holds `folder`."""
    driver, gpus = find_gpus()
    total, free = memory()
    limit, _ = _container_memory()
    return Machine(
        system=platform.platform(),
        processor=_cpuinfo("model name") or platform.processor(),
        cores=cores(),
        memory_bytes=total,
        free_memory_bytes=free,
        free_disk_bytes=shutil.disk_usage(_existing(folder)).free,
        cpu_fast_bf16=bool({"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split())),
        compiles_cpp=_compiles_cpp(),
        driver=driver,
        gpus=gpus,
        container_bytes=limit if limit <= total else None,
    )


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def interface_of(address: str) -> str | None:
    """Returns the name of the network interface with this IPv4 address (Linux), None if there is none."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, suppress(OSError):
            answer = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _compiles_cpp() -> bool:
    """Whether torch.compile can build CPU kernels: that takes a C++ compiler and Python's headers."""
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
    """Returns (total, available) bytes of memory, within the limit of the container. Without /proc, available equals
    total."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    total, available = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    limit, used = _container_memory()
    return min(total, limit), min(available, max(0, limit - used))


def _container_memory() -> tuple[Any, int]:
    """The limit of this process's container and the bytes that it uses without its file cache; no limit is infinite."""
    for folder, limit, used in CGROUPS:
        try:
            text = (folder / limit).read_text().strip()
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cache = int(stat["active_file"]) + int(stat["inactive_file"])
            return math.inf if text == "max" else int(text), int((folder / used).read_text()) - cache
        except (OSError, ValueError, KeyError):
            continue
    return math.inf, 0


def find_gpus() -> tuple[str | None, list[Gpu]]:
    """Returns the driver's version and the GPUs that CUDA shows this process, in CUDA's order. Raises UserError if
    CUDA_VISIBLE_DEVICES names a GPU that this machine does not have."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, []  # no NVIDIA driver: a machine without a GPU
    try:
        return pynvml.nvmlSystemGetDriverVersion(), [_gpu(pynvml, handle) for handle in _visible(pynvml)]
    finally:
        pynvml.nvmlShutdown()


def _gpu(pynvml: Any, handle: Any) -> Gpu:
    try:
        info = pynvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = info.total, info.free
    except pynvml.NVMLError_NotSupported:  # unified memory: the GPU uses the machine's memory (GB10)
        total, free = memory()
    gpu = _whole(pynvml, handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        pynvml.nvmlDeviceGetIndex(gpu),
        pynvml.nvmlDeviceGetName(handle),
        total,
        free,
        (major, minor),
        pynvml.nvmlDeviceGetUUID(handle),
        **_surroundings(pynvml, gpu),
    )


def _whole(pynvml: Any, handle: Any) -> Any:
    """Returns the GPU of a MIG device, and a GPU itself."""
    is_mig = pynvml.nvmlDeviceIsMigDeviceHandle(handle)
    return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if is_mig else handle


def _ask(pynvml: Any, question: str, *arguments: Any) -> Any:
    """Returns the driver's answer; None to a question that it does not support."""
    try:
        return getattr(pynvml, question)(*arguments)
    except pynvml.NVMLError:
        return None


def _surroundings(pynvml: Any, gpu: Any) -> dict[str, Any]:
    """Returns the fields of Gpu about its slot, power and temperature; None for what the driver does not report."""

    def watts(question: str) -> float | None:
        milliwatts = _ask(pynvml, question, gpu)
        return None if milliwatts is None else milliwatts / 1000

    slowdown = pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    return {
        "pcie_generation": _ask(pynvml, "nvmlDeviceGetMaxPcieLinkGeneration", gpu),
        # The width in use: the largest one is the GPU's own, also in a slot that has fewer lanes.
        "pcie_lanes": _ask(pynvml, "nvmlDeviceGetCurrPcieLinkWidth", gpu),
        "most_pcie_generation": _ask(pynvml, "nvmlDeviceGetGpuMaxPcieLinkGeneration", gpu),
        "most_pcie_lanes": _ask(pynvml, "nvmlDeviceGetMaxPcieLinkWidth", gpu),
        "power_watts": watts("nvmlDeviceGetPowerManagementLimit"),
        "default_power_watts": watts("nvmlDeviceGetPowerManagementDefaultLimit"),
        "celsius": _ask(pynvml, "nvmlDeviceGetTemperature", gpu, pynvml.NVML_TEMPERATURE_GPU),
        "slowdown_celsius": _ask(pynvml, "nvmlDeviceGetTemperatureThreshold", gpu, slowdown),
    }


def state_of(uuid: str) -> dict[str, int]:
    """Returns the fields of Gpu that change while a GPU works: its link, whose generation is lower when idle, and its
    temperature. Those that the driver does not report are left out."""
    import pynvml

    try:
        pynvml.nvmlInit()
        gpu = _whole(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return {}
    state = {
        "pcie_generation": _ask(pynvml, "nvmlDeviceGetCurrPcieLinkGeneration", gpu),
        "pcie_lanes": _ask(pynvml, "nvmlDeviceGetCurrPcieLinkWidth", gpu),
        "celsius": _ask(pynvml, "nvmlDeviceGetTemperature", gpu, pynvml.NVML_TEMPERATURE_GPU),
    }
    return {name: value for name, value in state.items() if value is not None}


def gpu_joules(uuid: str) -> float | None:
    """Returns the energy that a GPU took since its driver was loaded; None if it does not count it. May wait for it
    without end."""
    return _thousandth(uuid, "nvmlDeviceGetTotalEnergyConsumption")


def gpu_watts(uuid: str) -> float | None:
    """Returns the power that a GPU takes now; None if it does not report it. May wait for it without end."""
    return _thousandth(uuid, "nvmlDeviceGetPowerUsage")


def _thousandth(uuid: str, question: str) -> float | None:
    """Returns a thousandth of the driver's answer; None if it has none, as about a MIG device."""
    import pynvml

    try:
        pynvml.nvmlInit()
        thousandths = getattr(pynvml, question)(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return None
    return float(thousandths) / 1000


def _visible(pynvml: Any) -> list[Any]:
    """Returns the handles of the GPUs that CUDA shows, in the order of the PCI bus or of CUDA_VISIBLE_DEVICES.

    A GPU in MIG mode is replaced by its first MIG device. CUDA gives a process at most one MIG device, and then no
    whole GPU.
    """
    handles = [handle for number in range(pynvml.nvmlDeviceGetCount()) for handle in _handle(pynvml, number)]
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = handles if names is None else _selected(pynvml, handles, names)
    mig_devices = [device for device in (_mig_device(pynvml, handle) for handle in chosen) if device is not None]
    return mig_devices[:1] or chosen


def _handle(pynvml: Any, number: int) -> list[Any]:
    """Returns the handle of a GPU; none of one that has fallen off the bus."""
    try:
        return [pynvml.nvmlDeviceGetHandleByIndex(number)]
    except pynvml.NVMLError_GpuIsLost:
        return []


def answers(uuid: str) -> bool:
    """Returns whether a GPU still answers the driver. May wait for it without end."""
    import pynvml

    try:
        pynvml.nvmlInit()
        pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError_NotSupported:  # unified memory
        return True
    except pynvml.NVMLError:
        return False
    return True


def _selected(pynvml: Any, handles: list[Any], names: str) -> list[Any]:
    """Returns the GPUs and MIG devices that CUDA_VISIBLE_DEVICES names, by number or by the start of a UUID."""
    known = {pynvml.nvmlDeviceGetUUID(handle): handle for handle in handles}
    chosen: dict[str, Any] = {}
    for name in filter(None, map(str.strip, names.split(","))):
        if name in NO_GPU:
            break
        if name.isdigit():
            matches = list(known.items())[int(name) :][:1]
        elif name.startswith("MIG-"):
            matches = _by_uuid(pynvml, name)
        else:
            matches = [(uuid, handle) for uuid, handle in known.items() if uuid.startswith(name)]
        if len(matches) != 1:
            available = ", ".join(f"{number} ({uuid})" for number, uuid in enumerate(known))
            raise UserError(
                f"CUDA_VISIBLE_DEVICES: {name} names {'more than one' if matches else 'none'} of this "
                f"machine's GPUs; they are {available}"
            )
        [(uuid, handle)] = matches
        if uuid in chosen:
            raise UserError(f"CUDA_VISIBLE_DEVICES: {name} is named twice, and CUDA then gives no GPU at all")
        chosen[uuid] = handle
    return list(chosen.values())


def _by_uuid(pynvml: Any, name: str) -> list[tuple[str, Any]]:
    try:
        return [(name, pynvml.nvmlDeviceGetHandleByUUID(name))]
    except pynvml.NVMLError:
        return []


def _mig_device(pynvml: Any, handle: Any) -> Any:
    """Returns the handle itself if it is a MIG device, the first MIG device of a GPU in MIG mode, else None."""
    if pynvml.nvmlDeviceIsMigDeviceHandle(handle):
        return handle
    try:
        split = pynvml.nvmlDeviceGetMigMode(handle)[0]
        return pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0) if split else None
    except pynvml.NVMLError:  # the GPU has no MIG mode, or has no MIG device yet
        return None
