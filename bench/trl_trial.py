"""One timed training by TRL's SFTTrainer: python bench/trl_trial.py CASE (JSON); the last line is the result.

Its settings are Tunesmith's where both have them (fused AdamW, constant learning rate, loss on the answers, no
gradient checkpointing) and else the fastest: no pinned memory, no loader processes (the rows are in memory), no
logging.
"""

import json
import sys
import tempfile

from datasets import Dataset
from measure import (
    ALPHA,
    LEARNING_RATE,
    RANK,
    SEQUENCE_LENGTH,
    Case,
    TrainerMarks,
    held_out_loss,
    ordered_rows,
    summary,
)
from peers import VARIANTS
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer


def config(case: Case, mean_length: float, output: str) -> SFTConfig:
    variant = dict(VARIANTS["trl"][case.variant])
    size, accumulate = case.micro_batch(variant.pop("rows"), mean_length)
    weights = "bfloat16" if case.adapter == "lora" and case.dtype == "bfloat16" else "float32"
    return SFTConfig(
        output_dir=output,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulate,
        max_steps=case.steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=case.dtype == "bfloat16",
        use_cpu=case.device == "cpu",
        gradient_checkpointing=False,
        max_length=SEQUENCE_LENGTH,
        assistant_only_loss=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=case.device != "cpu",
        disable_tqdm=True,
        dataset_num_proc=None,
        model_init_kwargs={"attn_implementation": "sdpa", "dtype": weights},
        **variant,
    )


def main(case: Case) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    rows, mean_length = ordered_rows(case, tokenizer)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
    marks = TrainerMarks(SFTTrainer)
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            str(case.model),
            config(case, mean_length, output),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora if case.adapter == "lora" else None,
            callbacks=[marks],
        )
        trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).float()
    return summary(marks.marks, case.warmup) | {"held_out": held_out_loss(model, tokenizer, case.held_out())}


if __name__ == "__main__":
    print(json.dumps(main(Case(**json.loads(sys.argv[1])))))
