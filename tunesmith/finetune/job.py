"""The main job, from a recipe to a result: what `tunesmith train` and `tunesmith resume` do.

`prepare` runs once, in the process the user started, and finds every mistake of the user's; `work` runs in each
training process, which is given the run's folder and nothing else.
"""

import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from tunesmith import machine
from tunesmith.errors import (
    UNGUARDED_STATUS,
    Ending,
    Interrupted,
    NotNow,
    UserError,
    first_line,
    report_full_disk,
)
from tunesmith.evaluate.report import write_report
from tunesmith.finetune import control, provenance
from tunesmith.finetune.devices import Devices
from tunesmith.finetune.gpu_check import usable_gpus
from tunesmith.finetune.layout import layout_of
from tunesmith.finetune.prepare import check, pinned, prepare
from tunesmith.finetune.ray_cluster import Cluster, connected
from tunesmith.finetune.room import check_room
from tunesmith.inference.gguf_base import base_folder
from tunesmith.planner import correction
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.trackers import check as check_trackers
from tunesmith.trackers._processes import followed

Watch = Callable[[Run], AbstractContextManager]


def train(
    recipe: Recipe,
    watch: Watch = nullcontext,
    cluster: str | None = None,
    apart: bool = False,
    force: bool = False,
    share_gpus: bool = False,
) -> Run:
    """Trains from a recipe and returns the run; `watch` is entered with the run before anything happens, to follow its
    events. `cluster`: the address of a Ray cluster whose machines train. `apart`: a single GPU has a process of its own
    too, so that a run on one that hangs ends. `force`: train although the plan says that memory or the disk is too
    small. `share_gpus`: use GPUs on which another run trains too. Raises UserError, leaving nothing behind, if the
    recipe cannot be trained."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a training process that imports the script
        sys.exit(UNGUARDED_STATUS)  # without a word: the process that the user started says it
    check_trackers(recipe.trackers)
    with _joined(cluster) as machines:
        if machines:
            machines.check_recipe(recipe)
        run = Run.create(pinned(recipe))
        with watch(run), run.held(), Devices(run, share_gpus) as devices:
            try:
                if machines:
                    machines.check_folder(run)
                with report_full_disk(run.folder, "free some space, or choose a folder on another disk as output"):
                    prepare(devices, machines, force)
                _start(devices, machines, apart=apart)
            except BaseException as error:
                if not run.is_prepared or (isinstance(error, UserError) and not run.events("step")):
                    shutil.rmtree(run.folder)
                raise
    return run


def new_run(recipe: Recipe) -> Run:
    """The run of a recipe, to be trained later by `resume`. Raises UserError for mistakes that are found at once."""
    check(recipe)
    return Run.create(pinned(recipe))


def _joined(cluster: str | None) -> AbstractContextManager[Cluster | None]:
    return connected(cluster) if cluster else nullcontext()


def resume(
    folder: str | Path,
    watch: Watch = nullcontext,
    processes: int | None = None,
    cluster: str | None = None,
    apart: bool = False,
    share_gpus: bool = False,
) -> Run:
    """Continues a run from its last complete checkpoint, or from the start if it has none; `watch`, `cluster`, `apart`
    and `share_gpus` as of `train`. `processes`: another number of them than before. Raises UserError if the run is
    finished or another process works on it."""
    run = Run.open(folder)
    check_trackers(run.recipe.trackers)
    with _joined(cluster) as machines, run.held(), watch(run), Devices(run, share_gpus) as devices:
        control.forget(run)
        if run.result.exists():
            raise UserError(f"{folder}: this run is finished; its result is {run.result}")
        if machines:
            machines.check_folder(run)
        is_new = not run.is_prepared
        if is_new:
            with _ending_logged(run):
                prepare(devices, machines)
        if not run.base.exists():  # it was in a cache that has been cleared since
            base_folder(run.recipe.model)
        provenance.check_unchanged(run)
        if not is_new and not machines:  # `prepare` checks them too
            gpus = machine.find_gpus()[1] if run.plan.device == "cuda" else []
            usable = usable_gpus(devices, gpus, run.plan.compute, processes)
            if not processes:
                with _ending_logged(run):
                    check_room(run, usable)
        _start(devices, machines, processes, apart)
    return run


def _start(devices: Devices, cluster: Cluster | None, processes: int | None = None, apart: bool = False) -> None:
    run = devices.run
    with followed(run), _ending_logged(run):
        _work(devices, cluster, processes, apart)
        correction.keep(run.plan, run.events("step"))


@contextmanager
def _ending_logged(run: Run) -> Iterator[None]:
    """Logs an error within it as the end of the run, and writes the report of a prepared one."""
    events = len(run.events())
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        is_prepared = run.is_prepared
        has_begun = not is_prepared or len(run.events()) > events  # else a mistake leaves the run as it was
        with suppress(OSError):  # a full disk, say, must not hide the error
            if has_begun or not isinstance(error, UserError):
                _log_end(run, error)
                if is_prepared:
                    write_report(run)
        raise


def _log_end(run: Run, error: Exception) -> None:
    done = max((event["step"] for event in run.events("step")), default=0)
    if isinstance(error, Ending):
        more = {"needed": error.needed} if isinstance(error, NotNow) else {}
        run.log("stop", step=done, reason=error.reason, message=first_line(error), **more)
    else:
        run.log("stop", step=done, reason=Ending.reason, message=f"{type(error).__name__}: {first_line(error)}")


def _work(devices: Devices, cluster: Cluster | None, processes: int | None, apart: bool) -> None:
    run = devices.run
    if cluster:
        cluster.check_plan(run.plan)
        cluster.check_files(run)
        layout = cluster.layout(run.plan, processes)
        devices.hold([seat.gpu for seat in layout.seats if seat.gpu and seat.node.is_own])
        run.log("stage", doing="starting the machines of the cluster")
    else:
        layout = layout_of(run, processes)
        devices.keep(layout.gpus)
    here = layout.processes == 1 and not layout.seats and not (layout.gpus and (apart or run.plan.gpus))
    if here:
        from tunesmith.finetune.worker import work

        work(run.folder)
    else:
        from tunesmith.finetune.recovery import train_in_processes

        train_in_processes(run, layout)
