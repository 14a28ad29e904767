"""`tunesmith doctor`: shows this machine and checks each of its GPUs."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith.cli.parameters import Json, print_json
from tunesmith.cli.terminal import LiveLine
from tunesmith.finetune.gpu_check import GpuCheck, check_gpus
from tunesmith.machine import Machine, probe
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


def doctor(*, as_json: Json = False) -> None:
    """Show this machine, and check each of its GPUs: its link, its bytes and its products, in a few seconds.

    Args:
        as_json: Print the findings as JSON.
    """
    machine = probe()
    live = LiveLine(Console(stderr=True))
    if machine.gpus:
        live.show(lambda width: "checking the GPUs …"[:width], force=True)
    found = check_gpus(machine.gpus)
    live.clear()
    if as_json:
        return print_json(
            {"machine": machine.as_dict(), "torch": torch_version(), "gpu_check": [one.as_dict() for one in found]}
        )
    Console(highlight=False).print(report(machine, found))


def report(machine: Machine, found: Sequence[GpuCheck]) -> RenderableType:
    """Returns the machine, a table of its GPUs and their problems, in 80 columns."""
    parts: list[RenderableType] = [_machine_table(machine)]
    if found:
        parts += [Text(), _gpu_table(found), Text(), Text(LEGEND, style="dim"), *_precisions(found)]
    parts += [Text(f"{one.name}: {one.problem}", style="bold red") for one in found if one.problem]
    parts += [Text(f"{one.name}: {one.note}", style="yellow") for one in found if one.note]
    return Group(*parts)


def torch_version() -> str | None:
    """Returns the version of the installed torch, without importing it, which takes seconds."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return None


def _machine_table(machine: Machine) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", style="dim", no_wrap=True)
    rows = {
        "System": machine.system,
        "CPU": f"{machine.processor}, {machine.cores} core{'s' * (machine.cores > 1)}",
        "Memory": f"{size(machine.free_memory_bytes)} free of {size(machine.memory_bytes)}",
        "Disk": f"{size(machine.free_disk_bytes)} free here",
        "torch": torch_version() or NO_VALUE,
        "Driver": machine.driver or "no NVIDIA driver",
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _gpu_table(found: Sequence[GpuCheck]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("GPU", overflow="fold")
    for name in ("Memory", *COLUMNS):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        rates = [_rate(getattr(one, field), unit) for field, unit in COLUMNS.values()]
        style = "red" if one.problem else "yellow" if one.note else ""
        table.add_row(Text(f"{one.gpu.index} {one.gpu.name}"), size(one.gpu.total_bytes), *rates, style=style)
    return table


def _rate(value: float | None, unit: float) -> str:
    return NO_VALUE if value is None else number(value / unit, 1)


def _precisions(found: Sequence[GpuCheck]) -> list[Text]:
    """Returns a line about the precision of the products, by GPU if they are not all the same."""
    names: dict[str, list[str]] = {one.compute: [] for one in found}
    for one in found:
        names[one.compute].append(str(one.gpu.index))
    parts = [compute + (f" (GPU {', '.join(those)})" if len(names) > 1 else "") for compute, those in names.items()]
    return [Text(f"Products in {', '.join(parts)}.", style="dim")]
