"""A folder's tokenizer as GGUF metadata, or a refusal.

Nothing is told by a name. Which of llama.cpp's ways of splitting text a byte-level tokenizer has is found by splitting
awkward text both ways; that ids are the model's is seen on that text and on what the chat template writes.
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

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's kinds of token

# Those that llama.cpp's regular expressions only come near to; of two for one, the nearer stands first in SPLITS.
_CAPITALS = "llama.cpp splits words in capitals outside ASCII (ÉCOLE) otherwise than the tokenizer: they get other ids"
_MARKS = "llama.cpp splits words with combining marks (नमस्ते) otherwise than the tokenizer: they get other ids"
_WHITESPACE = (
    "llama.cpp keeps whitespace beside special tokens that the tokenizer takes along: messages that begin "
    "or end with whitespace get other ids"
)
NEARLY = {"granite-embed-multi-97m": [_CAPITALS], "gpt-4o": [_CAPITALS, _MARKS], "tekken": [_CAPITALS, _MARKS]}

# What llama.cpp has for Phi-3: these of its tokens take no whitespace along, all others do. It looks each of them up.
PHI3_PLAIN, PHI3_TAKING = {"<unk>", "<s>", "<|endoftext|>"}, {"</s>"}

# Tokens at which llama.cpp stops by their text, whatever the file says.
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
    """Whether its special tokens take whitespace along, which llama.cpp does for a model with phi-3 in its name."""
    notes: list[str]
    """What llama.cpp does otherwise than the model's own tokenizer."""


@dataclass(frozen=True)
class _Tokens:
    texts: list[str]
    kinds: list[int]
    special: list[tuple[str, int]]
    strips: bool


def vocabulary_of(folder: Path, rows: int, stop_ids: tuple[int, ...] = ()) -> Vocabulary:
    """`rows`: of the embedding. `stop_ids`: what ends an answer, besides generation_config.json's eos.

    Raises UserError for a tokenizer that llama.cpp cannot have exactly.
    """
    own = Tokenizer.load(folder)
    file = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    if file["model"].get("type") != "BPE":
        raise _refused(folder, f"its model is {file['model'].get('type')}, and llama.cpp carries BPE exactly")
    kinds = [part["type"] for part in _parts(file["pre_tokenizer"], "pretokenizers")]
    tokens = _tokens(folder, file, own, rows, "ByteLevel" in kinds)
    if "ByteLevel" in kinds:
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
            raise _refused(folder, f"its token {token['content']} has no row of the embedding")
        shown = token["content"]
        if token["normalized"] and not token["special"]:
            shown = shown.replace(SPACE, " ")  # it is looked for after spaces became ▁, by llama.cpp before
        texts[token["id"]], kinds[token["id"]] = shown, CONTROL if token["special"] else USER_DEFINED
        special.append((shown, token["id"]))
    unknown = file["model"].get("unk_token")
    if unknown in texts and "<0x00>" in texts:
        kinds[texts.index(unknown)] = UNKNOWN
    cut = next((text for text in texts if "\0" in text), None)
    if cut is not None:
        raise _refused(folder, f"its token {cut!r} has the character NUL, at which llama.cpp cuts it off")
    twice = next((text for text, count in Counter(texts).items() if count > 1), None)
    if twice is not None:
        raise _refused(folder, f"the text {twice!r} is that of two tokens")
    longest_first = sorted(special, key=lambda pair: -len(pair[0].encode()))
    return _Tokens(texts, kinds, longest_first, _strips(folder, file, byte_level))


def _strips(folder: Path, file: dict, byte_level: bool) -> bool:
    """Whether special tokens take whitespace along as Phi-3's do, which is the one way llama.cpp has. Byte-level
    tokenizers may have others where no whitespace stands beside them in conversations, as Phi-4's."""
    every = {t["content"] for t in file["added_tokens"]}
    taking = {t["content"] for t in file["added_tokens"] if t["rstrip"]}
    odd = next((t["content"] for t in file["added_tokens"] if t["lstrip"] or t["single_word"]), None)
    as_phi3 = every - taking == PHI3_PLAIN and taking >= PHI3_TAKING
    if byte_level and (odd or not as_phi3):
        return False
    if odd or (taking and not as_phi3):
        raise _refused(folder, f"its token {odd or min(taking)} takes whitespace along in a way llama.cpp has not")
    return bool(taking)


def _byte_level(folder: Path, file: dict, own: Tokenizer, tokens: _Tokens) -> tuple[dict, list[str]]:
    chats = written(own)
    taking = [] if tokens.strips else sorted(own.taking_whitespace)
    if taking and chats and own.takes_whitespace(chats[0]):
        raise _refused(folder, f"its token {taking[0]} takes whitespace along in a way llama.cpp has not")
    texts = [text for text in (*TEXTS, *CAPITALS, *LEADING, *chats) if not (taking and own.takes_whitespace(text))]
    expected = [own.encode(text)[0] for text in texts]
    as_the_file_splits = tokenizers.Tokenizer.from_str(
        json.dumps({**file, "model": {"type": "BPE", "vocab": {}, "merges": []}})
    ).pre_tokenizer
    keeps_whole = bool(file["model"].get("ignore_merges"))
    seen = [_pieces(as_the_file_splits, text) for text in texts]
    by_merges = sorted(SPLITS.items(), key=lambda split: split[0] not in NEARLY and split[1][1] != keeps_whole)
    for name, (patterns, whole) in by_merges:
        if [_pieces(splitter(patterns), text) for text in texts] != seen:
            continue
        there = _as_llama_cpp(file, patterns, whole)
        probes = texts if whole == keeps_whole else texts + _decoded(own, tokens)
        wanted = expected + [own.encode(text)[0] for text in probes[len(texts) :]]
        if [e.ids for e in there.encode_batch(probes, add_special_tokens=False)] == wanted:
            merges = [_merge(pair) for pair in file["model"]["merges"]]
            notes = _normalizer_notes(file) + NEARLY.get(name, []) + ([_WHITESPACE] if taking else [])
            return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}, notes
    raise _refused(folder, "llama.cpp has no way of splitting text that gives its ids; tried " + ", ".join(SPLITS))


def _as_llama_cpp(file: dict, patterns: list[str], whole: bool) -> tokenizers.Tokenizer:
    """The tokenizer with llama.cpp's split and without what llama.cpp leaves out."""
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
    """The text of every ordinary token that is text by itself."""
    texts = (own.decode([number]) for number, kind in enumerate(tokens.kinds) if kind == NORMAL)
    return [text for text in texts if text and "\ufffd" not in text]


def _normalizer_notes(file: dict) -> list[str]:
    kinds = {part["type"] for part in _parts(file["normalizer"], "normalizers")}
    return ["llama.cpp does not bring text into Unicode's form NFC first, as the tokenizer does"] if kinds else []


def _sentencepiece(folder: Path, file: dict, own: Tokenizer, tokens: _Tokens) -> tuple[dict, list[str]]:
    ids = {text: number for number, text in enumerate(tokens.texts)}
    missing = next((b for b in range(256) if f"<0x{b:02X}>" not in ids), None)
    if missing is not None:
        raise _refused(folder, f"it has no token for the byte {missing}")
    scores = _scores(file, ids, len(tokens.texts))
    stripping = frozenset(t["id"] for t in file["added_tokens"] if t["rstrip"])
    there = SentencePiece(ids, scores, tokens.special, stripping)
    plain, chats = [*TEXTS, *CAPITALS, *_doubtful(file, ids, tokens)], written(own)
    wrong = {
        prefix: {
            kind: _first_wrong(own, there, texts, prefix)
            for kind, texts in (("plain", plain), ("leading", LEADING), ("chat", chats))
        }
        for prefix in (True, False)
    }
    prefix = min(wrong, key=lambda p: [wrong[p][kind] is not None for kind in ("chat", "plain", "leading")])
    must = wrong[prefix]["chat"] or (None if chats else wrong[prefix]["plain"])
    # Text that begins with a special token shows whether the ids are right where the space at the beginning is not.
    start = next((text for text, number in tokens.special if number not in stripping), "")
    must = must or _first_wrong(own, there, [start + text for text in plain], prefix)
    if must is not None:
        raise _refused(folder, f"llama.cpp would give {must!r} other ids")
    differing = [
        what
        for kind, what in (("plain", "no special token"), ("leading", "a space"))
        if wrong[prefix][kind] is not None
    ]
    notes = [
        f"llama.cpp gives text that begins with {what} another first id; conversations are the same"
        for what in differing
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
    }, notes


def _first_wrong(own: Tokenizer, there: SentencePiece, texts: list[str], prefix: bool) -> str | None:
    return next((text[:40] for text in texts if there.encode(text, prefix) != own.encode(text)[0]), None)


def _scores(file: dict, ids: dict[str, int], rows: int) -> list[float]:
    """A token's score is the negated rank of the first merge that makes it; float32 holds ranks to 2^24."""
    merges = file["model"]["merges"]
    scores = [-float(len(merges)) - 1] * rows
    for rank, pair in reversed(list(enumerate(merges))):
        together = _merge(pair).replace(" ", "", 1)
        if together in ids:
            scores[ids[together]] = -float(rank)
    return scores


def _doubtful(file: dict, ids: dict[str, int], tokens: _Tokens) -> list[str]:
    """Texts of tokens that llama.cpp may put together of two that the tokenizer has no merge for."""
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
    """Beginning, padding and all ends. llama.cpp takes three ends by id; others it knows by their text."""
    wanted = list(dict.fromkeys([*stop_ids, *eos_ids(folder)]))
    eos = own.eos_id if own.eos_id is not None else next(iter(wanted), None)
    if eos is None:
        raise _refused(folder, "nothing says which token ends an answer")
    unknown = [i for i in wanted if i != eos and tokens.texts[i] not in STOPS]
    if {"<|return|>", "<|call|>", "<|end|>"} <= set(tokens.texts):  # llama.cpp then goes on after <|end|>
        unknown += [i for i in wanted if i != eos and tokens.texts[i] == "<|end|>"]
    if len(unknown) > 2 or any(tokens.texts[i] == "<|end|>" for i in unknown):
        raise _refused(
            folder, "llama.cpp cannot stop at all of its ends: " + ", ".join(tokens.texts[i] for i in [eos, *unknown])
        )
    values = {"eos": eos, "bos": own.bos_id}
    for key, name in (("unknown", "unk_token"), ("padding", "pad_token")):
        if own.named_tokens.get(name) in tokens.texts:
            values[key] = tokens.texts.index(own.named_tokens[name])
    values |= dict(zip(("eot", "eom"), unknown))
    if tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("").ids not in ([], [own.bos_id]):
        raise _refused(folder, "it adds other tokens to text than one at the beginning")
    return {f"tokenizer.ggml.{name}_token_id": number for name, number in values.items() if number is not None} | {
        "tokenizer.ggml.add_bos_token": own.adds_bos,
        "tokenizer.ggml.add_eos_token": False,
    }


def _parts(part: dict | None, key: str) -> list[dict]:
    return [] if part is None else part.get(key, [part])


def _merge(pair: str | list[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _refused(folder: Path, why: str) -> UserError:
    return UserError(f"export: gguf: {folder / 'tokenizer.json'}: {why}; export `merged` keeps it as it is")
