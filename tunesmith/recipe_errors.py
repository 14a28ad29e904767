"""Messages for mistakes in a recipe: pydantic's findings in plain words, and the settings' names in other tools."""

import difflib
import re
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError

# Keys of Axolotl, LLaMA-Factory and the Transformers Trainer, and their names in a recipe.
FOREIGN_KEYS = {
    "base_model": "model.path",
    "model_name_or_path": "model.path",
    "model_name": "model.path",
    "datasets": "data.train",
    "dataset": "data.train",
    "test_datasets": "data.eval",
    "eval_dataset": "data.eval",
    "val_set_size": "data.eval_share",
    "val_size": "data.eval_share",
    "sequence_len": "data.sequence_length",
    "cutoff_len": "data.sequence_length",
    "max_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "sample_packing": "data.packing",
    "packing": "data.packing",
    "load_in_4bit": "model.quantize: nf4",
    "load_in_8bit": "model.quantize: int8",
    "quantization_bit": "model.quantize",
    "chat_template": "model.chat_template",
    "template": "model.chat_template",
    "finetuning_type": "adapter.kind",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_target": "adapter.targets",
    "lora_target_modules": "adapter.targets",
    "peft_use_dora": "adapter.dora",
    "use_dora": "adapter.dora",
    "stage": "method.name",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "learning_rate": "train.learning_rate",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "optim": "train.optimizer",
    "warmup_ratio": "train.warmup_ratio",
    "weight_decay": "train.weight_decay",
    "micro_batch_size": "train.micro_batch",
    "per_device_train_batch_size": "train.micro_batch",
    "gradient_accumulation_steps": "train.batch (the batch of a whole step)",
    "max_grad_norm": "train.max_grad_norm",
    "eval_steps": "train.eval_every",
    "save_steps": "train.save_every",
    "output_dir": "output",
    "report_to": "trackers",
}

# Values that other tools use for a key, and how a recipe writes them.
VALUE_HINTS = {
    "adapter.kind": {
        "qlora": "QLoRA is adapter.kind: lora with model.quantize: nf4",
        "dora": "DoRA is adapter.kind: lora with adapter.dora: true",
        "rslora": "rsLoRA is adapter.kind: lora with adapter.rslora: true",
    },
    "model.quantize": {
        "4bit": "4 bits are nf4",
        "int4": "4 bits are nf4",
        "8bit": "8 bits are int8",
        "int8bit": "8 bits are int8",
    },
    "method.name": {"pt": "continued pretraining is cpt", "pretrain": "continued pretraining is cpt"},
    "model.dtype": {
        "bf16": "bf16 is bfloat16",
        "fp32": "fp32 is float32",
        "fp16": "fp16 is float16",
    },
}

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping with keys of its own",
}
BOUNDS = {
    "greater_than": ("a number greater than {}", "gt"),
    "greater_than_equal": ("a number of at least {}", "ge"),
    "less_than": ("a number less than {}", "lt"),
    "less_than_equal": ("a number of at most {}", "le"),
    "too_short": ("a list of {} or more", "min_length"),
}
CONFLICT = "conflict"  # the type of an error about values that do not go together
UNION_MEMBERS = ("int", "float", "str", "bool")  # parts of pydantic's locations that are not recipe keys


def key_of(problem: dict[str, Any]) -> str:
    """Returns the dotted recipe key of a pydantic error, without the union members that pydantic tried."""
    parts = []
    for part in problem["loc"]:
        if isinstance(part, str) and (part in UNION_MEMBERS or not part.isidentifier()):
            break
        parts.append(str(part))
    return ".".join(parts)


def conflict(key: str, message: str) -> InitErrorDetails:
    """Returns the pydantic error for a value that does not go with another key's."""
    kind = PydanticCustomError(CONFLICT, "{message}", {"message": message})
    return InitErrorDetails(type=kind, loc=tuple(key.split(".")), input=None)


def wrong_value(key: str, problems: list[dict[str, Any]]) -> str:
    """Returns the message for a key's value, from all pydantic errors about it: one for each member of a union."""
    if problems[0]["type"] == "missing":
        return f"`{key}` is missing"
    if problems[0]["type"] == CONFLICT:
        message: str = problems[0]["msg"]
        return message
    value = problems[0]["input"]
    own = [p["msg"].removeprefix("Value error, ") for p in problems if p["type"] == "value_error"]
    if own:
        return f"`{key}`: {own[0]}, got {value!r}" if key else own[0]
    choices = list(dict.fromkeys(choice for problem in problems for choice in _wanted(problem)))
    wanted = " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
    if value is None or value == []:
        return f"`{key}` is empty: it must be {wanted}; give a value or remove the line"
    return f"`{key}` must be {wanted}, not {value!r}" + _hint(key, value, problems)


def foreign(keys: list[str]) -> str | None:
    """Returns a message with the recipe keys for the keys of another tool's file, or None if no key is known."""
    names = [f"{key} is {FOREIGN_KEYS[key]}" for key in keys if key in FOREIGN_KEYS]
    if not names:
        return None
    unknown_keys = [key for key in keys if key not in FOREIGN_KEYS]
    unknown = f"; unknown: {', '.join(unknown_keys)}" if unknown_keys else ""
    return f"not a Tunesmith recipe. In a recipe, {', '.join(names)}{unknown}"


def _wanted(problem: dict[str, Any]) -> list[str]:
    """Returns the allowed values that a pydantic error names, as one text each."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return [choice.strip("'") for choice in re.split(", | or ", context["expected"])]
    if kind in BOUNDS:
        words, name = BOUNDS[kind]
        return [words.format(int(context[name]) if context[name] == int(context[name]) else context[name])]
    return [KINDS.get(kind.partition("_")[0]) or problem["msg"].removeprefix("Input should be ")]


def _hint(key: str, value: Any, problems: list[dict[str, Any]]) -> str:
    if not isinstance(value, str):
        return ""
    text = value.lower().replace("-", "").replace("_", "")
    if text in VALUE_HINTS.get(key, {}):
        return f"; {VALUE_HINTS[key][text]}"
    choices = [choice for problem in problems for choice in _wanted(problem)]
    near = difflib.get_close_matches(value.lower(), choices, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""
