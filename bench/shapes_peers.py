"""One LoRA point of shapes.py by TRL's SFTTrainer, alone or with Unsloth's models, in a process of its own.

The work is Tunesmith's: rows of random tokens, all of equal length, so neither padding nor packing costs anything; the
same adapter, optimizer and tokens a step. `variant`: `kept` activations, as many rows a pass as fit, or `recomputed`,
all rows in one. The Unsloth part has not been run: it needs a GPU even to be imported.
"""

import gc
import statistics
import tempfile
import time
from pathlib import Path

from points import Point

RANK, ALPHA, WARMUP, STEPS, SECONDS, TOKENS = 16, 32, 1, 5, 12, {"cuda": 16384, "cpu": 4096}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(point: Point) -> dict:
    if point.tool == "unsloth":
        import unsloth  # noqa: F401  it changes transformers and TRL, so it comes before them
    import torch
    from operations import per_token

    rows = max(1, TOKENS[point.device] // point.length)
    at_once = rows
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                found = _train(point, rows, at_once, Path(folder))
                break
            except torch.OutOfMemoryError:
                if at_once == 1:
                    raise
            at_once //= 2
            gc.collect()
            torch.cuda.empty_cache()
    how = f"rank {RANK}, activations {point.variant}, {at_once * point.length:,} tokens a pass"
    return found | {"operations_per_token": per_token(point.config(), point.length, False), "how": how}


def _train(point: Point, rows: int, at_once: int, folder: Path) -> dict:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from tunesmith.model.memory import peak_bytes

    tokenizer, random = _tokenizer(folder / "tokenizer"), torch.Generator().manual_seed(0)
    ids = torch.randint(tokenizer.vocab_size, (rows * (WARMUP + STEPS), point.length), generator=random)
    recomputed = point.variant == "recomputed"
    config = SFTConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=rows // at_once,
        max_steps=WARMUP + STEPS,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=True,
        use_cpu=point.device == "cpu",
        gradient_checkpointing=recomputed,
        max_length=point.length,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=point.device != "cpu",
    )
    model, adapter = _unsloth(point, folder) if point.tool == "unsloth" else _plain(point)
    clock = _clock(rows * point.length)
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_dict({"input_ids": ids.tolist()}),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[clock],
    )
    trainer.train()
    rates = clock.rates[WARMUP:]
    return {
        "tokens_per_second": statistics.median(rates),
        "spread": (min(rates), max(rates)),
        "steps": len(rates),
        "allocated_bytes": peak_bytes(torch.device(point.device)),
        "reserved_bytes": torch.cuda.max_memory_reserved() if point.device == "cuda" else 0,
    }


def _clock(tokens: int):
    """A callback that notes each step's rate, and ends the training when that took long enough."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self):
            self.rates, self._began = [], 0.0

        def on_step_begin(self, *args, **kwargs):
            self._began = time.monotonic()

        def on_step_end(self, args, state, control, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.rates.append(tokens / (time.monotonic() - self._began))
            if len(self.rates) == WARMUP and torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            late = sum(tokens / rate for rate in self.rates[WARMUP:]) > SECONDS
            control.should_training_stop |= late and len(self.rates) > WARMUP + 1

    return Clock()


def _tokenizer(folder: Path):
    """A small one: it only has to be there, as the rows are tokens already."""
    import corpus
    from transformers import AutoTokenizer

    if not folder.exists():
        corpus.save_tokenizer(1000, folder)
    return AutoTokenizer.from_pretrained(folder)


def _plain(point: Point):
    """The model with random weights on its device, and the adapter for TRL to add."""
    import torch
    from peft import LoraConfig

    adapter = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    return _random(point, torch), adapter


def _unsloth(point: Point, folder: Path):
    """The same through a folder, as Unsloth loads models, with its own adapter."""
    import torch
    from unsloth import FastLanguageModel

    saved = folder / "model"
    if not saved.exists():
        _random(point, torch).save_pretrained(saved)
        gc.collect()
        torch.cuda.empty_cache()
        _tokenizer(folder / "tokenizer").save_pretrained(saved)
    model, _ = FastLanguageModel.from_pretrained(
        str(saved), max_seq_length=point.length, dtype=torch.bfloat16, load_in_4bit=False
    )
    adapted = FastLanguageModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0,
        bias="none",
        target_modules=PROJECTIONS,
        use_gradient_checkpointing="unsloth" if point.variant == "recomputed" else False,
    )
    return adapted, None


def _random(point: Point, torch):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(point.device):
        return AutoModelForCausalLM.from_config(point.config(), dtype=torch.bfloat16, attn_implementation="sdpa")
