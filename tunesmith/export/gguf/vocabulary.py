"""Converts a folder's tokenizer to GGUF metadata, if llama.cpp gives the same ids.

Nothing is inferred from the model's name. For a byte-level tokenizer, this module splits awkward texts with each of
llama.cpp's pre-tokenizers, to find the one that splits alike. It compares the ids on those texts, and on conversations
that the chat template writes.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.export.gguf.sentencepiece import SPACE, SentencePiece
from tunesmith.export.parity.samples import CAPITALS, LEADING, TEXTS, written
from tunesmith.inference.gguf_splits import SPLITS, splitter
from tunesmith.model.load import eos_ids

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types

# Pre-tokenizers that llama.cpp's regular expressions only approximate; if two fit, the closer one is first in SPLITS.
_CAPITALS = "llama.cpp splits non-ASCII words in capitals (ÉCOLE) differently from the tokenizer, so they get other ids"
_MARKS = "llama.cpp splits words with combining marks (नमस्ते) differently from the tokenizer, so they get other ids"
_WHITESPACE = (
    "llama.cpp keeps whitespace beside special tokens that the tokenizer consumes, so messages that begin or end "
    "with whitespace get other ids"
)
NEARLY = {"granite-embed-multi-97m": [_CAPITALS], "gpt-4o": [_CAPITALS, _MARKS], "tekken": [_CAPITALS, _MARKS]}

# llama.cpp's rule for Phi-3: these tokens do not consume whitespace, all others do. llama.cpp looks up each of them.
PHI3_PLAIN, PHI3_TAKING = {"<unk>", "<s>", "<|endoftext|>"}, {"</s>"}

# Tokens that llama.cpp always treats as stop tokens, because of their text.
STOPS = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
}


@dataclass(frozen=True)
class Vocabulary:
    metadata: dict[str, Any]
    """By GGUF key."""
    strips: bool
    """Whether its special tokens consume whitespace, which llama.cpp does for a model with phi-3 in its name."""
    notes: list[str]
    """Differences between llama.cpp and the model's own tokenizer, for the user."""


@dataclass(frozen=True)
class _Tokens:
    texts: list[str]
    kinds: list[int]
    special: list[tuple[str, int]]
    strips: bool


def vocabulary_of(folder: Path, rows: int, stop_ids: tuple[int, ...] = ()) -> Vocabulary:
    """Returns the vocabulary of a folder's tokenizer. `rows` are those of the embedding, `stop_ids` further stop tokens
    besides the eos in generation_config.json.

    Raises UserError for a tokenizer that llama.cpp cannot reproduce exactly.
    """
    own = Tokenizer.load(folder)
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    if file["model"].get("type") != "BPE":
        raise _refused(folder, f"its model is {file['model'].get('type')}, and only BPE can be converted exactly")
    splitters = [part["type"] for part in _parts(file["pre_tokenizer"], "pretokenizers")]
    tokens = _tokens(folder, file, own, rows, "ByteLevel" in splitters)
    if "ByteLevel" in splitters:
        metadata, notes = _byte_level(folder, file, own, tokens)
    else:
        metadata, notes = _sentencepiece(folder, file, own, tokens)
    metadata |= {"tokenizer.ggml.tokens": tokens.texts, "tokenizer.ggml.token_type": tokens.kinds}
    metadata |= _named(folder, own, tokens, stop_ids)
    if own.template_name == "own":
        metadata["tokenizer.chat_template"] = own.chat_template
    return Vocabulary(metadata, tokens.strips, notes)


def _tokens(folder: Path, file: dict, own: Tokenizer, rows: int, byte_level: bool) -> _Tokens:
    texts, kinds = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    for text, number in file["model"]["vocab"].items():
        if number < rows:
            texts[number], kinds[number] = text, NORMAL
            if file["model"].get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
                kinds[number] = BYTE
    special = []
    for token in file["added_tokens"]:
        if token["id"] >= rows:
            raise _refused(folder, f"its token {token['content']} has no row in the embedding")
        shown = token["content"]
        if token["normalized"] and not token["special"]:
            shown = shown.replace(SPACE, " ")  # the tokenizer matches it after replacing spaces by ▁, llama.cpp before
        texts[token["id"]], kinds[token["id"]] = shown, CONTROL if token["special"] else USER_DEFINED
        special.append((shown, token["id"]))
    unknown = file["model"].get("unk_token")
    if unknown in texts and "<0x00>" in texts:
        kinds[texts.index(unknown)] = UNKNOWN
    cut = next((text for text in texts if "\0" in text), None)
    if cut is not None:
        raise _refused(folder, f"its token {cut!r} has the character NUL, at which llama.cpp truncates it")
    twice = next((text for text, count in Counter(texts).items() if count > 1), None)
    if twice is not None:
        raise _refused(folder, f"two of its tokens have the same text {twice!r}")
    longest_first = sorted(special, key=lambda pair: -len(pair[0].encode()))
    return _Tokens(texts, kinds, longest_first, _strips(folder, file, byte_level))


def _strips(folder: Path, file: dict, byte_level: bool) -> bool:
    """Whether special tokens consume whitespace by Phi-3's rule, the only one in llama.cpp. A byte-level tokenizer,
    such as Phi-4's, may have another rule if conversations have no whitespace beside such tokens. Raises UserError for
    any other rule."""
    every = {t["content"] for t in file["added_tokens"]}
    taking = {t["content"] for t in file["added_tokens"] if t["rstrip"]}
    odd = next((t["content"] for t in file["added_tokens"] if t["lstrip"] or t["single_word"]), None)
    as_phi3 = every - taking == PHI3_PLAIN and taking >= PHI3_TAKING
    if byte_level and (odd or not as_phi3):
        return False
    if odd or (taking and not as_phi3):
        raise _refused(folder, f"its token {odd or min(taking)} consumes whitespace in a way that llama.cpp does not")
    return bool(taking)


def _byte_level(folder: Path, file: dict, own: Tokenizer, tokens: _Tokens) -> tuple[dict, list[str]]:
    chats = written(own)
    taking = [] if tokens.strips else sorted(own.taking_whitespace)
    if taking and chats and own.takes_whitespace(chats[0]):
        raise _refused(folder, f"its token {taking[0]} consumes whitespace in a way that llama.cpp does not")
    texts = [text for text in (*TEXTS, *CAPITALS, *LEADING, *chats) if not (taking and own.takes_whitespace(text))]
    expected = [own.encode(text)[0] for text in texts]
    own_splitter = tokenizers.Tokenizer.from_str(
        json.dumps({**file, "model": {"type": "BPE", "vocab": {}, "merges": []}})
    ).pre_tokenizer
    keeps_whole = bool(file["model"].get("ignore_merges"))
    own_pieces = [_pieces(own_splitter, text) for text in texts]
    by_merges = sorted(SPLITS.items(), key=lambda split: split[0] not in NEARLY and split[1][1] != keeps_whole)
    for name, (patterns, whole) in by_merges:
        if [_pieces(splitter(patterns), text) for text in texts] != own_pieces:
            continue
        candidate = _as_llama_cpp(file, patterns, whole)
        probes = texts if whole == keeps_whole else texts + _decoded(own, tokens)
        wanted = expected + [own.encode(text)[0] for text in probes[len(texts) :]]
        if [e.ids for e in candidate.encode_batch(probes, add_special_tokens=False)] == wanted:
            merges = [_merge(pair) for pair in file["model"]["merges"]]
            notes = _normalizer_notes(file) + NEARLY.get(name, []) + ([_WHITESPACE] if taking else [])
            return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}, notes
    raise _refused(folder, "no pre-tokenizer of llama.cpp gives its ids; tried " + ", ".join(SPLITS))


def _as_llama_cpp(file: dict, patterns: list[str], whole: bool) -> tokenizers.Tokenizer:
    """Returns the tokenizer with llama.cpp's pre-tokenizer, and without the parts that llama.cpp ignores."""
    other = file | {
        "normalizer": None,
        "post_processor": None,
        "truncation": None,
        "padding": None,
        "model": file["model"] | {"ignore_merges": whole},
    }
    made = tokenizers.Tokenizer.from_str(json.dumps(other))
    made.pre_tokenizer = splitter(patterns)
    return made


def _pieces(split: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in split.pre_tokenize_str(text)]


def _decoded(own: Tokenizer, tokens: _Tokens) -> list[str]:
    """Returns the text of every ordinary token that can be decoded by itself."""
    texts = (own.decode([number]) for number, kind in enumerate(tokens.kinds) if kind == NORMAL)
    return [text for text in texts if text and "\ufffd" not in text]


def _normalizer_notes(file: dict) -> list[str]:
    normalizes = bool(_parts(file["normalizer"], "normalizers"))
    return ["llama.cpp does not normalize text to Unicode NFC, as the tokenizer does"] if normalizes else []


def _sentencepiece(folder: Path, file: dict, own: Tokenizer, tokens: _Tokens) -> tuple[dict, list[str]]:
    ids = {text: number for number, text in enumerate(tokens.texts)}
    missing = next((b for b in range(256) if f"<0x{b:02X}>" not in ids), None)
    if missing is not None:
        raise _refused(folder, f"it has no token for the byte {missing}")
    scores = _scores(file, ids, len(tokens.texts))
    stripping = frozenset(t["id"] for t in file["added_tokens"] if t["rstrip"])
    candidate = SentencePiece(ids, scores, tokens.special, stripping)
    plain, chats = [*TEXTS, *CAPITALS, *_doubtful(file, ids, tokens)], written(own)
    wrong = {
        prefix: {
            kind: _first_wrong(own, candidate, texts, prefix)
            for kind, texts in (("plain", plain), ("leading", LEADING), ("chat", chats))
        }
        for prefix in (True, False)
    }
    prefix = min(wrong, key=lambda p: [wrong[p][kind] is not None for kind in ("chat", "plain", "leading")])
    problem = wrong[prefix]["chat"] or (None if chats else wrong[prefix]["plain"])
    # A special token in front shows whether the ids are right apart from the space at the beginning.
    start = next((text for text, number in tokens.special if number not in stripping), "")
    problem = problem or _first_wrong(own, candidate, [start + text for text in plain], prefix)
    if problem is not None:
        raise _refused(folder, f"llama.cpp would give {problem!r} other ids")
    differing = [
        what
        for kind, what in (("plain", "no special token"), ("leading", "a space"))
        if wrong[prefix][kind] is not None
    ]
    notes = [
        f"llama.cpp gives text that begins with {what} a different first id; conversations get the same ids"
        for what in differing
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }, notes


def _first_wrong(own: Tokenizer, candidate: SentencePiece, texts: list[str], prefix: bool) -> str | None:
    return next((text[:40] for text in texts if candidate.encode(text, prefix) != own.encode(text)[0]), None)


def _scores(file: dict, ids: dict[str, int], rows: int) -> list[float]:
    """Returns a score for each token: the negative rank of the first merge that creates it. float32 is exact up to rank
    2^24."""
    merges = file["model"]["merges"]
    scores = [-float(len(merges)) - 1] * rows
    for rank, pair in reversed(list(enumerate(merges))):
        together = _merge(pair).replace(" ", "", 1)
        if together in ids:
            scores[ids[together]] = -float(rank)
    return scores


def _doubtful(file: dict, ids: dict[str, int], tokens: _Tokens) -> list[str]:
    """Returns texts of tokens that llama.cpp may merge from two tokens for which the tokenizer has no merge."""
    known = {_merge(pair) for pair in file["model"]["merges"]}
    normal = {text for text, number in ids.items() if tokens.kinds[number] == NORMAL}
    return [
        text.replace(SPACE, " ")
        for text in normal
        if any(
            text[:at] in normal and text[at:] in normal and f"{text[:at]} {text[at:]}" not in known
            for at in range(1, len(text))
        )
    ]


def _named(folder: Path, own: Tokenizer, tokens: _Tokens, stop_ids: tuple[int, ...]) -> dict[str, Any]:
    """Returns the ids of bos, padding and stop tokens. A GGUF file has up to three stop tokens by id; llama.cpp
    recognises others by their text."""
    wanted = list(dict.fromkeys([*stop_ids, *eos_ids(folder)]))
    eos = own.eos_id if own.eos_id is not None else next(iter(wanted), None)
    if eos is None:
        raise _refused(folder, "it has no stop token")
    unknown = [i for i in wanted if i != eos and tokens.texts[i] not in STOPS]
    if {"<|return|>", "<|call|>", "<|end|>"} <= set(tokens.texts):  # llama.cpp then does not stop at <|end|>
        unknown += [i for i in wanted if i != eos and tokens.texts[i] == "<|end|>"]
    if len(unknown) > 2 or any(tokens.texts[i] == "<|end|>" for i in unknown):
        raise _refused(
            folder,
            "llama.cpp cannot stop at all of its stop tokens: " + ", ".join(tokens.texts[i] for i in [eos, *unknown]),
        )
    values = {"eos": eos, "bos": own.bos_id}
    for key, name in (("unknown", "unk_token"), ("padding", "pad_token")):
        if own.named_tokens.get(name) in tokens.texts:
            values[key] = tokens.texts.index(own.named_tokens[name])
    values |= dict(zip(("eot", "eom"), unknown))
    if tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("").ids not in ([], [own.bos_id]):
        raise _refused(folder, "it adds more to text than bos at the beginning")
    return {f"tokenizer.ggml.{name}_token_id": number for name, number in values.items() if number is not None} | {
        "tokenizer.ggml.add_bos_token": own.adds_bos,
        "tokenizer.ggml.add_eos_token": False,
    }


def _parts(part: dict | None, key: str) -> list[dict]:
    return [] if part is None else part.get(key, [part])


def _merge(pair: str | list[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _refused(folder: Path, why: str) -> UserError:
    return UserError(f"export: gguf: {folder / 'tokenizer.json'}: {why}; export `merged` keeps it unchanged")
