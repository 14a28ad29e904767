"""What the benchmarks train on: conversations and models made from Python's own documentation, the same anywhere."""

import ast
import json
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Iterator
from inspect import cleandoc
from itertools import cycle
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# `generation` marks, for TRL's assistant_only_loss, what Tunesmith finds by itself: an answer and what ends it.
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Llama shapes by their parameters, embeddings (tied) included.
SHAPES = {
    "5M": dict(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "30M": dict(
        vocab_size=32768,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    "100M": dict(
        vocab_size=32768,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=6,
    ),
}


def conversations() -> list[dict]:
    """Questions and answers, many short and some long, shuffled. One in eight goes on for a second turn."""
    shuffled = random.Random(0)
    pairs = list(dict.fromkeys(_pairs()))  # Tunesmith drops duplicates, TRL does not
    shuffled.shuffle(pairs)
    rows = []
    while pairs:
        turns = [pairs.pop() for _ in range(min(len(pairs), 2 if len(rows) % 8 == 0 else 1))]
        rows.append(
            {
                "messages": [
                    {"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)
                ]
            }
        )
    return rows


def _pairs() -> Iterator[tuple[str, str]]:
    for name, text in sorted(pydoc_data.topics.topics.items()):
        yield f"Explain `{name}`.", cleandoc(text)
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and (text := ast.get_docstring(node)):
                yield f"What does {file.stem}.{node.name} do?", text
                yield f"In one line, what is {node.name}?", text.split("\n\n")[0]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_bytes(path: Path, size: int) -> int:
    """Repeats the conversations, numbered so that none is a duplicate, up to `size` bytes; returns how many rows."""
    count = written = 0
    with open(path, "w", encoding="utf-8") as file:
        for count, row in enumerate(cycle(conversations()), 1):
            first, *rest = row["messages"]
            first = {**first, "content": f"{first['content']} ({count})"}
            written += file.write(json.dumps({"messages": [first, *rest]}) + "\n")
            if written >= size:
                return count


def save_model(shape: str, folder: Path) -> None:
    """A Llama with random weights, and a byte-level BPE tokenizer trained on the language reference."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = save_tokenizer(SHAPES[shape]["vocab_size"], folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def save_tokenizer(vocabulary: int, folder: Path) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer
