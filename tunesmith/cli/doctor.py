"""`tunesmith doctor`: shows this machine, checks each of its GPUs, and measures what `tunesmith plan` needs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith.cli.parameters import Json, Switch, print_json
from tunesmith.cli.terminal import LiveLine
from tunesmith.finetune.diagnosis import EXTRAS, Problem, diagnose, extras, link_name, locked_memory_bytes, versions
from tunesmith.finetune.gpu_check import GpuCheck, check_gpus
from tunesmith.leases import CPU, Holder, holders
from tunesmith.machine import Gpu, Machine, best_precision, probe
from tunesmith.planner.decide import threads_of
from tunesmith.planner.rates import DISK, keep_rates, measured_rates, rates_file
from tunesmith.units import NO_VALUE, number, size

# {column: the field of a check, and what one unit of the column is}
COLUMNS = {
    "to GPU": ("to_gpu_bytes_per_second", 1e9),
    "to host": ("to_host_bytes_per_second", 1e9),
    "both": ("both_bytes_per_second", 1e9),
    "together": ("together_bytes_per_second", 1e9),
    "TFLOP/s": ("flops_per_second", 1e12),
}
LEGEND = (
    "Copies in GB/s: to the GPU, to the host, both at once (added up), and to the GPU\n"
    "while all GPUs are copied to together."
)
PRECISIONS = ("bfloat16", "float16", "float32")
MEASURED = {
    "memory": "memory_bytes_per_second",
    "to GPU": "to_device_bytes_per_second",
    "to host": "to_host_bytes_per_second",
}  # columns of the table of what was measured, in GB/s
MEASURED_LEGEND = (
    "Products of a decoder layer in TFLOP/s by precision. Memory (reads and writes\n"
    "added up) and links, while all GPUs copy, in GB/s."
)
CPU_SECONDS = 1.0  # for each measurement on the CPU
WITHOUT_GPU = """\
No NVIDIA GPU is visible. Without one you can
- train small models on the CPU: tunesmith demo
- plan for another machine: tunesmith plan recipe.yaml --machine 4090,host=64GB
- chat with and serve GGUF models: tunesmith serve model.gguf"""


def doctor(*, measure: Annotated[bool, Switch] = False, as_json: Json = False) -> None:
    """Show this machine, its problems and what to do about each, and check its GPUs, in a few seconds.

    Args:
        measure: Measure GPUs, links, CPU, memory and disk as well, in less than a minute. `tunesmith plan` then
            predicts with these speeds.
        as_json: Print the findings as JSON.
    """
    machine = probe()
    live = LiveLine(Console(stderr=True))

    def show(doing: str) -> None:
        live.show(lambda width: f"{doing} …"[:width], force=True)

    if machine.gpus:
        show("checking the GPUs")
    held = holders()
    checks = check_free(machine.gpus, held, measure, show)
    disk = measure_rest(machine, checks, show) if measure else {}
    live.clear()
    machine = replace(machine, gpus=[one.gpu for one in checks], rates=measured_rates(machine))
    problems = diagnose(machine, checks)
    if as_json:
        return print_json(
            {
                "machine": machine.as_dict(),
                "versions": versions(),
                "extras": extras(),
                "locked_memory_bytes": locked_memory_bytes(),
                "gpu_check": [one.as_dict() for one in checks],
                "holders": [asdict(one) for one in held],
                "problems": [asdict(problem) for problem in problems],
                **({"disk": disk} if measure else {}),
            }
        )
    console = Console(highlight=False)
    console.print(report(machine, checks, problems, held))
    if measure:
        console.print(measured_report(machine, disk))


def check_free(gpus: Sequence[Gpu], held: Sequence[Holder], more: bool, show: Callable[[str], None]) -> list[GpuCheck]:
    """Checks the GPUs that no run holds: on one that trains, a check is slow and slows the run down."""
    busy = {one.device: f"it was not checked, because {one} uses it" for one in held if one.exclusive}
    free = [gpu for gpu in gpus if gpu.uuid not in busy]
    checked = dict(zip(free, check_gpus(free, more=more, show=show)))
    return [checked.get(gpu) or GpuCheck(gpu, best_precision([gpu]), note=busy[gpu.uuid]) for gpu in gpus]


def measure_rest(machine: Machine, checks: Sequence[GpuCheck], show: Callable[[str], None]) -> dict[str, float | None]:
    """Measures the CPU and the disk, and keeps all rates. Returns those of the disk."""
    show("starting torch")
    from tunesmith.finetune.speed import cpu_speeds, disk_rates

    show("a decoder layer and memory on the CPU")
    precisions = ["bfloat16", "float32"] if machine.cpu_fast_bf16 else ["float32"]
    of_cpu = cpu_speeds(threads_of(machine.cores, 1), precisions, CPU_SECONDS)
    show("the disk here")
    of_disk = disk_rates(Path("."))
    of_gpus = {one.gpu.uuid: one.rates for one in checks if one.gpu.uuid and one.speeds}
    known = {name: rate for name, rate in of_disk.items() if rate}
    keep_rates(machine, of_gpus | {CPU: of_cpu, DISK: known})
    return of_disk


def report(
    machine: Machine, checks: Sequence[GpuCheck], problems: Sequence[Problem], held: Sequence[Holder] = ()
) -> RenderableType:
    """Returns the machine, tables of its GPUs and optional parts, who holds its devices, and its problems, in 80
    columns."""
    parts: list[RenderableType] = [_machine_table(machine, checks)]
    if checks:
        parts += [Text(), _slot_table(machine.gpus), Text(), _gpu_table(checks), Text()]
        parts += [Text(LEGEND, style="dim"), *_precisions(checks)]
    parts += [Text(), _extras_table()]
    if held:
        names = {gpu.uuid: gpu.label for gpu in machine.gpus} | {CPU: "CPU"}
        parts += [Text(), *(Text(f"{names.get(one.device, one.device)}: held by {one}") for one in held)]
    parts += [Text(), *(map(_problem, problems) if problems else [Text("No problems found.", style="dim")])]
    if not machine.gpus:
        parts += [Text(), Text(WITHOUT_GPU)]
    return Group(*parts)


def measured_report(machine: Machine, disk: dict[str, float | None]) -> RenderableType:
    """Returns a table of what was measured, in 80 columns."""
    table = _table("Measured", *PRECISIONS, *MEASURED)
    devices = {gpu.uuid: f"GPU {gpu.index}" for gpu in machine.gpus} | {CPU: "CPU"}
    for device, name in devices.items():
        entry = machine.rates.get(device, {})
        flops = entry.get("flops_per_second", {})
        digits = 1 if device != CPU else 2
        table.add_row(
            name,
            *(_rate(flops.get(precision), 1e12, digits) for precision in PRECISIONS),
            *(_rate(entry.get(key), 1e9) for key in MEASURED.values()),
        )
    launch = machine.rates.get(CPU, {}).get("launch_seconds")
    written, read = (_rate(disk[key], 1e6, 0) for key in ("write_bytes_per_second", "read_bytes_per_second"))
    lines = (
        f"Launching a decoder layer takes {number(launch and launch * 1e3, 1)} ms.\n"
        f"The disk here writes {written} MB/s and reads {read} MB/s.\n"
        f"Kept in {rates_file()}."
    )
    return Group(Text(), table, Text(), Text(MEASURED_LEGEND, style="dim"), Text(lines))


def _machine_table(machine: Machine, checks: Sequence[GpuCheck]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", style="dim", no_wrap=True)
    for name, value in _machine_rows(machine, checks):
        table.add_row(name, Text(value))
    return table


def _machine_rows(machine: Machine, checks: Sequence[GpuCheck]) -> Iterator[tuple[str, str]]:
    installed = versions()
    bf16 = ", computes bfloat16 fast" if machine.cpu_fast_bf16 else ""
    limit = ", the limit of this container" if machine.container_bytes == machine.memory_bytes else ""
    yield "System", machine.system
    yield "CPU", f"{machine.processor}, {machine.cores} core{'s' * (machine.cores > 1)}{bf16}"
    yield "Memory", f"{size(machine.free_memory_bytes)} free of {size(machine.memory_bytes)}{limit}"
    if checks:
        can_be = {True: "can be pinned", False: "cannot be pinned", None: "not known whether it can be pinned"}
        locked = locked_memory_bytes()
        pinned = next((one.pinned for one in checks if one.pinned is not None), None)
        yield "", f"{can_be[pinned]}; ulimit -l: {'unlimited' if locked is None else size(locked)}"
    if machine.free_disk_bytes is not None:
        yield "Disk", f"{size(machine.free_disk_bytes)} free here"
    yield "Driver", machine.driver or "no NVIDIA driver"
    cuda = f", for CUDA {installed['cuda']}" if installed["cuda"] else ", without CUDA"
    yield "torch", installed["torch"] + cuda if installed["torch"] else NO_VALUE
    others = ("transformers", "peft", "bitsandbytes", "python")
    yield "Versions", ", ".join(f"{name} {installed[name] or NO_VALUE}" for name in others)


def _slot_table(gpus: Sequence[Gpu]) -> Table:
    """Each GPU's link, power limit and temperature."""
    table = _table("GPU", "PCIe link", "made for", "power limit", "usual", "temperature")
    for gpu in gpus:
        table.add_row(
            Text(f"{gpu.index} {gpu.name}"),
            link_name(gpu.pcie_generation, gpu.pcie_lanes),
            link_name(gpu.most_pcie_generation, gpu.most_pcie_lanes),
            _with_unit(gpu.power_watts, "W"),
            _with_unit(gpu.default_power_watts, "W"),
            _with_unit(gpu.celsius, "°C"),
        )
    return table


def _gpu_table(checks: Sequence[GpuCheck]) -> Table:
    table = _table("GPU", "Memory", *COLUMNS)
    for one in checks:
        rates = [_rate(getattr(one, field), unit) for field, unit in COLUMNS.values()]
        style = "red" if one.problem else "yellow" if one.note else ""
        table.add_row(Text(f"{one.gpu.index} {one.gpu.name}"), size(one.gpu.total_bytes), *rates, style=style)
    return table


def _extras_table() -> Table:
    """The optional parts, what each is for, and how to install those that are missing."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("Extra", "", "for"):
        table.add_column(name, overflow="fold")
    for extra, is_installed in extras().items():
        how = "installed" if is_installed else f"pip install 'tunesmith[{extra}]'"
        table.add_row(extra, Text(how, style="" if is_installed else "dim"), Text(EXTRAS[extra][1]))
    return table


def _table(first: str, *others: str) -> Table:
    """A table whose first column has names and whose others have numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _problem(one: Problem) -> Text:
    return Text(f"{one.about}: {one.problem}; {one.remedy}", style="bold red" if one.severe else "yellow")


def _with_unit(value: float | None, unit: str) -> str:
    return NO_VALUE if value is None else f"{value:.0f} {unit}"


def _rate(value: float | None, unit: float, digits: int = 1) -> str:
    return NO_VALUE if value is None else number(value / unit, digits)


def _precisions(checks: Sequence[GpuCheck]) -> list[Text]:
    """Returns a line about the precision of the products, by GPU if they are not all the same."""
    names: dict[str, list[str]] = {one.compute: [] for one in checks}
    for one in checks:
        names[one.compute].append(str(one.gpu.index))
    parts = [compute + (f" (GPU {', '.join(those)})" if len(names) > 1 else "") for compute, those in names.items()]
    return [Text(f"Products in {', '.join(parts)}.", style="dim")]
