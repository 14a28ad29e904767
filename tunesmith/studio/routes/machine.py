"""The machine: its devices, memory and disk, and who uses them."""

import os
import shutil
import socket
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fastapi import APIRouter
from pydantic import BaseModel

from tunesmith import leases
from tunesmith.machine import cores, memory
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.state import Studio


class Holder(BaseModel):
    """A process that uses a device."""

    use: str
    """training, serving, chat, evaluation or export."""
    name: str
    """Its run or model."""
    run: str | None
    """The id of its run, if it has one."""
    job: int | None
    pid: int
    bytes: int | None
    """How much of the device's memory it asked for; None: all of it, or unknown."""
    exclusive: bool
    since: float
    """Unix seconds."""


class Device(BaseModel):
    """A GPU, or the CPU."""

    key: str
    name: str
    total_bytes: int
    free_bytes: int
    celsius: float | None = None
    watts: float | None = None
    """Its power now."""
    most_watts: float | None = None
    """Its power limit."""
    holders: list[Holder]


class Machine(BaseModel):
    """The state of the workstation at one moment."""

    name: str
    version: str
    time: float
    """The server's clock, in Unix seconds."""
    cores: int
    load: float
    """Processes that compute or wait for a core, on average over the last minute."""
    gpus: list[Device]
    cpu: Device
    disk_total_bytes: int
    disk_free_bytes: int
    folder: str
    """Where the studio was started; relative paths are meant from here."""


def state(studio: Studio) -> Machine:
    """Reads the machine's state now."""
    total, free = memory()
    disk = shutil.disk_usage(studio.folder)
    holders: dict[str, list[Holder]] = {}
    for one in leases.holders():
        holders.setdefault(one.device, []).append(_holder(one))
    return Machine(
        name=socket.gethostname(),
        version=version("tunesmith"),
        time=time.time(),
        cores=cores(),
        load=os.getloadavg()[0],
        gpus=[
            Device(
                key=one.gpu.uuid,
                name=one.gpu.label,
                total_bytes=one.gpu.total_bytes,
                free_bytes=one.gpu.free_bytes,
                celsius=one.gpu.celsius,
                watts=one.watts,
                most_watts=one.gpu.power_watts,
                holders=holders.get(one.gpu.uuid, []),
            )
            for one in studio.gpus.now()
        ],
        cpu=Device(key=leases.CPU, name="CPU", total_bytes=total, free_bytes=free, holders=holders.get(leases.CPU, [])),
        disk_total_bytes=disk.total,
        disk_free_bytes=disk.free,
        folder=str(studio.folder),
    )


def _holder(one: leases.Holder) -> Holder:
    folder = Path(one.folder)
    return Holder(
        use=one.use,
        name=folder.name,
        run=id_of(folder) if (folder / "recipe.yaml").exists() else None,
        job=one.job,
        pid=one.pid,
        bytes=one.nbytes,
        exclusive=one.exclusive,
        since=one.since,
    )


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["machine"])
    router.add_api_route("/machine", partial(state, studio), methods=["GET"], response_model=Machine, name="machine")
    return router
