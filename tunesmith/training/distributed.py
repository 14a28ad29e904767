"""Several processes as one: start them, add up what each found. With one process every function is a no-op."""

import os
import signal
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import active_children

import torch
import torch.distributed as dist

from tunesmith import machine
from tunesmith.errors import UserError

BUCKET_BYTES = 32 * 2**20
ALLOCATOR = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}  # settings of torch's, read when a card is first used
SECOND_SIGNAL_AFTER_SECONDS = 1.0  # sooner it is the same one: Ctrl-C comes from the terminal and from the launcher


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def launch(entry, processes: int, *arguments) -> None:
    """Runs `entry(*arguments)` in so many processes through torch's elastic launcher; if one dies, all stop.

    A signal is passed on, and the processes may take what time they need; a second one kills them. Raises
    SignalException if they ended by that, ChildFailedError with the first failure if by themselves (both are of
    torch.distributed.elastic).
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
        signals_to_handle="",
    )
    with _waiting_on_signals():
        elastic_launch(config, entry)(*arguments)


@contextmanager
def _waiting_on_signals():
    """Instead of torch's handlers, which kill after 30 s, when a large model may not have been saved."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    others, came = active_children(), Came()

    def stop(number, frame) -> None:
        processes = [process for process in active_children() if process not in others]
        first, again = not came, came.again()
        if first:
            print(
                "stopping: what was learned is saved first, however long it takes; a second signal stops at once",
                file=sys.stderr,
                flush=True,
            )
            for process in processes:
                process.terminate()
        elif again:
            for process in processes:
                process.kill()
        if again or not processes:
            raise SignalException(f"signal {number}", signal.Signals(number))

    try:
        with on_signals(stop):
            yield
    except ChildFailedError:
        if came:
            raise SignalException("stopped", signal.SIGTERM) from None
        raise


class Came(list):
    """When signals to stop came."""

    def again(self) -> bool:
        """Notes one more; whether it is a second one, and not the same by another way."""
        self.append(time.monotonic())
        return self[-1] - self[0] > SECOND_SIGNAL_AFTER_SECONDS


@contextmanager
def on_signals(handler):
    """While this holds, what asks a run to stop goes to `handler`. A hangup does not where it is ignored (nohup)."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    try:
        previous = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # a notebook's thread: signals belong to the main thread
        previous = {}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def join(device_type: str) -> torch.device:
    """Joins the process group if the launcher made this process; returns its device."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device(device_type, local) if device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        if not ALLOCATOR & os.environ.keys():  # passes of ever other sizes would leave gaps that none fits
            os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
        if torch.cuda.device_count() <= local:
            raise UserError(
                f"this torch ({torch.__version__}) sees {torch.cuda.device_count()} cards; install its "
                "CUDA build, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
            )
        torch.cuda.set_device(device)
        _check_order(device)
    if "TORCHELASTIC_RUN_ID" in os.environ and not dist.is_initialized():
        # A process that dies ends the others through the launcher, so waiting long for a slow one does no harm.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    return device


def _check_order(device: torch.device) -> None:
    """That CUDA's GPU of this number is the one that was planned with. Raises UserError."""
    _, planned = machine.gpus()
    if device.index >= len(planned) or planned[device.index].uuid.startswith("MIG-"):
        return  # no NVML; or a MIG device, the only one that CUDA gives
    expected, found = planned[device.index].uuid, f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    if found != expected:
        raise UserError(
            f"CUDA_DEVICE_ORDER: CUDA's GPU {device.index} is {found}, nvidia-smi's is {expected}; set "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID, or import tunesmith before CUDA starts"
        )


def add_up(values: list[float], device: torch.device) -> list[float]:
    """Sums over the processes, in float64 so that counts stay exact."""
    if world() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def add_up_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sums gradients over the processes in flat buckets; a process without a micro-batch contributes zeros."""
    if world() == 1:
        return
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for bucket in _buckets([p.grad for p in parameters]):
        if len(bucket) == 1 and bucket[0].is_contiguous():  # maybe a large one, of which a copy may not fit
            dist.all_reduce(bucket[0])
            continue
        flat = torch.cat([g.flatten() for g in bucket])
        dist.all_reduce(flat)
        for g, part in zip(bucket, flat.split([g.numel() for g in bucket])):
            g.copy_(part.view_as(g))


def gather(value) -> list:
    """One small value of each process, in rank order, on all of them."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        dist.barrier()


def _buckets(gradients: list[torch.Tensor]):
    bucket, size = [], 0
    for g in gradients:
        if bucket and (size + g.nbytes > BUCKET_BYTES or g.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(g)
        size += g.nbytes
    if bucket:
        yield bucket
