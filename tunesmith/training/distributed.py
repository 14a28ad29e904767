"""Several processes as one: how they join, and values that they share. Values go through host memory and gloo, over
loopback on one machine and over the network between machines. With one process every function is a no-op."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from tunesmith import machine
from tunesmith.errors import UserError, first_line
from tunesmith.training import progress_marks

# Environment variables of a launcher: how its processes find each other, a file or tcp://HOST:PORT; and in a cluster
# the name of this machine and its IP address there.
STORE, MACHINE, ADDRESS = "TUNESMITH_STORE", "TUNESMITH_MACHINE", "TUNESMITH_ADDRESS"
LONGEST_WAIT = timedelta(hours=2)  # for others; the launcher ends a process that hangs long before

ALLOCATOR = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}  # settings of torch's, read when a GPU is first used


_nccl: dist.ProcessGroup | None = None
_waited_seconds = 0.0
_machines: list[str] = [""]  # the name of the machine of each process


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_one_machine() -> bool:
    return len(set(_machines)) == 1


def neighbours() -> int:
    """How many processes this machine has, this one included."""
    return _machines.count(_machines[rank()])


def is_first_here() -> bool:
    """Whether this process is the first one of its machine."""
    return _machines.index(_machines[rank()]) == rank()


def join(device_type: str) -> torch.device:
    """Joins the process group if the launcher made this process; returns its device."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device(device_type, local) if device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        if not ALLOCATOR & os.environ.keys():  # passes of ever other sizes would leave gaps that none fits
            os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
        if torch.cuda.device_count() <= local:
            raise UserError(
                f"this torch ({torch.__version__}) sees {torch.cuda.device_count()} GPUs; install its "
                "CUDA build, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
            )
        torch.cuda.set_device(device)
        _check_order(device)
    if STORE in os.environ and not dist.is_initialized():
        own, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface())
        with _together():
            store = _store(os.environ[STORE], processes)
            dist.init_process_group("gloo", store=store, rank=own, world_size=processes, timeout=LONGEST_WAIT)
        _machines[:] = gather(os.environ.get(MACHINE, ""))
    return device


def _interface() -> str:
    """The network interface that gloo listens on: loopback, or in a cluster that of this machine's address there."""
    address = os.environ.get(ADDRESS)
    if not address:
        return "lo" if sys.platform == "linux" else "lo0"
    if name := machine.interface_of(address):
        return name
    raise UserError(
        f"no network interface has the address {address} that Ray gives this machine; set GLOO_SOCKET_IFNAME to the "
        "name of one where you run `ray start`"
    )


def _store(place: str, processes: int) -> dist.Store:
    if not place.startswith("tcp://"):
        return dist.FileStore(place, processes)
    host, _, port = place.removeprefix("tcp://").rpartition(":")
    return dist.TCPStore(host, int(port), processes, is_master=False, wait_for_workers=False)


def _check_order(device: torch.device) -> None:
    """That CUDA's GPU of this number is the one that was planned with. Raises UserError."""
    _, planned = machine.find_gpus()
    if device.index >= len(planned) or planned[device.index].uuid.startswith("MIG-"):
        return  # no NVML; or a MIG device, the only one that CUDA gives
    expected, found = planned[device.index].uuid, f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    if found != expected:
        raise UserError(
            f"CUDA_DEVICE_ORDER: CUDA's GPU {device.index} is {found}, nvidia-smi's is {expected}; set "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID, or import tunesmith before CUDA starts"
        )


class OthersEnded(RuntimeError):
    """Another process ended while this one exchanged values with it. The cause is in the other one."""


@contextmanager
def _together() -> Iterator[None]:
    """Around an exchange, in which this process waits for the others. Raises OthersEnded."""
    global _waited_seconds
    began = time.monotonic()
    with progress_marks.waiting():
        try:
            yield
        except RuntimeError as error:
            raise OthersEnded(first_line(error)) from error
        finally:
            _waited_seconds += time.monotonic() - began


def own_seconds() -> float:
    """A clock that stands still while this process waits for the others."""
    return time.monotonic() - _waited_seconds


def add_up(values: list[float]) -> list[float]:
    """Sums over the processes, in float64 so that counts stay exact."""
    if world() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    with _together():
        dist.all_reduce(total)
    return total.tolist()


def add_up_named(values: dict[str, float]) -> dict[str, float]:
    """The sums over all processes, of which some may not have every name."""
    shares = gather(values)
    names = dict.fromkeys(name for share in shares for name in share)
    return {name: sum(share.get(name, 0.0) for share in shares) for name in names}


def gather(value) -> list:
    """One small value of each process, in rank order, on all of them."""
    if world() == 1:
        return [value]
    values = [None] * world()
    with _together():
        dist.all_gather_object(values, value)
    return values


def gather_here(value) -> list:
    """One small value of each process of this machine. The processes of all machines call it."""
    return [each for each, where in zip(gather(value), _machines) if where == _machines[rank()]]


class Turn:
    """A turn on its way to the next process."""

    def __init__(self, number: int):
        self._number = torch.tensor([number])
        self._sending = dist.isend(self._number, rank() + 1) if rank() + 1 < world() else None

    def wait(self) -> None:
        """Until the next process has taken it."""
        if self._sending:
            with _together():
                self._sending.wait()


def pass_turn(number: int) -> Turn:
    """Lets the next process take its turn at a piece of work of this number. The last process passes none."""
    return Turn(number)


def take_turn(number: int) -> None:
    """Waits for the process before this one to pass the turn of this number. The first process need not."""
    if rank() == 0:
        return
    passed = torch.empty(1, dtype=torch.int64)
    with _together():
        dist.recv(passed, rank() - 1)
    assert passed.item() == number, "the processes take the layers in different orders"


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        with _together():
            dist.barrier()


def exchange_parts(parts: torch.Tensor) -> torch.Tensor:
    """Sends each process the part of its rank, of as many equal parts; returns the parts for this one, in rank order.
    In host memory."""
    received = torch.empty_like(parts)
    with _together():
        dist.all_to_all_single(received.view(torch.uint8), parts.view(torch.uint8))
    return received


def collect_parts(own: torch.Tensor, parts: torch.Tensor) -> None:
    """Fills `parts` with the `own` of all processes, in rank order. In host memory."""
    with _together():
        dist.all_gather(list(parts.view(torch.uint8).chunk(world())), own.view(torch.uint8))


def sum_with_nccl(tensor: torch.Tensor) -> None:
    """Replaces a tensor on the GPU by its sum over all processes, from GPU to GPU."""
    global _nccl
    _nccl = _nccl or dist.new_group(backend="nccl")
    with _together():
        dist.all_reduce(tensor, group=_nccl)
