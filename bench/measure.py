"""What the tools' trials share: the rows, the window that is timed, the loss by which what they learned is compared.

Imported in environments that have not Tunesmith.
"""

import json
import resource
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import TrainerCallback

LEARNING_RATE, RANK, ALPHA = 1e-3, 16, 32
SEQUENCE_LENGTH = 1024
HELD_OUT_ROWS = 64


@dataclass(frozen=True)
class Case:
    """One training job. `variant` names a peer's settings; `held_out` rows are in no tool's training data."""

    tool: str
    shape: str
    adapter: str
    dtype: str
    batch: int
    steps: int
    warmup: int
    folder: str
    device: str = "cpu"
    variant: str = ""

    @property
    def model(self) -> Path:
        return Path(self.folder) / self.shape

    @property
    def train_file(self) -> Path:
        return Path(self.folder) / "train.jsonl"

    @property
    def ordered_file(self) -> Path:
        """The training rows in the order in which Tunesmith's seed 0 visits them."""
        return Path(self.folder) / f"ordered-{self.batch}.jsonl"

    def micro_batch(self, rows: int | None, mean_length: float) -> tuple[int, int]:
        """(size, accumulation) for `rows` in a forward pass; None: packed, so many packs as hold the batch's tokens."""
        if rows is None:
            return max(1, round(self.batch * mean_length / SEQUENCE_LENGTH)), 1
        size = min(rows, self.batch)
        return size, self.batch // size

    def held_out(self) -> list[dict]:
        return [json.loads(line) for line in (Path(self.folder) / "held_out.jsonl").open(encoding="utf-8")]

    def dumps(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Mark:
    """The end of an optimizer step: wall clock, processor time of the whole process, real tokens of the step."""

    seconds: float
    core_seconds: float
    tokens: int
    supervised: int
    loss: float


def ordered_rows(case: Case, tokenizer) -> tuple[list[dict], float]:
    """The rows for a tool that does not shuffle, and their mean length in tokens."""
    found = [json.loads(line) for line in case.ordered_file.open(encoding="utf-8")]
    lengths = [len(ids) for ids in tokenizer.apply_chat_template([r["messages"] for r in found])["input_ids"]]
    return found, statistics.mean(lengths)


def mark(tokens: int, supervised: int, loss: float) -> Mark:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Mark(time.monotonic(), used.ru_utime + used.ru_stime, tokens, supervised, loss)


class TrainerMarks(TrainerCallback):
    """Marks the steps of a class of transformers' Trainer: real and supervised tokens, and the loss."""

    def __init__(self, trainer_class):
        self.marks, self.model = [], None
        self._tokens = self._supervised = self._loss = 0
        compute_loss, training_step = trainer_class.compute_loss, trainer_class.training_step

        def counted(trainer, model, inputs, *args, **kwargs):
            self._tokens += int((inputs["input_ids"] != trainer.processing_class.pad_token_id).sum())
            self._supervised += int((inputs["labels"] != -100).sum())
            return compute_loss(trainer, model, inputs, *args, **kwargs)

        def summed(trainer, *args, **kwargs):
            loss = training_step(trainer, *args, **kwargs)
            self._loss += loss.item()
            return loss

        trainer_class.compute_loss, trainer_class.training_step = counted, summed

    def on_step_end(self, *args, model, **kwargs):
        self.model = model
        self.marks.append(mark(self._tokens, self._supervised, self._loss))
        self._tokens = self._supervised = self._loss = 0


def summary(marks: list[Mark], warmup: int) -> dict:
    """Rates from the end of warm-up to the end of the last step."""
    began, ended, window = marks[warmup - 1], marks[-1], marks[warmup:]
    seconds = ended.seconds - began.seconds
    tokens, supervised = sum(m.tokens for m in window), sum(m.supervised for m in window)
    return {
        "tokens_per_second": tokens / seconds,
        "supervised_per_second": supervised / seconds,
        "tokens_per_core_second": tokens / (ended.core_seconds - began.core_seconds),
        "tokens_per_step": statistics.mean(m.tokens for m in window),
        "losses": [m.loss for m in marks],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def held_out_loss(model, tokenizer, rows: list[dict]) -> float:
    """Mean cross-entropy of the answers, one row at a time: nothing of either tool is in it."""
    import torch
    import torch.nn.functional as F

    device = next(model.parameters()).device
    total = count = 0
    model.eval()
    for row in rows:
        encoded = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        ids = torch.tensor(encoded["input_ids"], device=device)
        answer = torch.tensor(encoded["assistant_masks"], device=device).bool()[1:]
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        total += F.cross_entropy(logits[answer], ids[1:][answer], reduction="sum").item()
        count += int(answer.sum())
    return total / count
