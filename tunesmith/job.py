"""The main job, from a recipe to a result: what `tunesmith train` and `tunesmith resume` do.

`prepare` runs once, in the process the user started, and finds every mistake of the user's; `work` runs in each
training process, which is given the run's folder and nothing else.
"""

import logging
import multiprocessing
import shutil
import sys
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path

from tunesmith import provenance
from tunesmith.data import hub
from tunesmith.data.dataset import Dataset
from tunesmith.data.pack import Schedule
from tunesmith.data.source import template_variables
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import (UNGUARDED, UNGUARDED_STATUS, Ending, Interrupted, NotEnoughMemory, NotFinite, ProcessDied,
                              UserError, first_line, quoted)
from tunesmith.inputs import dataset_of, plan_of
from tunesmith.machine import probe
from tunesmith.measure import fitted
from tunesmith.model.check import check_adapter, check_base
from tunesmith.model.load import config_of, eos_ids, resolve, save_tokenizer
from tunesmith.plan.choose import Plan, choose, for_model
from tunesmith.recipe import Recipe
from tunesmith.run import Run, write_json
from tunesmith.screen import Screen

ROWS_LOOKED_AT = 200
UNKNOWN_POSITIONS = 2**17  # of a model that does not say, such as one without position embeddings


def train(recipe: Recipe) -> Run:
    """Trains from a recipe and returns the run. Raises UserError, leaving nothing behind, where that cannot be."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a process of ours that imports the script
        sys.exit(UNGUARDED_STATUS)  # without a word: the process that the user started says it
    run = Run.create(_pinned(recipe))
    with run.held():
        try:
            prepare(run)
            _start(run)
        except BaseException as error:
            if run.plan is None or isinstance(error, UserError) and not run.events("step"):
                shutil.rmtree(run.folder)
            raise
    return run


def resume(folder: str | Path) -> Run:
    """Continues a run from its last complete checkpoint, or from the start if it has none. Raises UserError if it is
    finished or going on."""
    run = Run.open(folder)
    with run.held():
        if run.result.exists():
            raise UserError(f"{folder}: this run is finished; its result is {run.result}")
        if run.plan is None:
            prepare(run)
        provenance.check_unchanged(run)
        _start(run)
    return run


def prepare(run: Run) -> None:
    """Base model, tokenizer, data and plan; writes plan.json, ledger.jsonl and provenance.json. Raises UserError."""
    recipe, screen = run.recipe, Screen()
    machine = probe(run.folder)
    plan = choose(recipe, machine)
    screen.waiting("reading the data")
    base = resolve(recipe.model)
    config = config_of(base)
    plan = for_model(plan, recipe, config)
    check_base(recipe.model, recipe.adapter, base, config)
    save_tokenizer(recipe.model, base, run.tokenizer)
    for note in check_adapter(recipe.adapter, recipe.model.new_tokens, Tokenizer.load(run.tokenizer), config):
        run.log("warning", message=note)
        screen.show("warning", {"message": note})
    given = recipe.model.chat_template_kwargs
    kwargs = template_variables(Tokenizer.load(run.tokenizer, template_kwargs=given), recipe.data.train, given)
    tokenizer = Tokenizer.load(run.tokenizer, template_kwargs=kwargs)
    plan, measured = fitted(run, plan, base, _positions(config))
    if measured:
        screen.measured(measured)
    day = date.today().isoformat()
    dataset = dataset_of(run, tokenizer, plan.sequence_length, run.ledger_file, screen.encoding, day)
    screen.data(dataset)
    _check_fit(recipe, dataset, config)
    settings = recipe.train
    screen.plan(recipe, plan, machine, Schedule(dataset.train.weights, settings.batch, settings.epochs, recipe.seed,
                                                settings.max_steps).steps)
    write_json(run.provenance_file, provenance.collect(recipe, base, machine))
    write_json(run.plan_file, plan.as_dict() | {
        "ledger": dataset.ledger, "formats": dataset.formats, "base": str(base.resolve()), "day": day,
        "left_out": dataset.left_out, "template": tokenizer.template_name, "template_kwargs": kwargs,
        "system_prompts": dataset.system_prompts,
        "stop_ids": _stop_ids(dataset, tokenizer, base)})


def _pinned(recipe: Recipe) -> Recipe:
    """Names the commits of its hub datasets, so that a run, also a resumed one, has the same rows throughout."""
    sources = {key: [hub.pinned(source) for source in getattr(recipe.data, key)] for key in ("train", "eval")}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=sources)})


def _positions(config) -> int:
    """Tokens that the model has positions for."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or UNKNOWN_POSITIONS


def _check_fit(recipe: Recipe, dataset: Dataset, config) -> None:
    """That rows are seen at all, and that the model knows their tokens."""
    if round(dataset.train.weights.sum()) < 1:
        raise UserError(f"data.train: the weights of its sources leave no row of {len(dataset.train)} to an epoch; "
                        "raise weight")
    known = config.get_text_config().vocab_size
    if dataset.train.largest_id >= known and not recipe.model.new_tokens:
        raise UserError(f"model.path: the tokenizer gives id {dataset.train.largest_id}, but the model has {known} "
                        "embeddings; name the tokens that were added in model.new_tokens")


def _start(run: Run) -> None:
    try:
        _work(run, plan_of(run))
    except (Interrupted, UserError):
        raise
    except Exception as error:
        with suppress(OSError):  # a full disk, say, must not hide the error
            _log_end(run, error)
        raise


def _log_end(run: Run, error: Exception) -> None:
    done = max((event["step"] for event in run.events("step")), default=0)
    if isinstance(error, Ending):
        run.log("stop", step=done, reason=error.reason, message=first_line(error))
    else:
        run.log("stop", step=done, reason=Ending.reason, message=f"{type(error).__name__}: {first_line(error)}")


def _work(run: Run, plan: Plan) -> None:
    if plan.processes == 1:
        from tunesmith.worker import work

        work(run.folder)
    else:
        _start_many(run, plan)


def _start_many(run: Run, plan: Plan) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from tunesmith.training.parallel import launch
    from tunesmith.worker import work

    try:
        with _silent_launcher():
            launch(work, plan.processes, run.folder)
    except SignalException:  # the processes have saved, or a second signal killed them
        raise Interrupted(f"stopped; `tunesmith resume {quoted(run.folder)}` continues it") from None
    except ChildFailedError as error:
        raise _cause(plan, *error.get_first_failure()) from None


@contextmanager
def _silent_launcher():
    """The launcher logs what it then raises; once is enough."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _cause(plan: Plan, rank: int, failure) -> Exception:
    """Why a training process ended: its own exception where that is for the user, else with its traceback, once."""
    if failure.exitcode == UNGUARDED_STATUS:
        return UserError(UNGUARDED)
    found = failure.message
    text, trace = (found["message"], found["extraInfo"]["py_callstack"]) if isinstance(found, dict) else (found, "")
    name, _, message = text.partition(": ")
    for kind in (Interrupted, NotEnoughMemory, NotFinite, UserError):
        if name == kind.__name__:
            return kind(message)
    return ProcessDied(f"training process {rank} of {plan.processes} died, so all stopped: {text}\n{trace}".strip())


def _stop_ids(dataset: Dataset, tokenizer: Tokenizer, base: Path) -> list[int]:
    """Tokens that end an answer: the model's own, and the special tokens that end learned answers."""
    stops = {tokenizer.eos_id, *eos_ids(base)}
    for number in range(min(len(dataset.train), ROWS_LOOKED_AT)):
        answer = dataset.train.prompt_and_answer(number)[1]
        if len(answer) and tokenizer.decode([int(answer[-1])]) in tokenizer.special_tokens:
            stops.add(int(answer[-1]))
    return sorted(i for i in stops if i is not None)
