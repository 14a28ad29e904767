"""A script for Python with Transformers 4: makes a base as its maker published it, or tells what it makes of a folder.

transformers_4.py make FOLDER    saves model and tokenizer into FOLDER, which has a tokenizer.json; standard input:
                                 {config, values, model, tokenizer, tokens, in_settings}
transformers_4.py ask FOLDER     standard input {texts, conversations, ids}; writes the same keys, `ids` as logits
"""

import json
import sys
from pathlib import Path

import torch
import transformers


def make(folder: Path, wanted: dict) -> None:
    config = getattr(transformers, wanted["config"])(**wanted["values"])
    torch.manual_seed(0)
    getattr(transformers, wanted["model"])(config).save_pretrained(folder)
    tokenizer = getattr(transformers, wanted["tokenizer"])(
        tokenizer_file=str(folder / "tokenizer.json"), **wanted["tokens"]
    )
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder, save_jinja_files=not wanted["in_settings"])


def ask(folder: Path, asked: dict) -> dict:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    architecture = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model = architecture.from_pretrained(folder, dtype="auto").eval()
    with torch.inference_mode():
        logits = model(torch.tensor([asked["ids"]])).logits[0].float()
    return {
        "version": transformers.__version__,
        "ids": logits.tolist(),
        "texts": [tokenizer(text, add_special_tokens=False).input_ids for text in asked["texts"]],
        "conversations": [
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            for messages in asked["conversations"]
        ],
    }


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    found = {"make": make, "ask": ask}[sys.argv[1]](Path(sys.argv[2]), json.load(sys.stdin))
    print(json.dumps(found))
