"""One timed training by Tunesmith: python bench/tunesmith_trial.py CASE (JSON); the last line is the result."""

import json
import sys
import tempfile

import torch
from measure import ALPHA, LEARNING_RATE, RANK, SEQUENCE_LENGTH, Case, held_out_loss, mark, summary
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import tunesmith
from tunesmith.recipe import Recipe
from tunesmith.run import Run

NEVER = 10**6


def recipe(case: Case, output: str) -> Recipe:
    return Recipe.build(
        {
            "model": {"path": str(case.model), "dtype": case.dtype},
            "data": {"train": str(case.train_file), "eval_share": 0, "sequence_length": SEQUENCE_LENGTH},
            "adapter": {"kind": case.adapter, "rank": RANK, "alpha": ALPHA},
            "train": {
                "batch": case.batch,
                "max_steps": case.steps,
                "learning_rate": LEARNING_RATE,
                "epochs": 10,
                "schedule": "constant",
                "warmup_ratio": 0,
                "weight_decay": 0.0,
                "save_every": NEVER,
            },
            "evaluate": {"samples": 0},
            "output": output,
            "name": "run",
        }
    )


def watch_steps() -> list:
    """Marks each step as it is logged."""
    marks, log = [], Run.log

    def watched(run, event, **values):
        log(run, event, **values)
        if event == "step":
            marks.append(mark(values["tokens"], values["supervised_tokens"], values["loss"]))

    Run.log = watched
    return marks


def main(case: Case) -> dict:
    marks = watch_steps()
    with tempfile.TemporaryDirectory() as output:
        result = tunesmith.train(recipe(case, output)).result
        tokenizer = AutoTokenizer.from_pretrained(result)
        auto = AutoPeftModelForCausalLM if case.adapter == "lora" else AutoModelForCausalLM
        model = auto.from_pretrained(result, dtype=torch.float32)
        return summary(marks, case.warmup) | {"held_out": held_out_loss(model, tokenizer, case.held_out())}


if __name__ == "__main__":
    print(json.dumps(main(Case(**json.loads(sys.argv[1])))))
