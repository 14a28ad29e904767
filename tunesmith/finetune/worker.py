"""One training process: from a prepared run folder to the trained result."""

import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith import machine
from tunesmith.answer_formats.format import find
from tunesmith.energy import Meter, Unknown, counters_of
from tunesmith.errors import Interrupted, UserError, first_line, quoted, report_full_disk
from tunesmith.evaluate import heldout
from tunesmith.evaluate.measurements import (
    log_evaluation,
    log_samples,
    measure,
    measure_untrained,
    prompt_and_reference,
    sampled_rows,
)
from tunesmith.evaluate.report import write_report
from tunesmith.files import read_json, write_json
from tunesmith.finetune import control
from tunesmith.finetune.prepared import Prepared
from tunesmith.finetune.provenance import changed_packages
from tunesmith.finetune.result import save_result
from tunesmith.finetune.signals import stop_on_signal
from tunesmith.model import adapt, load
from tunesmith.model.memory import (
    HostMemory,
    explain_out_of_memory,
    is_out_of_memory,
    peak_host_memory,
    release_memory,
)
from tunesmith.model.positions import trained_positions
from tunesmith.plan import Plan
from tunesmith.planner.decide import threads_of
from tunesmith.run import Run
from tunesmith.training import checkpoint, distributed, layer_transforms, loss_scale, progress_marks
from tunesmith.training.batch import collate
from tunesmith.training.build import build, place
from tunesmith.training.checkpoint_writer import Saver
from tunesmith.training.home import Home
from tunesmith.training.loop import loop
from tunesmith.training.loss import autocast, token_losses
from tunesmith.training.step import Job, log_energy
from tunesmith.training.stochastic_rounding import convert

SECONDS_TO_SEE_A_FILE = 90.0  # that another machine wrote to a network share


def work(folder: Path) -> None:
    """Trains. Raises Interrupted after a signal; NotFinite, Diverged or NotEnoughMemory where it cannot continue."""
    run = Run(folder)
    plan = run.plan
    device = distributed.join(plan.device)
    torch.set_num_threads(
        plan.threads if distributed.world() == plan.processes else threads_of(machine.cores(), distributed.neighbours())
    )
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time; nothing here reads fresh memory
    first = distributed.rank() == 0

    def log(event: str, **values) -> None:
        if first:
            run.log(event, **values)

    remedy = f"free some space, then `tunesmith resume {quoted(run.folder)}` continues"
    watched = report_full_disk(run.folder, remedy)
    with watched, stop_on_signal() as stop_requested, closing(_meter(run, device)) as meter:
        with explain_out_of_memory("the model", "a smaller one may, or model.quantize: nf4, or adapter.kind: lora"):
            job, state = _job(run, plan, device, log, control.listen(run, stop_requested), meter)
        measure_untrained(job, run, state)
        with job.saver:
            reason = loop(job, state)
        log("stop", step=state.step, reason=reason)
        if reason == "interrupted":
            distributed.wait()  # the launcher ends the others when one has ended, and the first may still be saving
            raise Interrupted(f"stopped at step {state.step}; `tunesmith resume {quoted(run.folder)}` continues it")
        if run.recipe.train.result == "best" and state.best_step is not None:
            _load_best(job, state)
        _finish(job, run, state)
        job = None
        release_memory()


def _meter(run: Run, device: torch.device) -> Meter:
    """The meter of this machine's devices, for its first process; for the others one without devices."""
    gpus = machine.find_gpus()[1] if device.type == "cuda" else []
    uuids = distributed.gather_here(next((gpu.uuid for gpu in gpus[device.index :]), ""))
    if not distributed.is_first_here():
        return Meter()
    joules, seconds, unknown = _energy_before(run) if distributed.rank() == 0 else (0.0, 0.0, "")
    try:
        counters = counters_of(device.type, uuids)
    except Unknown as reason:
        counters, unknown = [], str(reason)
    return Meter(counters, unknown, joules, seconds)


def _energy_before(run: Run) -> tuple[float, float, str]:
    """The joules and seconds of a run until it was resumed, and why they are unknown if they are."""
    last = next(iter(run.events("energy")[-1:] or run.events("step")[-1:]), None)
    if last is None:
        return 0.0, 0.0, ""
    if last["event"] == "step" or last["joules"] is None:
        return 0.0, 0.0, "it was not measured before the run was resumed"
    return last["joules"], last["seconds"], ""


def _job(run: Run, plan: Plan, device, log, requested, meter: Meter) -> tuple[Job, checkpoint.State]:
    recipe, settings = run.recipe, run.recipe.train
    prepared = Prepared.open(run)
    tokenizer, dataset, schedule = prepared.tokenizer, prepared.dataset, prepared.schedule
    last, damaged = agreed(run.checkpoints, lambda: checkpoint.newest_whole(run.checkpoints))
    step = checkpoint.read_state(last).step if last else 0
    if run.events("start"):  # before anything else is logged, as what is between was a pause
        other = {"processes": distributed.world()} if distributed.world() != plan.processes else {}
        log("resume", step=step, **other)
        for line in changed_packages(run):
            log("warning", message=line)
    for folder, problem in damaged.items():
        log(
            "warning",
            message=f"{folder.name} is damaged ({problem}) and was renamed to damaged-{folder.name}; "
            f"training continues from {last.name}",
        )
    log("stage", doing="loading the model")
    progress_marks.mark("loading the model", step)
    began = time.monotonic()
    with peak_host_memory() as peak:
        built = build(run, plan, run.base, device, log)
    loading = {"loading_seconds": time.monotonic() - began, "host_peak_bytes": _of_all(peak)}
    model, plan = built.model, built.plan
    with suppress(UserError):  # a model without a list of layers
        progress_marks.mark_layers(layer_transforms.decoder_layers(model))
    if plan.compile:
        progress_marks.mark_compiling()
    state = (
        checkpoint.load(last, built.optimizer)
        if last
        else checkpoint.State(
            micro_batch_tokens=plan.micro_batch_tokens,
            checkpointing=plan.gradient_checkpointing == "on",
            loss_scale=loss_scale.initial(plan.compute),
        )
    )
    distributed.wait()  # until all have read it
    if distributed.rank() == 0:
        for folder in damaged:
            checkpoint.set_aside(folder)
    if state.checkpointing and plan.gradient_checkpointing != "on":
        layer_transforms.checkpoint_layers(model, "on")
    job = Job(
        run=run,
        method=prepared.method,
        settings=settings,
        **vars(built),
        tokens=dataset.train,
        held_out=dataset.eval,
        tokenizer=tokenizer,
        plain=partial(find(tokenizer).plain, tokenizer),
        schedule=schedule,
        saver=Saver(run.checkpoints, settings.keep_checkpoints, log),
        device=device,
        requested=requested,
        evaluate=lambda: log_evaluation(job, state),
        sample=lambda: log_samples(job, state),
        meter=meter,
        seed=recipe.seed,
        log=log,
    )
    _try_longest_row(job)
    trained, everything = adapt.parameter_counts(model)
    log(
        "start",
        step=state.step,
        steps=schedule.steps,
        rows=len(dataset.train),
        eval_rows=len(dataset.eval),
        trainable_parameters=trained,
        parameters=everything,
        **loading,
    )
    return job, state


def _of_all(peak: HostMemory) -> int:
    """Bytes at the peaks of all processes together, as many as there can have been at one time."""
    peaks = distributed.gather(peak)
    return sum(one.own for one in peaks) + max(one.shared for one in peaks)


def agreed(place: Path, look: Callable[[], Any]) -> Any:
    """Looks at a place on disk until all processes see the same: another machine may see a new file some seconds later.
    Raises UserError if they continue to differ."""
    until = time.monotonic() + SECONDS_TO_SEE_A_FILE
    while True:
        seen = look()
        others = distributed.gather((seen, time.monotonic() > until))
        if all(other == seen for other, _ in others):
            return seen
        if any(is_late for _, is_late in others):
            raise UserError(f"{place}: the machines do not see the same files there; all must use one network share")
        time.sleep(1)


def _try_longest_row(job: Job) -> None:
    """Raises UserError if the model cannot take a row beyond the positions that it was trained with."""
    store = max((job.tokens, job.held_out), key=lambda store: store.sizes.longest.max(initial=0))
    row, positions = int(store.sizes.longest.argmax()), trained_positions(job.model.config)
    longest = store.sizes.longest[row]
    if positions and longest <= positions:
        return
    job.model.eval()
    try:
        with torch.inference_mode(), autocast(job.plan):
            token_losses(job.model, collate(store, np.array([row]), job.plan.packing).to(job.device), job.head)
    except (IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            return  # training has ways to make it fit
        raise UserError(
            f"data.sequence_length: the model cannot take the {longest:,} tokens of "
            f"{store.where(row)}{f': it has {positions:,} positions' if positions else ''} "
            f"({first_line(error)}); lower data.sequence_length"
        ) from None
    finally:
        job.routing.forget()


def _load_best(job: Job, state: checkpoint.State) -> None:
    if state.best_step == 0:
        job.log(
            "warning",
            message="no evaluation had a lower held-out loss than the model before training, so the "
            "result, train.result: best, is the untrained one",
        )
    best = job.run.checkpoints / f"step-{state.best_step:06d}"
    if agreed(best, lambda: best.exists() and not checkpoint.damage(best)):
        checkpoint.load(best, job.optimizer, states=False)
    else:
        job.log(
            "warning",
            message=f"the best weights, of step {state.best_step}, were not saved or "
            "are damaged; the result is the last ones",
        )


def _finish(job: Job, run: Run, state: checkpoint.State) -> None:
    """Measures the trained model as it will be saved, writes eval.json, the report and the result."""
    home = _as_saved(job, run) if run.recipe.adapter.kind == "full" else None
    after = measure(job, state) if len(job.held_out) else None
    log_energy(job)
    progress_marks.mark("saving")
    if home:
        home.close()
    if distributed.rank() == 0:
        if after:
            before = read_json(run.before_file)
            found = heldout.compare(before, after) | {"held_out": job.held_out.fingerprint}
            found["samples"] = [
                prompt_and_reference(job, row)
                | {"before": before["answers"][str(row)], "after": after["answers"][str(row)]}
                for row in sampled_rows(job)
            ]
            write_json(run.eval_file, found)
        write_report(run)
        save_result(run, job.model)  # last: a run that has a result is finished
    distributed.wait()


def _as_saved(job: Job, run: Run) -> Home | None:
    """Converts a model that trained whole to the precision in which it is saved. Returns the home of its layers if they
    stay in host memory."""
    dtype = load.saved_dtype(run.recipe.model, load.config_of(run.base))
    if job.walk:
        job.walk.home.close()
    if job.walk and distributed.rank():  # the first process's weights are placed
        for parameter in job.model.parameters():
            parameter.data = torch.empty(parameter.shape, dtype=dtype)
    else:
        torch.manual_seed(run.recipe.seed)
        convert(job.model.parameters(), dtype)  # not buffers: frequencies of positions stay in float32
    if not job.walk:
        return None
    job.walk = job.optimizer = None
    job.model.requires_grad_(False)
    wider = dtype.itemsize > getattr(torch, job.plan.compute).itemsize
    kept = [0 if wider else count for count in job.plan.kept_layers]
    return place(job.model, replace(job.plan, kept_layers=kept), job.device, job.log)
