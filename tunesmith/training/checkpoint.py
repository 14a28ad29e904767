"""Checkpoints: complete or absent, never half; safetensors and JSON, no pickle.

A folder `step-000200` holds trained.safetensors (what is trained), optimizer.safetensors, optimizer.json (what of the
optimizer is no tensor) and state.json. Data order, learning rate and random numbers are functions of (seed, step), so
the step is all their state.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tunesmith.errors import UserError, first_line
from tunesmith.files import follow_umask, read_json, write_json
from tunesmith.training import distributed
from tunesmith.training.optimizer import Optimizer
from tunesmith.training.optimizer_parts import States
from tunesmith.units import size

FREE_MARGIN_BYTES = 64 * 2**20


@dataclass
class State:
    """The progress of a run, without its tensors."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    base_loss: float | None = None  # of the held-out rows, before training
    best_loss: float | None = None
    best_step: int | None = None  # 0: no evaluation was better than that before training
    evals_without_gain: int = 0
    first_loss: float | None = None  # of the first step
    steps_above: int = 0  # that in a row were much worse than the first
    micro_batch_tokens: int = 0  # in this process: of the plan, or less since a step ran out of memory
    checkpointing: bool = False  # in this process
    passes: list[list] = field(default_factory=list)  # both in each process, once a step ran out of memory
    shares: list[float] = field(default_factory=list)  # of a step's tokens, by process
    loss_scale: float = 1.0  # training/loss_scale.py
    finite_steps: int = 0  # since the scale changed

    def of_process(self, rank: int, processes: int) -> "State":
        """As one of the processes that continue has it. With another number of processes, all take the smallest."""
        passes = self.passes or [[self.micro_batch_tokens, self.checkpointing]]
        same = len(passes) == processes
        tokens = passes[rank][0] if same else min(tokens for tokens, _ in passes)
        checkpointing = passes[rank][1] if same else any(checkpointing for _, checkpointing in passes)
        return replace(self, micro_batch_tokens=tokens, checkpointing=checkpointing, passes=self.passes if same else [])


@dataclass(frozen=True)
class Contents:
    """The content of a checkpoint: the current tensors, not copies."""

    trained: dict[str, torch.Tensor]
    moments: dict[str, torch.Tensor]
    numbers: dict[str, int | float]  # of the optimizer
    state: State

    @classmethod
    def of(cls, optimizer: Optimizer, state: State) -> "Contents":
        leaves = {f"{name}.{key}": v for name, values in optimizer.states().items() for key, v in values.items()}
        moments = {k: v for k, v in leaves.items() if isinstance(v, torch.Tensor)}
        numbers = {k: v for k, v in leaves.items() if k not in moments}
        return cls(optimizer.weights(), moments, numbers, replace(state))

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.trained.values(), *self.moments.values()))

    @property
    def on_gpu(self) -> bool:
        return any(t.device.type != "cpu" for t in self.trained.values())

    def copied(self) -> "Contents":
        """A copy in memory, which training does not change."""
        trained, moments = (
            {k: t.detach().to("cpu", copy=True) for k, t in tensors.items()} for tensors in (self.trained, self.moments)
        )
        return replace(self, trained=trained, moments=moments)


def save(folder: Path, contents: Contents) -> int:
    """Writes `folder/step-…` atomically and returns its bytes. Raises OSError, leaving no trace, if it cannot."""
    name = f"step-{contents.state.step:06d}"
    final, draft = folder / name, folder / f".{name}.tmp"
    needed = contents.nbytes + FREE_MARGIN_BYTES
    folder.mkdir(exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"a checkpoint needs {size(needed)} of disk, {size(free)} are free")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        save_file(_apart(contents.trained), draft / "trained.safetensors")
        save_file(_apart(contents.moments), draft / "optimizer.safetensors")
        for file in [*draft.iterdir()]:
            follow_umask(file)
        write_json(draft / "optimizer.json", contents.numbers)
        write_json(draft / "state.json", asdict(contents.state))
        _sync(*draft.iterdir(), draft)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(draft, final)
        _sync(folder)
    except SafetensorError as error:  # its way to say what the disk said
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return sum(f.stat().st_size for f in final.iterdir())


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    found = (p for p in folder.glob("step-*") if (p / "state.json").exists())
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def newest_whole(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The last checkpoint that can be read, None if there is none at all; and the later ones, with what is wrong with
    each. Raises UserError if there are only damaged ones."""
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(complete(folder)):
        if not (problem := damage(checkpoint)):
            return checkpoint, damaged
        damaged[checkpoint] = problem
    for checkpoint, problem in damaged.items():
        raise UserError(
            f"{checkpoint}: this checkpoint is damaged ({problem}), and so is every earlier one; remove "
            f"{folder}/step-* to train from the start"
        )
    return None, damaged


def damage(checkpoint: Path) -> str | None:
    """Returns the problem of a checkpoint, or None. Reads the headers and sizes of its files, not every byte."""
    try:
        read_state(checkpoint)
        read_json(checkpoint / "optimizer.json")
        for name in ("trained", "optimizer"):
            with safe_open(checkpoint / f"{name}.safetensors", "pt"):
                pass
    except (OSError, TypeError, ValueError, SafetensorError, UserError) as error:
        return first_line(error)
    return None


def set_aside(checkpoint: Path) -> None:
    """Renames a damaged checkpoint, so that it is no longer counted as one."""
    target = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(target, ignore_errors=True)
    os.rename(checkpoint, target)


def read_state(checkpoint: Path) -> State:
    return State(**json.loads((checkpoint / "state.json").read_text()))


def load(checkpoint: Path, optimizer: Optimizer, states: bool = True) -> State:
    """Puts a checkpoint's weights into what trains, and its states into the optimizer unless `states` is false."""
    saved = load_file(checkpoint / "trained.safetensors")
    assert saved.keys() == optimizer.weights().keys(), "the checkpoint is of another model"
    optimizer.load(saved, _states(checkpoint, optimizer) if states else None)
    return read_state(checkpoint).of_process(distributed.rank(), distributed.world())


def _states(checkpoint: Path, optimizer: Optimizer) -> States:
    """The optimizer's states, by parameter name."""
    states: States = {}
    numbers = read_json(checkpoint / "optimizer.json") or {}
    for leaf, value in (load_file(checkpoint / "optimizer.safetensors") | numbers).items():
        name, _, key = leaf.rpartition(".")
        states.setdefault(optimizer.name_of(int(name)) if name.isdigit() else name, {})[key] = value
    return states


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Removes all but the last `keep` and the best; and drafts that a killed process left."""
    for checkpoint in complete(folder)[:-keep]:
        if checkpoint.name != f"step-{best_step or 0:06d}":
            shutil.rmtree(checkpoint)
    for draft in folder.glob(".step-*.tmp"):
        shutil.rmtree(draft)


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As safetensors takes them: contiguous, no two in the same memory (as the maps of 8-bit moments are)."""
    seen, found = set(), {}
    for name, tensor in tensors.items():
        shared = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        found[name] = tensor.detach().clone() if shared else tensor.detach().contiguous()
    return found


def _sync(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
