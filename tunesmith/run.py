"""Run: what happened, as a folder that any program can read.

The training process writes it and knows no server; the command line, a page or a tracker read it.

events.jsonl holds one object a line, each with `event` and `time` (Unix seconds), append only:

    stage       doing: what is under way until the next event, for a person
    encoding    rows, examples, seconds: tokenising so far
    measured    points: [[tokens, peak bytes]], tokens (that fit), budget_bytes, seconds
    data        ledger, formats, examples, held_out, held_out_unused, left_out
    gpu_check   gpus: [{index, name, uuid, compute (precision of the products), to_gpu_bytes_per_second,
                to_host_bytes_per_second, both_bytes_per_second (both directions at once, added up),
                together_bytes_per_second (to this GPU, while all others are copied to), flops_per_second, pinned
                (whether host memory could be pinned), problem (why it is left out), note (why it was not checked)}]:
                rates are null where the check did not get that far
    plan        plan (as in plan.json), steps, gpus: [{name, bytes}]
    start       steps, rows, eval_rows, trainable_parameters, parameters, loading_seconds, host_peak_bytes (while the
                model was loaded and placed, all processes together)
    step        step, epoch, loss (mean over the step's units: supervised tokens, or rows for a method that compares
                sequences), learning_rate, grad_norm (before clipping), tokens, supervised_tokens, seconds,
                tokens_per_second,
                waiting_seconds (for data), memory_bytes (peak); with several processes also exchange_seconds (until the
                gradients of all are summed, also waiting for slower processes); with layers in host memory also
                brought_bytes (to all devices, since the last step); for a mixture of experts also expert_load (busiest
                expert over mean, by layer); for a method with a loss of its own also metrics ({name: mean}); where
                shares are measured also shares (of the step's tokens, by process); in float16 also loss_scale, and
                skipped: true if the gradients were not finite, so that nothing was learned; where the energy of a step
                is known also joules (of the run's GPUs, or of the CPU if it trains)
    energy      device (cuda or cpu), joules (of the run's GPUs, or of the CPU if it trains, from loading the model to
                now, without pauses, in all sessions; null if unknown), seconds (of the same time), unknown (why)
    compile     step, graphs, recompiles (graphs after the first ones), seconds
    eval        step, loss, low and high (its 95 % bootstrap interval over rows), rows, seconds
    samples     step, samples: [{prompt, reference, answer}]
    checkpoint  step, path, bytes, seconds (of the write), stall_seconds (that training stood still), best
    warning     message
    pause       step
    continue    step, seconds (of the pause)
    recovered   step (of the checkpoint that it continues from), processes, cause: a training process died or hung, and
                the others were started again
    resume      step (later steps written before this line were lost: readers ignore them), processes if they are not
                as many as in the plan
    stop        step, reason: done | max_minutes | max_tokens | early_stopping | interrupted, or what broke it off:
                not_finite | diverged | out_of_memory | error (any other), these with the error's message, or no_room:
                the queue tries it again once more memory is free, needed (bytes by device); a run that was killed has
                none

eval.json holds `rows`; `held_out`, which is equal for the same rows whatever the tokenizer; `before` and `after`,
each with `loss`, `perplexity` and, where asked for, `exact_match` as
{mean, low, high} (95 % bootstrap over rows); `difference` (after minus before, paired) of `loss` and `exact_match`;
and `samples`: [{prompt, reference, before, after}].

JSON has no number for infinity and none for NaN: a loss, or a perplexity, that is one of them is null.
"""

import difflib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from tunesmith.errors import UserError, quoted
from tunesmith.files import json_text, open_file, read_text, write_atomic
from tunesmith.plan import Plan
from tunesmith.recipe import Recipe, Source

DEFAULT_OUTPUT: Path = Recipe.model_fields["output"].default
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # what file systems without them say

FIRST_STEPS = 2  # of a run, which are slower than the others
ENOUGH_STEPS = 3  # measured ones


class Run:
    """A run folder. Creating the object touches nothing."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.recipe_file = self.folder / "recipe.yaml"
        self.plan_file = self.folder / "plan.json"
        self.provenance_file = self.folder / "provenance.json"
        self.ledger_file = self.folder / "ledger.jsonl"
        self.events_file = self.folder / "events.jsonl"
        self.tokenizer = self.folder / "tokenizer"
        self.before_file = self.folder / "before.json"
        self.eval_file = self.folder / "eval.json"
        self.report_file = self.folder / "report.html"
        self.checkpoints = self.folder / "checkpoints"
        self.lock_file = self.folder / ".lock"
        self.control_file = self.folder / ".control"
        self._events: tuple[tuple[int, int], list[dict[str, Any]]] | None = None  # with the state of their file

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def name(self) -> str:
        return self.folder.name

    @classmethod
    def create(cls, recipe: Recipe) -> "Run":
        """Makes a new folder under `recipe.output`. Raises UserError if the named one is there already."""
        name = recipe.name or free_name(recipe.output, f"{date.today()}-{_label(recipe.data.train[0])}")
        run = cls(recipe.output / name)
        try:
            run.folder.mkdir(parents=True)
            run.checkpoints.mkdir()
        except FileExistsError:
            raise UserError(
                f"name: the run {run.folder} exists already; choose another name or `tunesmith resume {run.folder}`"
            ) from None
        except OSError as error:
            raise UserError(f"output: cannot make {run.folder}: {error.strerror}") from None
        write_atomic(run.recipe_file, recipe.dump())
        return run

    @classmethod
    def find(cls, name: str | Path, output: Path = DEFAULT_OUTPUT) -> "Run | None":
        """The run with this folder, or with this name in `output`; None if there is none."""
        return next((run for run in (cls(name), cls(output / name)) if run.exists), None)

    @classmethod
    def open(cls, name: str | Path, output: Path = DEFAULT_OUTPUT) -> "Run":
        """The run with this folder, or with this name in `output`. Raises UserError if there is none."""
        run = cls.find(name, output)
        if run:
            return run
        if Path(name).is_dir():
            raise UserError(f"{name}: not a run folder (recipe.yaml and checkpoints/); `tunesmith runs` lists runs")
        raise UserError(f"{name}: no such run; {runs_there(name, output)}")

    @property
    def exists(self) -> bool:
        return self.recipe_file.is_file() and self.checkpoints.is_dir()

    @cached_property
    def recipe(self) -> Recipe:
        """Read once: a recipe never changes after the run was created. Raises UserError."""
        return Recipe.load(self.recipe_file)

    @property
    def is_prepared(self) -> bool:
        """Whether the run has a plan, which is the last thing that preparing a run writes."""
        return self.plan_file.exists()

    @cached_property
    def plan(self) -> Plan:
        """Read once: a plan never changes after it was written. Raises UserError if the run is not prepared."""
        if not self.is_prepared:
            raise UserError(f"{self.folder}: this run is not prepared; `tunesmith resume {self.folder}` prepares it")
        return Plan.read(self.plan_file)

    @property
    def base(self) -> Path:
        """The base model's folder."""
        return Path(self.plan.base)

    @property
    def result(self) -> Path:
        """The trained adapter or model in the format of PEFT or Transformers, once there."""
        return self.folder / ("model" if self.recipe.adapter.kind == "full" else "adapter")

    @contextmanager
    def held(self) -> Iterator[None]:
        """While this holds, no other process may work on the run; the kernel lets go of it when this process dies.
        Raises UserError if another one has it."""
        with open(self.lock_file, "a+b") as file:
            locked = try_lock(file, fcntl.LOCK_EX)
            if locked is None:
                self.log("warning", message="this file system has no locks: take care that nothing else trains here")
            elif not locked:
                raise UserError(
                    f"{self.folder}: another process{_holder(file)} works on this run; stop that one first "
                    f"(`tunesmith runs stop {quoted(self.folder)}`), or wait for its end"
                )
            file.truncate(0)
            file.write(json_text({"pid": os.getpid(), "started": process_start(os.getpid())}).encode())
            file.flush()
            yield

    @property
    def holder(self) -> dict[str, Any] | None:
        """{pid, started} of the process that works on the run, `started` as `process_start`; None if none does."""
        return _facts_of(read_text(self.lock_file)) if self.is_held else None

    @property
    def is_held(self) -> bool:
        """Whether a process works on the run."""
        if not self.lock_file.exists():
            return False
        with open_file(self.lock_file) as file:
            return try_lock(file, fcntl.LOCK_SH) is False

    def log(self, event: str, **values: Any) -> None:
        """Appends one event. A line is written in one call, so a reader never sees half of one but the last."""
        line = json_text({"event": event, "time": round(time.time(), 3), **values})
        with open(self.events_file, "ab+") as file:
            if file.tell() and not _ends_line(file):
                line = "\n" + line
            file.write(line.encode() + b"\n")

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Events in order, without what a crash cut off or a resume undid; of the given kinds, or all. The file is read
        again only if it has changed."""
        try:
            found = self.events_file.stat()
        except FileNotFoundError:
            return []
        stamp = found.st_size, found.st_mtime_ns
        if self._events is None or self._events[0] != stamp:
            with open_file(self.events_file) as file:
                self._events = stamp, events_in(file)
        return [event for event in self._events[1] if not kinds or event["event"] in kinds]


def events_in(lines: Iterable[str | bytes]) -> list[dict[str, Any]]:
    """The events of these lines, without what a crash cut off or a resume among them undid."""
    kept: list[dict[str, Any]] = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a process killed while it wrote
        if event["event"] == "resume":
            kept = [e for e in kept if e.get("step", 0) <= event["step"]]
        kept.append(event)
    return kept


def runs_there(name: str | Path, output: Path) -> str:
    """For a message about a run that is not there: the nearest name, and the last of those in `output`."""
    names = [run.name for run in list_runs(output)]
    near = difflib.get_close_matches(Path(name).name, names, 1, 0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return hint + (f"{output} has {', '.join(names[-5:])}" if names else f"{output} has no runs")


def list_runs(output: Path) -> list[Run]:
    """The runs in a folder, oldest first."""
    found = [run for run in map(Run, output.glob("*/")) if run.exists]
    return sorted(found, key=lambda run: (run.recipe_file.stat().st_mtime, run.name))


def process_start(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did (Linux; elsewhere None): a process id is used again
    after its process has ended, and only both together name one process. None for one that has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()  # from field 3 of proc(5) on
    return None if state in "ZX" else int(rest[18])  # its parent may not have noticed yet that it has ended


def _facts_of(lock: str | bytes) -> dict[str, Any] | None:
    """Returns the facts that the holder of a lock wrote into it; None if it has not yet, or is an older version."""
    try:
        facts: dict[str, Any] = json.loads(lock)
    except ValueError:
        return None
    return facts


def _holder(file: IO[bytes]) -> str:
    file.seek(0)
    facts = _facts_of(file.read())
    return f" ({facts['pid']})" if facts else ""


def try_lock(file: IO[bytes], kind: int) -> bool | None:
    """Whether the file is locked now, which it is not where another process has it; None where there are no locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def new_locked(path: Path) -> IO[bytes] | None:
    """A new file that only this user may read, with a lock on it; None if that is not possible here. It gets its name
    once it is locked, so no reader finds it without."""
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb", buffering=0)
        if try_lock(file, fcntl.LOCK_EX):
            draft.replace(path)
            return file
        file.close()
    except OSError:
        pass
    return None


def _ends_line(file: IO[bytes]) -> bool:
    """Whether the last line is whole; a process killed while it wrote leaves one that is not."""
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _label(source: Source) -> str:
    stem = Path(source.path.removeprefix("hub:")).name.split(".")[0]
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in stem) or "data"


def free_name(output: Path, name: str) -> str:
    """`name`, or with the first number behind it that no run in `output` has."""
    tries = (name if n == 1 else f"{name}-{n}" for n in range(1, 10**6))
    return next(t for t in tries if not (output / t).exists())


def settled_speed(steps: Sequence[dict[str, Any]]) -> float | None:
    """Tokens per second of the `step` events of a run without its first steps; None if there are too few."""
    settled = steps[FIRST_STEPS:]
    if len(settled) < ENOUGH_STEPS:
        return None
    seconds: float = sum(step["seconds"] for step in settled)
    tokens: float = sum(step["tokens"] for step in settled)
    return tokens / seconds
