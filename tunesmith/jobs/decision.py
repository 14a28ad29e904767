"""Which jobs start now, on which devices, and why the others wait. It changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.jobs.process import Outcome
from tunesmith.jobs.state import AT_WORK, ENDED, Status
from tunesmith.jobs.store import Job
from tunesmith.leases import CPU, Holder
from tunesmith.units import duration, moment, size

SECONDS_BETWEEN_TRIES = 60.0  # of a job that too little memory was free for: what is free changes all the time


@dataclass(frozen=True)
class Device:
    """A GPU, or the CPU of a machine without one. One job at a time uses it."""

    key: str
    """A GPU's UUID, or leases.CPU."""
    name: str
    """For people, such as "GPU 1 (RTX 3090)"."""
    free_bytes: int = 0
    """The free memory of a GPU."""


@dataclass(frozen=True)
class Queue:
    """The queue and the machine at one moment: all that a decision depends on."""

    jobs: Sequence[Job]
    """In the order in which they start."""
    statuses: Mapping[int, Status]
    devices: Sequence[Device]
    holders: Sequence[Holder]
    now: float
    """Unix seconds."""
    paused: str = ""
    """Why no job starts; empty if jobs may."""
    refused: Mapping[int, Outcome] = field(default_factory=dict)
    """How jobs ended that wait again, because too little was free when they were last started."""
    host_free_bytes: int = 0
    """The free memory of the host."""


@dataclass(frozen=True)
class Decision:
    """The decision on a job that waits."""

    devices: list[Device] = field(default_factory=list)
    """Where it starts; none if it waits."""
    why: str = ""
    """Why it waits, in a sentence."""
    displaces: list[int] = field(default_factory=list)
    """Jobs of lower priority that save a checkpoint and stop for it. They continue later."""
    reserved: list[Device] = field(default_factory=list)
    """Devices that later jobs do not get."""


def decide(queue: Queue) -> dict[int, Decision]:
    """The decision on each job that waits or is held."""
    found: dict[int, Decision] = {}
    claimed: dict[str, Job] = {}  # by jobs that go before
    for job in queue.jobs:
        if queue.statuses[job.id].state not in ("waiting", "held"):
            continue
        if why := _not_yet(queue, job):
            found[job.id] = Decision(why=why)
            continue
        found[job.id] = one = _on_devices(queue, job, claimed)
        if queue.paused:
            found[job.id] = Decision(why=f"the queue is paused: {queue.paused}")
        claimed |= {device.key: job for device in one.reserved}
    return found


def _not_yet(queue: Queue, job: Job) -> str:
    """The reason why a job may not start, whatever is free; empty if it may."""
    if job.held:
        return f"it is held; `tunesmith queue release {job.id}` releases it"
    if job.not_before and job.not_before > queue.now:
        return f"it starts at {moment(job.not_before)}, in {duration(job.not_before - queue.now)}"
    before = next((other for other in queue.jobs if other.id == job.after), None)
    if not before:
        return ""
    state = queue.statuses[before.id].state
    if state not in ENDED:
        return f"it starts after job {before.id}, which is {state}"
    if job.after_success and state != "finished":
        return f"it starts after job {before.id} has finished, and that is {state}"
    return ""


def _count(queue: Queue, job: Job) -> int:
    """How many devices a job takes."""
    return min(job.gpus or len(queue.devices), len(queue.devices))


def _on_devices(queue: Queue, job: Job, claimed: Mapping[str, Job]) -> Decision:
    count = _count(queue, job)
    # On a CPU training does not hold the device for itself, and a job waits for it all the same.
    busy = {holder.device: holder for holder in queue.holders if holder.exclusive or holder.use == "training"}
    free = [device for device in queue.devices if device.key not in busy and device.key not in claimed]
    if len(free) >= count:
        return _in_memory(queue, job, free, count)
    reasons = [
        f"{device.name} is held by {_use(queue, busy[device.key])}"
        if device.key in busy
        else f"{device.name} is for job {claimed[device.key].id}, which is before it"
        for device in queue.devices
        if device not in free
    ]
    is_cpu = [device.key for device in queue.devices] == [CPU]
    needs = "it needs the CPU" if is_cpu else f"it needs {count} GPU{'s' * (count > 1)}, of which {len(free)} are free"
    return Decision(
        why=f"{needs}: {'; '.join(reasons)}",
        displaces=_displaced(queue, job, count - len(free)),
        reserved=[device for device in queue.devices if device.key not in claimed][:count],
    )


def _in_memory(queue: Queue, job: Job, free: list[Device], count: int) -> Decision:
    """The decision on a job for which these devices are free: those with enough memory. While it waits for memory,
    which a server may hold for days, later jobs use them."""
    refused = queue.refused.get(job.id)
    if not refused:
        return Decision(free[:count], reserved=free[:count])
    by_gpu = {key: nbytes for key, nbytes in refused.needed.items() if key != CPU}
    least = max(by_gpu.values(), default=0)  # on another GPU than those where it was refused
    short = {device: text for device in free if (text := _missing(queue, device, by_gpu.get(device.key, least)))}
    host = _missing(queue, Device(CPU, "the host"), refused.needed.get(CPU, 0))
    with_room = [device for device in free if device not in short]
    if len(with_room) < min(count, len(by_gpu)) or host:
        return Decision(why="; ".join(filter(None, [*short.values(), host])))
    again = refused.ended + SECONDS_BETWEEN_TRIES
    if queue.now < again:
        return Decision(why=f"it was refused: {refused.said}; it is tried again in {duration(again - queue.now)}")
    chosen = [*with_room, *short][:count]  # it may be given more GPUs than it was planned for
    return Decision(chosen, reserved=chosen)


def _missing(queue: Queue, device: Device, needed: int) -> str:
    """Why a device has too little memory for a job; empty if it has enough."""
    free = queue.host_free_bytes if device.key == CPU else device.free_bytes
    if free >= needed:
        return ""
    used = [_use(queue, holder) for holder in queue.holders if holder.device == device.key]
    beside = f"; it is used by {', '.join(used)}" if used else ""
    return f"it needs {size(needed)} of memory, and {device.name} has {size(free)} free{beside}"


def _use(queue: Queue, holder: Holder) -> str:
    """Who uses a device, and since when."""
    who = f"job {holder.job}" if holder.job else holder.folder or f"process {holder.pid}"
    bytes_ = "" if holder.nbytes is None else f"{size(holder.nbytes)}, "
    return f"{who} ({holder.use}, {bytes_}for {duration(max(0.0, queue.now - holder.since))})"


def _displaced(queue: Queue, job: Job, missing: int) -> list[int]:
    """Running jobs that a job of high priority stops, the last ones first, so that it gets as many devices as it
    misses; none if that is not enough."""
    if job.priority != "high":
        return []
    chosen: list[int] = []
    for other in reversed(queue.jobs):
        if other.priority == "high" or other.kind != "train" or queue.statuses[other.id].state not in AT_WORK:
            continue  # only a training can stop and continue
        held = sum(holder.job == other.id and holder.exclusive for holder in queue.holders)
        if held and missing > 0:
            chosen.append(other.id)
            missing -= held
    return chosen if missing <= 0 else []
