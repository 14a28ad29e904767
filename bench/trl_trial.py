"""One timed training by TRL's SFTTrainer: python bench/trl_trial.py CASE (JSON); the last line is the result.

Its settings are Tunesmith's where both have them (fused AdamW, constant learning rate, loss on the answers, no
gradient checkpointing) and else the fastest: no pinned memory, no loader processes (the rows are in memory), no
logging. VARIANTS are what `run.py` tries; the fastest is compared.
"""

import json
import sys
import tempfile

import torch
from datasets import Dataset
from measure import ALPHA, LEARNING_RATE, RANK, SEQUENCE_LENGTH, Case, held_out_loss, mark, summary
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from tunesmith.data.pack import Schedule

# `rows`: rows in one forward pass; None: packed to SEQUENCE_LENGTH, as many packs as hold the batch's tokens.
VARIANTS = {
    "padded, same rows a step": dict(rows=8, train_sampling_strategy="sequential"),
    "padded, group_by_length": dict(rows=8, train_sampling_strategy="group_by_length"),
    "padded, group_by_length, whole batch": dict(rows=32, train_sampling_strategy="group_by_length"),
    "packed bfd": dict(rows=None, packing=True, packing_strategy="bfd"),
}


class Counting(SFTTrainer):
    """Counts real and supervised tokens of each step, and keeps its loss."""

    tokens = supervised = loss = 0

    def compute_loss(self, model, inputs, *args, **kwargs):
        mask = inputs.get("attention_mask")
        self.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        self.supervised += int((inputs["labels"] != -100).sum())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.loss += loss.item()
        return loss


class Marks(TrainerCallback):
    def __init__(self):
        self.marks, self.trainer = [], None

    def on_step_end(self, *args, **kwargs):
        t = self.trainer
        self.marks.append(mark(t.tokens, t.supervised, t.loss))
        t.tokens = t.supervised = t.loss = 0


def rows(case: Case, tokenizer) -> tuple[Dataset, float]:
    """The training rows in the order in which Tunesmith's seed 0 visits them, and their mean length in tokens."""
    import numpy as np

    found = [json.loads(line) for line in case.train_file.open(encoding="utf-8")]
    order = Schedule(np.ones(len(found)), case.batch, 10, 0).epoch(0)
    lengths = [len(ids) for ids in tokenizer.apply_chat_template([r["messages"] for r in found])["input_ids"]]
    return Dataset.from_list([found[i] for i in order]), sum(lengths) / len(lengths)


def config(case: Case, mean_length: float, output: str) -> SFTConfig:
    variant = dict(VARIANTS[case.variant])
    at_once = variant.pop("rows")
    if at_once is None:
        size, accumulate = max(1, round(case.batch * mean_length / SEQUENCE_LENGTH)), 1
    else:
        size = min(at_once, case.batch)
        accumulate = case.batch // size
    weights = "bfloat16" if case.adapter == "lora" and case.dtype == "bfloat16" else "float32"
    return SFTConfig(
        output_dir=output, per_device_train_batch_size=size, gradient_accumulation_steps=accumulate,
        max_steps=case.steps, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0,
        weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.95, max_grad_norm=1.0, optim="adamw_torch_fused",
        bf16=case.dtype == "bfloat16", use_cpu=case.device == "cpu", gradient_checkpointing=False,
        max_length=SEQUENCE_LENGTH, assistant_only_loss=True, logging_strategy="no", save_strategy="no",
        report_to="none", dataloader_pin_memory=case.device != "cpu", disable_tqdm=True, dataset_num_proc=None,
        model_init_kwargs={"attn_implementation": "sdpa", "dtype": weights}, **variant)


def main(case: Case) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    data, mean_length = rows(case, tokenizer)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    marks = Marks()
    with tempfile.TemporaryDirectory() as output:
        trainer = Counting(str(case.model), config(case, mean_length, output), train_dataset=data,
                           processing_class=tokenizer, peft_config=lora if case.adapter == "lora" else None,
                           callbacks=[marks])
        marks.trainer = trainer
        trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).float()
    return summary(marks.marks, case.warmup) | {"held_out": held_out_loss(model, tokenizer, case.held_out())}


if __name__ == "__main__":
    print(json.dumps(main(Case(**json.loads(sys.argv[1])))))
