"""One timed training by Axolotl: python bench/axolotl_trial.py CASE (JSON); the last line is the result.

In an environment of its own (bench/peers/axolotl.txt). Settings as in trl_trial.py.
"""

import json
import os
import sys
import tempfile

os.environ |= {"AXOLOTL_DO_NOT_TRACK": "1", "ACCELERATE_USE_CPU": "true"}

import torch
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from axolotl.core.trainers.base import AxolotlTrainer
from axolotl.train import setup_model_and_trainer
from axolotl.utils.dict import DictDefault
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
from transformers import AutoTokenizer


def settings(case: Case, mean_length: float, output: str) -> dict:
    variant = dict(VARIANTS["axolotl"][case.variant])
    size, accumulate = case.micro_batch(variant.pop("rows"), mean_length)
    lora = dict(adapter="lora", lora_r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, lora_target_linear=True)
    return dict(
        base_model=str(case.model),
        sequence_len=SEQUENCE_LENGTH,
        output_dir=output,
        val_set_size=0,
        dataset_prepared_path=output + "/prepared",
        datasets=[dict(path=str(case.ordered_file), ds_type="json", type="chat_template", field_messages="messages")],
        max_steps=case.steps,
        num_epochs=1,
        micro_batch_size=size,
        gradient_accumulation_steps=accumulate,
        learning_rate=LEARNING_RATE,
        lr_scheduler="constant",
        optimizer="adamw_torch_fused",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=case.dtype == "bfloat16",
        fp16=False,
        tf32=False,
        gradient_checkpointing=False,
        attn_implementation="sdpa",
        save_strategy="no",
        logging_steps=1000,
        dataloader_pin_memory=case.device != "cpu",
        use_tensorboard=False,
        **(lora if case.adapter == "lora" else {}),
        **variant,
    )


def main(case: Case) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    _, mean_length = ordered_rows(case, tokenizer)
    with tempfile.TemporaryDirectory() as output:
        config = load_cfg(DictDefault(settings(case, mean_length, output)))
        trainer, *_ = setup_model_and_trainer(config, load_datasets(cfg=config))
        marks = TrainerMarks(AxolotlTrainer)
        trainer.add_callback(marks)
        trainer.train()
    return summary(marks.marks, case.warmup) | {
        "held_out": held_out_loss(marks.model.to(torch.float32), tokenizer, case.held_out())
    }


if __name__ == "__main__":
    print(json.dumps(main(Case(**json.loads(sys.argv[1])))))
