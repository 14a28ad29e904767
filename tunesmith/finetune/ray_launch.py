"""Starts, watches and ends training processes on the machines of a Ray cluster, as `launch` does on one machine."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tunesmith.finetune import launch
from tunesmith.finetune.layout import PROBE_SECONDS
from tunesmith.finetune.ray_agent import News
from tunesmith.finetune.ray_cluster import Seat
from tunesmith.finetune.watchdog import Watchdog
from tunesmith.training.distributed import ADDRESS, MACHINE, STORE
from tunesmith.training.progress_marks import Mark

SECONDS_BETWEEN_LOOKS = 0.3
LOST_SECONDS = 45.0  # without an answer from an agent; less than makes a hang
FACT_SECONDS = 5.0  # for the state of a process


def left(seats: Sequence[Seat], failure: launch.Failure) -> list[Seat]:
    """The seats whose machine and GPU answer, without one whose GPU hangs. The others' agents keep their GPUs, so that
    Ray gives none of them to a new process."""
    import ray

    answers = [seat.agent.is_usable.remote() for seat in seats]
    until = time.monotonic() + PROBE_SECONDS + FACT_SECONDS
    usable = []
    for place, (seat, answer) in enumerate(zip(seats, answers)):
        try:
            is_usable = ray.get(answer, timeout=max(0.1, until - time.monotonic()))
        except ray.exceptions.RayError:
            continue
        if is_usable and not (failure.gpu_suspected and place == failure.process):
            usable.append(seat)
    return usable


def launch_on(seats: Sequence[Seat], entry: Callable, *arguments: Any) -> None:
    """As `launch.launch`, with a training process on each seat. They meet at an address of this machine."""
    with _meeting_point(seats[0].node.address) as store, launch.stop_signals() as signals:
        group: list[RemoteProcess] = []
        try:
            for rank, seat in enumerate(seats):
                environment = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": len(seats), STORE: store}
                group.append(RemoteProcess(seat, entry, arguments, environment))
            gpus = [seat.gpu for seat in seats if seat.gpu]
            watchdog = Watchdog([one.mark for one in group], OtherMachines(group), gpus, [one.host for one in group])
            launch.watch(group, watchdog, signals, _pause)
        finally:
            launch.kill(group)


@contextmanager
def _meeting_point(address: str) -> Iterator[str]:
    """A store by which processes find each other, on this address alone."""
    import torch.distributed as dist

    listener = socket.create_server((address, 0), backlog=socket.SOMAXCONN)
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )  # the socket is the store's from now on
    yield f"tcp://{address}:{port}"
    del store


class RemoteProcess(launch.TrainingProcess):
    """A training process on a machine of the cluster, as its agent reports it."""

    exitcode = None
    said = None

    def __init__(self, seat: Seat, entry: Callable, arguments: tuple, environment: dict):
        self.rank, self.mark, self.host = environment["RANK"], Mark(), seat.node.address
        self.agent = seat.agent
        settings = environment | {MACHINE: seat.node.id, ADDRESS: seat.node.address}
        if threads := os.environ.get("OMP_NUM_THREADS"):
            settings["OMP_NUM_THREADS"] = threads
        self._answered, self._killed = time.monotonic(), 0.0
        self._started: Any = self.agent.start.remote(entry, arguments, settings)
        self._asked: Any = None

    def ask(self) -> Any:
        """The request for news that is under way."""
        if self._asked is None:
            self._asked = self._started or self.agent.news.remote()
        return self._asked

    def take(self, wait_seconds: float) -> None:
        """Notes the answer. Without one for a while, or with the word of Ray, the process is lost."""
        import ray

        try:
            news = ray.get(self.ask(), timeout=wait_seconds)
            self._asked, self._answered = None, time.monotonic()
            if self._started:
                self._started = None
            else:
                self._note(news)
        except ray.exceptions.ActorUnavailableError:  # for now
            self._asked = None
        except ray.exceptions.RayActorError:
            self._lose("its machine left the cluster, or Ray's process for it died there")
        except ray.exceptions.GetTimeoutError:
            pass  # the answer may come with the next look; the line below bounds the wait
        if self.is_running and time.monotonic() - self._answered > LOST_SECONDS:
            self._lose(f"its machine did not answer for {LOST_SECONDS:g} s")

    def _note(self, news: News) -> None:
        values, self.exitcode, self.said = news
        for (name, _), value in zip(Mark._fields_, values):
            setattr(self.mark, name, value)

    def _lose(self, why: str) -> None:
        self.lost, self.exitcode, self.is_killed = why, 1, False

    def terminate(self) -> None:
        self.agent.terminate.remote()

    def kill(self) -> None:
        if self.is_running:
            self.is_killed = True
            self._started, self._asked = None, self.agent.kill.remote()
            self._answered = self._killed = time.monotonic()

    def join(self, seconds: float) -> None:
        """Until its agent answers, or is lost: only then it is known that it was killed. A process that waits for its
        GPU in the kernel may not end, and is left behind."""
        while self.is_running and self._answered == self._killed:
            self.take(1.0)
        if self.is_running:
            self.exitcode = -signal.SIGKILL


class OtherMachines:
    """Asks the machines of remote processes about them. None where one does not answer."""

    def __init__(self, group: Sequence[RemoteProcess]):
        self._group = group

    def state(self, process: int) -> str:
        return self._ask(process, "state") or ""

    def activity(self, process: int) -> tuple[float, int] | None:
        return self._ask(process, "activity")

    def xid(self, process: int) -> str | None:
        return self._ask(process, "xid")

    def _ask(self, process: int, fact: str) -> Any:
        import ray

        try:
            return ray.get(getattr(self._group[process].agent, fact).remote(), timeout=FACT_SECONDS)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return None


def _pause(running: list[RemoteProcess]) -> None:
    import ray

    began = time.monotonic()
    ray.wait([one.ask() for one in running], num_returns=len(running), timeout=SECONDS_BETWEEN_LOOKS)
    for one in running:
        one.take(0)
    time.sleep(max(0.0, SECONDS_BETWEEN_LOOKS - (time.monotonic() - began)))
