"""One timed training by LLaMA-Factory: python bench/llama_factory_trial.py CASE (JSON); the last line is the result.

In an environment of its own (bench/peers/llama_factory.txt). Settings as in trl_trial.py. Its template is written to
give the very tokens of the model's chat template.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from transformers import AutoTokenizer
from transformers.utils import is_torchaudio_available

# It imports torchaudio, for sound alone, and there is none for torch's CPU build. transformers must not see this one.
if not is_torchaudio_available():
    sys.modules["torchaudio"] = ModuleType("torchaudio")

import torch
from llamafactory.data.formatter import StringFormatter
from llamafactory.data.template import register_template
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from llamafactory.train.tuner import run_exp
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

DATASET = {
    "bench": {
        "file_name": "train.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
}


def settings(case: Case, mean_length: float, folder: Path) -> dict:
    variant = dict(VARIANTS["llama_factory"][case.variant])
    size, accumulate = case.micro_batch(variant.pop("rows"), mean_length)
    return dict(
        stage="sft",
        do_train=True,
        model_name_or_path=str(case.model),
        finetuning_type=case.adapter,
        lora_rank=RANK,
        lora_alpha=ALPHA,
        lora_target="all",
        lora_dropout=0.0,
        template="bench",
        dataset="bench",
        dataset_dir=str(folder),
        cutoff_len=SEQUENCE_LENGTH,
        output_dir=str(folder / "out"),
        max_steps=case.steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulate,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=case.dtype == "bfloat16",
        use_cpu=case.device == "cpu",
        flash_attn="sdpa",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_gradient_checkpointing=True,
        disable_tqdm=True,
        dataloader_pin_memory=case.device != "cpu",
        **variant,
    )


def main(case: Case) -> dict:
    register_template(
        "bench",
        format_user=StringFormatter(slots=["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]),
        format_assistant=StringFormatter(slots=["{{content}}<|im_end|>\n"]),
        efficient_eos=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(case.model)
    rows, mean_length = ordered_rows(case, tokenizer)
    marks = TrainerMarks(CustomSeq2SeqTrainer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dataset_info.json").write_text(json.dumps(DATASET))
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run_exp(settings(case, mean_length, folder), callbacks=[marks])
    return summary(marks.marks, case.warmup) | {
        "held_out": held_out_loss(marks.model.to(torch.float32), tokenizer, case.held_out())
    }


if __name__ == "__main__":
    print(json.dumps(main(Case(**json.loads(sys.argv[1])))))
