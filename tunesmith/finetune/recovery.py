"""Keeps a run going when a training process dies or a GPU is lost: it continues from its last checkpoint with what is
left."""

from tunesmith.errors import Ending, Interrupted, ProcessDied, first_line, quoted
from tunesmith.finetune import launch, ray_launch, worker
from tunesmith.finetune.layout import Layout, answering_gpus
from tunesmith.run import Run
from tunesmith.training import checkpoint


def train_in_processes(run: Run, layout: Layout) -> None:
    """Trains until the run ends. After a failure that is not the run's own, the processes start again from the last
    checkpoint, unless they failed in the same way at the same step before. Raises ProcessDied then, and every error of
    the run at once."""
    failures: set[tuple[str, int]] = set()
    stopped = f"stopped; `tunesmith resume {quoted(run.folder)}` continues it"
    while True:
        try:
            if layout.seats:
                ray_launch.launch_on(layout.seats, worker.work, run.folder)
            elif layout.gpus:
                launch.launch(worker.work, layout.processes, run.folder, gpus=layout.gpus)
            else:
                launch.launch(worker.work, layout.processes, run.folder)
            return
        except Interrupted:
            raise Interrupted(stopped) from None
        except launch.Failed as failed:
            failure = failed.failure
        if run.result.exists():  # the result is the last thing that is written
            return
        if not failure.may_pass:
            raise failure.error
        same = failure.kind, max(failure.step, last_step(run))  # before a process knows its step, it is 0
        if same in failures:
            raise _given_up(failure.error, "the same happened at this step before")
        failures.add(same)
        with launch.stop_signals() as signals:  # to ask a broken GPU takes a while
            layout = _left(layout, failure)
        if signals:
            raise Interrupted(stopped)
        if not layout.processes:
            raise _given_up(failure.error, "no GPU is left")
        run.log("recovered", step=last_step(run), processes=layout.processes, cause=first_line(failure.error))


def last_step(run: Run) -> int:
    """The step of the last checkpoint, 0 without any."""
    saved = checkpoint.complete(run.checkpoints)
    return checkpoint.read_state(saved[-1]).step if saved else 0


def _given_up(error: Ending, why: str) -> ProcessDied:
    line, _, trace = str(error).partition("\n")
    return ProcessDied(f"{line}; {why}, so the run ends here\n{trace}".strip())


def _left(layout: Layout, failure: launch.Failure) -> Layout:
    """The layout without machines and GPUs that no longer answer, and without a GPU that hangs."""
    if layout.seats:
        seats = ray_launch.left(layout.seats, failure)
        return Layout(len(seats), seats=seats)
    if not layout.gpus:
        return layout
    answering = answering_gpus(layout.gpus)
    hanging = layout.gpus[failure.process] if failure.gpu_suspected else None
    gpus = [gpu for gpu in answering if gpu is not hanging]
    return Layout(len(gpus), gpus)
