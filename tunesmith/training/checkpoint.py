"""Checkpoints: complete or absent, never half; safetensors and JSON, no pickle.

A folder `step-000200` holds trained.safetensors (what is trained), optimizer.safetensors and state.json. Data order,
learning rate and random numbers are functions of (seed, step), so the step is all their state.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunesmith.run import write_json

FREE_MARGIN_BYTES = 64 * 2**20


@dataclass
class State:
    """What a run has come to, beside its tensors."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    evals_without_gain: int = 0
    micro_batch_tokens: int = 0  # of the plan, or less since a step ran out of memory
    checkpointing: bool = False


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(folder: Path, model, optimizer, state: State) -> int:
    """Writes `folder/step-…` atomically and returns its bytes. Raises OSError, leaving no trace, if it cannot."""
    final, draft = folder / f"step-{state.step:06d}", folder / f".step-{state.step:06d}.tmp"
    trained, moments = trained_tensors(model), _flatten(optimizer)
    needed = sum(t.nbytes for t in (*trained.values(), *moments.values())) + FREE_MARGIN_BYTES
    folder.mkdir(exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"a checkpoint needs {needed / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir()
        save_file({k: t.detach().contiguous() for k, t in trained.items()}, draft / "trained.safetensors")
        save_file(moments, draft / "optimizer.safetensors")
        write_json(draft / "state.json", asdict(state))
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


def read_state(checkpoint: Path) -> State:
    return State(**json.loads((checkpoint / "state.json").read_text()))


def load(checkpoint: Path, model, optimizer=None) -> State:
    """Puts a checkpoint's tensors into the model, and into the optimizer if one is given."""
    trained = trained_tensors(model)
    saved = load_file(checkpoint / "trained.safetensors")
    assert saved.keys() == trained.keys(), "the checkpoint is of another model"
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])
    if optimizer is not None:
        _unflatten(optimizer, load_file(checkpoint / "optimizer.safetensors"))
    return read_state(checkpoint)


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Removes all but the last `keep` and the best; and drafts that a killed process left."""
    for checkpoint in complete(folder)[:-keep]:
        if checkpoint.name != f"step-{best_step or 0:06d}":
            shutil.rmtree(checkpoint)
    for draft in folder.glob(".step-*.tmp"):
        shutil.rmtree(draft)


def _flatten(optimizer) -> dict[str, torch.Tensor]:
    states = optimizer.state_dict()["state"]
    return {f"{i}.{key}": t.contiguous() for i, values in states.items() for key, t in values.items()}


def _unflatten(optimizer, tensors: dict[str, torch.Tensor]) -> None:
    states: dict[int, dict] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _sync(*paths: Path) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
