"""Builds the demo's starter model: a small Llama, pretrained on this machine on Python's documentation.

It takes the place of a downloaded base model: it knows text, but not chat.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import tunesmith
from tunesmith.demo import corpus
from tunesmith.files import write_atomic, write_json
from tunesmith.recipe import Recipe

VOCABULARY = 4096
PRETRAINING_STEPS = 150
END_OF_TEXT, START, END = SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Trains a byte-level BPE tokenizer (Sennrich et al. 2016) and writes it in the form of AutoTokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END,  # an answer ends with it, so generation stops there
            "pad_token": END_OF_TEXT,
            "additional_special_tokens": [START],
            "clean_up_tokenization_spaces": False,
            "model_max_length": starter_config()["max_position_embeddings"],
        },
    )
    write_atomic(folder / "chat_template.jinja", CHAT_TEMPLATE)


def starter_config() -> dict:
    """Returns the config.json of a Llama with 3.5 million parameters."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.06,  # 1 / sqrt(hidden_size)
        "eos_token_id": SPECIAL.index(END),
        "pad_token_id": SPECIAL.index(END_OF_TEXT),
        "bos_token_id": None,
        "dtype": "float32",
    }


def pretraining(folder: Path) -> Recipe:
    """Returns the recipe that pretrains the starter model in `folder` on `folder`/text.jsonl."""
    return Recipe.build(
        {
            "model": {"path": str(folder), "initialize": "random", "dtype": "float32"},
            "data": {"train": str(folder / "text.jsonl"), "eval_share": 0, "sequence_length": 128},
            "method": {"name": "cpt"},
            "adapter": {"kind": "full"},
            "train": {
                "max_steps": PRETRAINING_STEPS,
                "batch": 8,
                "learning_rate": 1.5e-3,
                "save_every": PRETRAINING_STEPS,
            },
            "name": "pretraining",
            "output": str(folder),
        },
        "demo",
    )


def cached_starter(cache: Path) -> Path:
    """Returns the folder of the pretrained starter model. The first call builds it, which takes about a minute."""
    folder = cache / f"starter-{_version()}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".starter-", dir=cache) as draft:
            result = _make(Path(draft))
            try:
                result.rename(folder)
            except OSError:
                if not folder.exists():  # if it exists, another process built the same model first
                    raise
    return folder


def _make(draft: Path) -> Path:
    """Writes config, tokenizer and text into an empty folder, pretrains there, and returns the result's folder."""
    texts = [text for _, text in corpus.texts()]
    build_tokenizer(texts, draft)
    write_json(draft / "config.json", starter_config())
    write_atomic(draft / "text.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tunesmith.train(pretraining(draft)).result


def _version() -> str:
    """Returns a hash of everything that the model depends on: Python's version, config, template and recipe."""
    made_from = [sys.version, starter_config(), CHAT_TEMPLATE, pretraining(Path()).dump()]
    return hashlib.blake2b(repr(made_from).encode(), digest_size=6).hexdigest()
