"""The GPUs that a run holds on this machine until it ends, so that no other run trains on them by mistake."""

from collections.abc import Sequence
from contextlib import ExitStack

from tunesmith.leases import CPU, DeviceHeld, Holder, Lease, held, queued_job, refusal
from tunesmith.machine import Gpu
from tunesmith.run import Run


class Devices:
    """A context in which a run holds devices. `share`: also beside other runs."""

    def __init__(self, run: Run, share: bool = False):
        self.run, self.share = run, share
        self._lease = Lease()
        self._end = ExitStack()

    def __enter__(self) -> "Devices":
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def hold(self, gpus: Sequence[Gpu], partial: bool = False) -> list[Holder]:
        """Holds GPUs, or the CPU if there are none, and warns of other processes that use the GPUs. `partial`: leaves
        out those that another run holds, and returns who does. Raises DeviceHeld without it, or if none is left.

        Runs may share the CPU, unless the queue started them: it starts one after the other.
        """
        names = {gpu.uuid: gpu.label for gpu in gpus}
        exclusive = not self.share if gpus else queued_job() is not None
        asked = held(names or [CPU], "training", exclusive=exclusive, folder=self.run.folder, partial=True)
        self._lease = lease = self._end.enter_context(asked)
        if lease.refused and not (partial and lease.devices):
            raise DeviceHeld(refusal(lease.refused, names))
        if gpus:
            shared = [f"{names[one.device]} is shared with {one}" for one in lease.beside]
            for line in filter(None, [lease.problem, *shared]):
                self.run.log("warning", message=line)
        return lease.refused

    def keep(self, gpus: Sequence[Gpu]) -> None:
        """Releases all GPUs but these."""
        self._lease.keep([gpu.uuid for gpu in gpus] or [CPU])
