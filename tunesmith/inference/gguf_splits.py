"""How llama.cpp splits text before byte-level tokens, by the name that a GGUF gives the way (`tokenizer.ggml.pre`)."""

from tokenizers import Regex, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(end: str, digits: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{_UPPER}*{_LOWER}+{end}|{start}{_UPPER}+{_LOWER}*{end}|{digits}|{_PATHS}"


# llama.cpp's names of ways to split: what is split by, one after the other, and whether a piece that is a token stays
# whole whatever the merges.
SPLITS: dict[str, tuple[list[str], bool]] = {
    "llama-bpe": ([rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_LINES}"], True),
    "dbrx": ([rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_LINES}"], False),
    "qwen2": ([rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_LINES}"], False),
    "qwen35": (
        [
            (
                rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+"
            )
        ],
        False,
    ),
    "granite-embed-multi-97m": ([_cased(f"{_CONTRACTIONS}?", r"\p{N}{1,3}")], True),
    "gpt-4o": ([_cased(f"{_CONTRACTIONS}?", r"\p{N}{1,3}")], False),
    "tekken": ([_cased("", r"\p{N}")], True),
    "gpt-2": ([_GPT2], False),
    "smollm": ([r"\p{N}", _GPT2], False),
    "deepseek-v3": (
        [
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            (
                r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
        False,
    ),
}


def splitter(patterns: list[str]) -> pre_tokenizers.PreTokenizer:
    """Splits by these patterns, one after the other, and spells the bytes of each piece."""
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(p), "isolated") for p in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
