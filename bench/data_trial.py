"""Encodes one file into an empty cache: python bench/data_trial.py FILE MODEL CACHE; the last line is the result."""

import json
import sys
import time
from pathlib import Path

import numpy as np

from tunesmith.data.dataset import prepare
from tunesmith.data.encode import Settings
from tunesmith.data.packing import micro_batches
from tunesmith.data.source import Sources
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.methods import Method, sft
from tunesmith.recipe import Data

STEP_ROWS, PACK_TOKENS = 32, 4096


def main(file: str, model: str, cache: str) -> dict:
    data = Data(train=file, eval_share=0, sequence_length=1024)
    settings = Settings(
        tokenizer=Tokenizer.load(model),
        method=Method(sft.Settings()),
        sequence_length=data.sequence_length,
        too_long=data.too_long,
    )
    began = time.monotonic()
    dataset = prepare(
        data, Sources.resolve(data), settings, Path(cache), Path(cache) / "ledger.jsonl", lambda rows, examples: None
    )
    store = dataset.train
    encoded = time.monotonic()
    order = range(len(store))
    for first in range(0, len(store), STEP_ROWS):
        micro_batches(np.array(order[first : first + STEP_ROWS]), store.sizes, PACK_TOKENS, True)
    packed = time.monotonic()
    return {
        "rows": len(store),
        "tokens": int(store.lengths.sum()),
        "encode_seconds": encoded - began,
        "pack_seconds": packed - encoded,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
