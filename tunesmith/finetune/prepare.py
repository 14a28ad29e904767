"""Prepares a run: base model, tokenizer, data and plan. Every mistake of the user is found here."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from tunesmith.data import hub
from tunesmith.data.dataset import Dataset
from tunesmith.data.source import Sources, tokenizer_for
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.files import write_json
from tunesmith.finetune import provenance
from tunesmith.finetune.devices import Devices
from tunesmith.finetune.gpu_check import usable_gpus
from tunesmith.finetune.prepared import Prepared
from tunesmith.finetune.ray_cluster import Cluster
from tunesmith.finetune.room import or_later
from tunesmith.inference.gguf_base import base_folder, unpacking_note
from tunesmith.machine import Gpu, Machine, probe
from tunesmith.model.check import check_adapter, check_base, check_config
from tunesmith.model.load import config_of, eos_ids, local_folder
from tunesmith.model.positions import trained_positions
from tunesmith.model.tokenizer_files import save_tokenizer
from tunesmith.plan import Plan
from tunesmith.planner import unusual
from tunesmith.planner.apart import NotPredicted, predict_apart
from tunesmith.planner.beside import with_cost
from tunesmith.planner.decide import choose
from tunesmith.planner.disk import Disk, disk_by_sizes
from tunesmith.planner.fit import UNKNOWN_POSITIONS, fitted, is_measured, measure_apart
from tunesmith.planner.predict import by_sizes, surely_fits, without_memory
from tunesmith.planner.prediction import Prediction
from tunesmith.planner.rows import Training, training
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.trackers import check as check_trackers

ROWS_LOOKED_AT = 200

SECONDS_BETWEEN_EVENTS = 1.0  # about the same thing


def prepare(devices: Devices, cluster: Cluster | None = None, force: bool = False) -> None:
    """Base model, tokenizer, data and plan; writes plan.json, ledger.jsonl and provenance.json. Raises UserError.
    `devices`: those that the run will hold. `cluster`: the machines that will train; this one is among them. `force`:
    train although the plan says that memory or the disk is too small."""
    run = devices.run
    recipe = run.recipe
    machine = cluster.machine(run.folder) if cluster else probe(run.folder)
    plan = choose(recipe, machine)
    if recipe.model.path.endswith(".gguf"):
        run.log("stage", doing="unpacking the base")
    base = base_folder(recipe.model)
    run.log("stage", doing="reading the data")
    if line := unpacking_note(base):
        run.log("warning", message=line)
    config = config_of(base)
    check_base(recipe.model, recipe.adapter, base, config)
    save_tokenizer(recipe.model, base, run.tokenizer)
    for note in check_adapter(recipe.adapter, recipe.model.new_tokens, Tokenizer.load(run.tokenizer), config):
        run.log("warning", message=note)
    sources = Sources.resolve(recipe.data)
    tokenizer = tokenizer_for(run.tokenizer, sources.train, recipe.model.chat_template_kwargs)
    there = len(machine.gpus)
    if not cluster:  # after the mistakes that are found at once, and before a GPU is used
        if machine.gpus:
            run.log("stage", doing="checking the GPUs")
        machine = replace(machine, gpus=usable_gpus(devices, machine.gpus, plan.compute))
    positions = trained_positions(config)
    run.log("stage", doing="planning")
    predicted = None
    if not cluster and not surely_fits(recipe, machine, config, base):
        predicted = _predicted(run, machine, base, force)
    is_chosen = predicted and not is_measured(recipe)  # else by measuring, which begins where the prediction says
    plan = predicted.plan if predicted and is_chosen else by_sizes(recipe, machine, config, base)
    _check_disk(run, (predicted and predicted.disk) or disk_by_sizes(recipe, plan, config, base, machine), force)
    if len(machine.gpus) < there and not plan.gpus:  # a resumed run must not take one that it was planned without
        plan = replace(plan, gpus=[gpu.uuid for gpu in machine.gpus[: plan.processes]])
    if cluster:
        cluster.check_plan(plan)
    for line in unusual.check(recipe, plan, config):
        run.log("warning", message=line)
    measure = measure_apart(run.folder, base, predicted.traced if predicted else {})
    plan, measured = fitted(recipe, plan, positions or UNKNOWN_POSITIONS, measure)
    if measured:
        run.log(
            "measured",
            points=measured.points,
            tokens=measured.tokens,
            budget_bytes=measured.budget_bytes,
            seconds=measured.seconds,
        )
    plan = replace(plan, day=date.today().isoformat(), template_kwargs=tokenizer.template_kwargs)
    prepared = Prepared(run, plan, sources)
    dataset = prepared.encode(run.ledger_file, _encoding_progress(run))
    run.log(
        "data",
        ledger=dataset.ledger,
        formats=dataset.formats,
        examples=len(dataset.train),
        held_out=len(dataset.eval),
        held_out_unused=dataset.eval_unused,
        left_out=dataset.left_out,
    )
    _check_fit(recipe, dataset, config)
    steps = prepared.schedule.steps
    for line in unusual.check_data(recipe, plan, dataset, positions, steps):
        run.log("warning", message=line)
    plan = replace(
        plan,
        base=str(base.resolve()),
        template=tokenizer.template_name,
        stop_ids=_stop_ids(dataset, tokenizer, base),
        system_prompts=dataset.system_prompts,
        formats=dataset.formats,
        ledger=dataset.ledger,
        left_out=dataset.left_out,
        predicted=_with_exact_cost(predicted, recipe, dataset, steps).summary() if predicted else {},
    )
    run.log(
        "plan",
        plan=plan.as_dict(),
        steps=steps,
        gpus=[{"name": gpu.name, "bytes": gpu.total_bytes} for gpu in _gpus_of(plan, machine)],
    )
    write_json(run.provenance_file, provenance.collect(run, base, machine, plan, sources))
    write_json(run.plan_file, plan.as_dict())  # last: a run that has a plan is prepared


def _predicted(run: Run, machine: Machine, base: Path, force: bool) -> Prediction | None:
    """The prediction of the run; None if it cannot be predicted. Raises UserError if the plan does not fit, NotNow if
    the queue can try again."""
    predicted = None
    try:
        predicted = predict_apart(run.recipe, machine, base)
        _check_memory(run, predicted, force)
    except NotPredicted as problem:
        run.log("warning", message=f"memory and time are not predicted: {problem}")
    except UserError as refusal:
        raise or_later(refusal, predicted, run.recipe, machine, base) from None
    return predicted


def _check_memory(run: Run, predicted: Prediction, force: bool) -> None:
    """Raises UserError if the plan does not fit, unless it is to be tried."""
    if predicted.fits is False and not force:
        raise UserError(f"{predicted.refusal}; --force trains anyway")
    if predicted.fits is False:
        run.log("warning", message=predicted.refusal)


def _check_disk(run: Run, disk: Disk, force: bool) -> None:
    """Raises UserError if checkpoints and the result do not fit on the disk, unless it is to be tried."""
    if disk.fits is not False:
        return
    if not force:
        raise UserError(f"{disk.refusal(run.recipe)}; --force trains anyway")
    run.log("warning", message=disk.refusal(run.recipe))


def _gpus_of(plan: Plan, machine: Machine) -> list[Gpu]:
    return [gpu for gpu in machine.gpus if not plan.gpus or gpu.uuid in plan.gpus][: plan.processes]


def _with_exact_cost(predicted: Prediction, recipe: Recipe, dataset: Dataset, steps: int) -> Prediction:
    """The prediction with the time and energy of the rows that were encoded."""
    row_tokens, held_out = float(dataset.train.lengths.mean()), len(dataset.eval)
    tokens = min(steps * recipe.train.batch * row_tokens, recipe.train.max_tokens or math.inf)
    held_out_row_tokens = float(dataset.eval.lengths.mean()) if held_out else 0.0
    return with_cost(predicted, recipe, Training(steps, tokens, row_tokens, False, held_out, held_out_row_tokens))


def check(recipe: Recipe) -> None:
    """Raises UserError for mistakes that are found in a few seconds, without a GPU and without a download: in the
    recipe, the model's configuration and the first rows of the data."""
    check_trackers(recipe.trackers)
    gguf = Path(recipe.model.path).expanduser()
    base = base_folder(recipe.model) if gguf.suffix == ".gguf" else local_folder(recipe.model)
    config = config_of(base)
    check_config(recipe.model, recipe.adapter, base, config)
    plan = without_memory(recipe, probe(), config)
    if all(not source.path.startswith("hub:") for source in recipe.data.train):
        training(recipe, plan, base)


def pinned(recipe: Recipe) -> Recipe:
    """Names the commits of its hub datasets, so that a run, also a resumed one, has the same rows throughout."""
    sources = {key: [hub.pinned(source) for source in getattr(recipe.data, key)] for key in ("train", "eval")}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=sources)})


def _encoding_progress(run: Run) -> Callable[[int, int], None]:
    """Logs how far tokenising is, once in a while."""
    began = last = time.monotonic()

    def progress(rows: int, examples: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_EVENTS:
            last = now
            run.log("encoding", rows=rows, examples=examples, seconds=round(now - began, 3))

    return progress


def _check_fit(recipe: Recipe, dataset: Dataset, config: Any) -> None:
    """That rows of each source are seen at all, that there are held-out rows where the recipe needs them, and that the
    model knows all tokens."""
    epochs = recipe.train.epochs
    for source, rows in zip(recipe.data.train, dataset.rows):
        if rows and round(source.weight * rows * epochs) < 1:
            raise UserError(
                f"data.train: {source.path} gives no row: of its {rows:,} examples, weight: "
                f"{source.weight:g} leaves none in train.epochs: {epochs:g}; raise weight"
            )
    if round(dataset.train.weights.sum()) < 1:
        raise UserError(
            f"data.train: the weights of its sources leave no row of {len(dataset.train)} to an epoch; raise weight"
        )
    if not len(dataset.eval) and (key := recipe.needs_held_out_rows):
        raise UserError(
            f"{key} needs held-out rows, and none of {len(dataset.train):,} examples could be held out "
            f"(data.eval_share: {recipe.data.eval_share:g}); give data.eval, or more rows"
        )
    known = config.get_text_config().vocab_size
    if dataset.train.largest_id >= known and not recipe.model.new_tokens:
        raise UserError(
            f"model.path: the tokenizer gives id {dataset.train.largest_id}, but the model has {known} "
            "embeddings; name the tokens that were added in model.new_tokens"
        )


def _stop_ids(dataset: Dataset, tokenizer: Tokenizer, base: Path) -> list[int]:
    """Tokens that end an answer: the model's own, and the special tokens that end learned answers."""
    stops = {tokenizer.eos_id, *eos_ids(base)}
    for number in range(min(len(dataset.train), ROWS_LOOKED_AT)):
        answer = dataset.train.prompt_and_answer(number)[1]
        if len(answer) and tokenizer.decode([int(answer[-1])]) in tokenizer.special_tokens:
            stops.add(int(answer[-1]))
    return sorted(i for i in stops if i is not None)
