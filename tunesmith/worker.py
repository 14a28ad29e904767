"""One training process: from a prepared run folder to the trained result."""

import math
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig

from tunesmith.answer_formats.format import find
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import Interrupted, UserError, first_line, quoted, report_full_disk
from tunesmith.evaluate import generate, heldout
from tunesmith.evaluate.report import write_report
from tunesmith.files import cache_folder, follow_umask, read_json, write_json
from tunesmith.inputs import dataset_of, plan_of, schedule_of, tokenizer_of
from tunesmith.model import adapt, load
from tunesmith.model.folder import copy_others, write_config, write_generation_config
from tunesmith.model.memory import give_back, is_out_of_memory, no_room_is_said
from tunesmith.model.positions import trained_positions
from tunesmith.model.text import base_of
from tunesmith.plan import Plan
from tunesmith.provenance import changed_packages
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.training import checkpoint, distributed, layer_transforms, packed_attention
from tunesmith.training.batch import collate
from tunesmith.training.checkpoint_writer import Saver
from tunesmith.training.expert_routing import Routing
from tunesmith.training.loop import Job, loop
from tunesmith.training.loss import Head, autocast, find_head, token_losses
from tunesmith.training.optimizer import build_optimizer


def work(folder: Path) -> None:
    """Trains. Raises Interrupted after a signal; NotFinite, Diverged or NotEnoughMemory where it cannot continue."""
    run = Run(folder)
    plan = plan_of(run)
    device = distributed.join(plan.device)
    torch.set_num_threads(plan.threads)
    torch.use_deterministic_algorithms(device.type == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # costs time; nothing here reads fresh memory
    first = distributed.rank() == 0

    def log(event: str, **values) -> None:
        if first:
            run.log(event, **values)

    remedy = f"free some space, then `tunesmith resume {quoted(run.folder)}` continues"
    with report_full_disk(run.folder, remedy), stop_on_signal() as stop_asked:
        log("stage", doing="loading the model")
        with no_room_is_said("the model", "a smaller one may, or model.quantize: nf4, or adapter.kind: lora"):
            job, state = _job(run, plan, device, log, stop_asked)
        _before(job, run, state)
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
        give_back()


@dataclass
class Trainable:
    """A model ready to train on its device, and what was found out about it."""

    model: torch.nn.Module
    head: Head | None
    routing: Routing
    optimizer: torch.optim.Optimizer
    plan: Plan  # as it suits this model


def build(run: Run, plan: Plan, base: Path, device: torch.device, log) -> Trainable:
    """The recipe's model, ready to train. Raises UserError for what does not suit it."""
    return ready(trainable_model(run, plan, base).to(device), run.recipe, plan, log)


def ready(model, recipe: Recipe, plan: Plan, log) -> Trainable:
    """What a model on its device needs to train, in one visible order. Raises UserError for what does not suit it."""
    if problem := packed_attention.use_flash_attention_3(model.device):
        log("warning", message=problem)
    with autocast(plan):
        mixed = packed_attention.why_not_packed(model) if plan.packing else None
    if mixed:
        plan = replace(plan, packing=False)
        packed_attention.use_default(model)
        log("warning", message=f"{mixed}: examples are padded instead")
    with autocast(plan):
        packed_attention.check_causal(model)
    # Modules trained whole are in float32 among weights in bfloat16. Over float32 weights the head is shown exactly.
    with torch.autocast(plan.device, torch.bfloat16, enabled=plan.weights == "bfloat16"):
        head = find_head(model, plan.packing)
    if not head:
        log("warning", message="this model's output layer is not seen from outside: its logits are computed whole")
    routing = Routing(model, recipe.method.router_loss)
    for skipped in layer_transforms.apply(model, plan, recipe.train, cache_folder() / "inductor"):
        log("warning", message=skipped)
    return Trainable(model, head, routing, build_optimizer(model, recipe.train), plan)


def _job(run: Run, plan: Plan, device, log, stop_asked) -> tuple[Job, checkpoint.State]:
    recipe, settings = run.recipe, run.recipe.train
    tokenizer = tokenizer_of(run)
    dataset = dataset_of(run, tokenizer, plan.sequence_length)
    last, damaged = checkpoint.newest_whole(run.checkpoints)
    if run.events("start"):  # before anything else is logged, as what is between was a pause
        log("resume", step=checkpoint.read_state(last).step if last else 0)
        for line in changed_packages(run):
            log("warning", message=line)
    for folder, problem in damaged.items():
        log(
            "warning",
            message=f"{folder.name} is damaged ({problem}) and was renamed to damaged-{folder.name}; "
            f"training continues from {last.name}",
        )
    built = build(run, plan, run.base, device, log)
    model, plan = built.model, built.plan
    state = (
        checkpoint.load(last, model, built.optimizer)
        if last
        else checkpoint.State(
            micro_batch_tokens=plan.micro_batch_tokens, checkpointing=plan.gradient_checkpointing == "on"
        )
    )
    distributed.wait()  # until all have read it
    if distributed.rank() == 0:
        for folder in damaged:
            checkpoint.set_aside(folder)
    if state.checkpointing and plan.gradient_checkpointing != "on":
        layer_transforms.checkpoint_layers(model, "on")
    schedule = schedule_of(recipe, dataset)
    job = Job(
        run=run,
        settings=settings,
        **vars(built),
        tokens=dataset.train,
        held_out=dataset.eval,
        tokenizer=tokenizer,
        plain=partial(find(tokenizer).plain, tokenizer),
        schedule=schedule,
        saver=Saver(run.checkpoints, settings.keep_checkpoints, log),
        device=device,
        stop_asked=stop_asked,
        evaluate=lambda: _evaluate(job, state),
        sample=lambda: _sample(job, state),
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
    )
    return job, state


def _try_longest_row(job: Job) -> None:
    """Raises UserError if the model cannot take a row beyond the positions that it was trained with."""
    store = max((job.tokens, job.held_out), key=lambda store: store.lengths.max(initial=0))
    row, positions = int(store.lengths.argmax()), trained_positions(job.model.config)
    if positions and store.lengths[row] <= positions:
        return
    job.model.eval()
    try:
        with torch.inference_mode(), autocast(job.plan):
            token_losses(job.model, collate(store, np.array([row]), job.plan.packing).to(job.device), job.head)
    except (IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            return  # training has ways to make it fit
        raise UserError(
            f"data.sequence_length: the model cannot take the {store.lengths[row]:,} tokens of "
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
    if best.exists() and not checkpoint.damage(best):
        checkpoint.load(best, job.model)
    else:
        job.log(
            "warning",
            message=f"the best weights, of step {state.best_step}, were not saved or "
            "are damaged; the result is the last ones",
        )


def trainable_model(run: Run, plan: Plan, base: Path):
    """The base model as the recipe trains it, on the CPU."""
    recipe = run.recipe
    config = load.config_of(base)
    how = packed_attention.choose(config, plan.packing)
    model = load.load(recipe.model, base, getattr(torch, plan.weights), how, recipe.seed)
    tokenizer = Tokenizer.load(run.tokenizer)
    new_ids = adapt.new_token_ids(tokenizer, recipe.model.new_tokens)
    torch.manual_seed(recipe.seed)
    return adapt.adapt(model, recipe.adapter, new_ids, tokenizer.vocab_size if new_ids else 0)


def _losses(job: Job, state: checkpoint.State) -> np.ndarray:
    """Of the held-out rows, in passes as large as steps have."""
    plan = replace(job.plan, micro_batch_tokens=state.micro_batch_tokens)
    with no_room_is_said(
        "the loss of held-out rows", "train.micro_batch: 1 needs the least, or lower data.sequence_length"
    ):
        return heldout.row_losses(job.model, job.head, job.held_out, plan, job.device)


def _measure(job: Job, state: checkpoint.State) -> dict:
    """Losses of the held-out rows and answers to their prompts: to all for exact match, else to the samples'."""
    settings = job.run.recipe.evaluate
    found = {"losses": _losses(job, state).tolist()}
    rows = list(range(len(job.held_out))) if settings.exact_match else _sampled(job)
    found["answers"] = _answers(job, rows)
    if settings.exact_match:
        found["right"] = [int(found["answers"][str(row)].strip() == _reference(job, row).strip()) for row in rows]
    return found


def _sampled(job: Job) -> list[int]:
    """The held-out rows whose answers are shown, spread over all."""
    if job.run.recipe.method.name != "sft":
        return []
    count = min(job.run.recipe.evaluate.samples, len(job.held_out))
    return np.linspace(0, len(job.held_out) - 1, count).astype(int).tolist()


def _answers(job: Job, rows: list[int]) -> dict[str, str]:
    """{row: answer}; each process asks for its share, and all get all."""
    mine = rows[distributed.rank() :: distributed.world()]
    prompts = [job.held_out.prompt_and_answer(row)[0] for row in mine]
    remedy = "lower evaluate.max_new_tokens, or set evaluate.samples: 0"
    with autocast(job.plan), no_room_is_said("answering held-out prompts", remedy):
        answers = generate.answers(
            job.model, prompts, job.run.recipe.evaluate.max_new_tokens, job.run.plan["stop_ids"], job.tokenizer.pad_id
        )
    texts = dict(zip(mine, map(job.plain, answers)))
    found = {row: answer for share in distributed.gather(texts) for row, answer in share.items()}
    return {str(row): found[row] for row in rows}


def _reference(job: Job, row: int) -> str:
    return job.plain(job.held_out.prompt_and_answer(row)[1].tolist())


def _shown(job: Job, row: int) -> dict:
    return {"prompt": job.held_out.asked(row), "reference": _reference(job, row)}


def _evaluate(job: Job, state: checkpoint.State) -> float | None:
    if not len(job.held_out):
        return None
    began = time.monotonic()
    losses = _losses(job, state)
    loss = heldout.mean_loss(losses)
    job.log("eval", step=state.step, loss=loss, rows=len(losses), seconds=round(time.monotonic() - began, 3))
    return loss


def _sample(job: Job, state: checkpoint.State) -> None:
    rows = _sampled(job)
    if rows:
        answers = _answers(job, rows)
        job.log("samples", step=state.step, samples=[_shown(job, r) | {"answer": answers[str(r)]} for r in rows])


def _before(job: Job, run: Run, state: checkpoint.State) -> None:
    """Measures the untrained model, once; a resumed run has it already. Its loss is the first candidate for best."""
    if not len(job.held_out):
        return
    if not run.before_file.exists():
        found = _measure(job, state)
        if distributed.rank() == 0:
            write_json(run.before_file, found)
            job.log(
                "eval",
                step=0,
                loss=heldout.mean_loss(np.array(found["losses"])),
                rows=len(found["losses"]),
                seconds=0.0,
            )
        distributed.wait()
    loss = heldout.mean_loss(np.array(read_json(run.before_file)["losses"], float))
    if state.step == 0 and math.isfinite(loss):
        state.base_loss, state.best_loss, state.best_step = loss, loss, 0


def _finish(job: Job, run: Run, state: checkpoint.State) -> None:
    """Measures the trained model as it will be saved, writes eval.json, the report and the result."""
    if run.recipe.adapter.kind == "full":
        dtype = _saved_dtype(run)
        for parameter in job.model.parameters():  # not buffers: frequencies of positions stay in float32
            parameter.data = parameter.data.to(dtype)
    after = _measure(job, state) if len(job.held_out) else None
    if distributed.rank() == 0:
        if after:
            before = read_json(run.before_file)
            found = heldout.compare(before, after) | {"held_out": job.held_out.fingerprint}
            found["samples"] = [
                _shown(job, row) | {"before": before["answers"][str(row)], "after": after["answers"][str(row)]}
                for row in _sampled(job)
            ]
            write_json(run.eval_file, found)
        write_report(run)
        save_result(run, job.model)  # last: a run that has a result is finished
    distributed.wait()


def _saved_dtype(run: Run) -> torch.dtype:
    """Of a full model: the base's, or float32 for one made from nothing."""
    made = run.recipe.model.initialize == "random"
    return torch.float32 if made else load.config_of(run.base).dtype or torch.float32


def save_result(run: Run, model) -> None:
    """The adapter or model with tokenizer, template and generation settings, complete or absent."""
    draft = run.folder / ".result.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    full = run.recipe.adapter.kind == "full"
    inner = base_of(model)
    inner.generation_config = _generation_config(inner, run.plan["stop_ids"])
    if not full:
        model.peft_config["default"].base_model_name_or_path = _base_name(run)
        model.peft_config["default"].revision = run.recipe.model.revision
    packed_attention.use_default(model)
    # Rows of new tokens are saved alone, not with the matrices that they are part of.
    model.save_pretrained(draft, **({} if full else {"save_embedding_layers": False}))
    inner.generation_config.save_pretrained(draft)
    write_generation_config(run.base, draft, run.plan["stop_ids"])
    shutil.copytree(run.tokenizer, draft, dirs_exist_ok=True)
    if full:
        write_config(run.base, load.config_of(draft), draft)
        copy_others(run.base, draft)
    for file in draft.glob("*.safetensors"):
        follow_umask(file)
    os.rename(draft, run.result)


def _generation_config(model, stop_ids: list[int]):
    """The base's, with what ends an answer. Some bases set a temperature without sampling, which cannot be saved."""
    values = model.generation_config.to_diff_dict() | {"eos_token_id": stop_ids}
    if not values.get("do_sample") and values.keys() & {"temperature", "top_p", "top_k", "min_p"}:
        values["do_sample"] = True
    return GenerationConfig.from_dict(values)


def _base_name(run: Run) -> str:
    path = run.recipe.model.path
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().is_dir() else path


@contextmanager
def stop_on_signal():
    """Yields a function that tells whether a signal to stop came. A second one ends the process at once."""
    came = distributed.Came()

    def note(number, frame) -> None:
        if came.again():
            os._exit(128 + number)

    with distributed.on_signals(note):
        yield lambda: bool(came)
