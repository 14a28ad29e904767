"""The pre-tokenizer is found by its ids, and a tokenizer that llama.cpp cannot reproduce exactly is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tests import tiny
from tunesmith.data.tokenizer import Tokenizer as Own
from tunesmith.errors import UserError
from tunesmith.export.gguf import vocabulary
from tunesmith.export.gguf.sentencepiece import SentencePiece
from tunesmith.export.gguf.vocabulary import vocabulary_of

NAMES = {
    "bytes": "gpt-2",
    "qwen": "qwen2",
    "llama3": "llama-bpe",
    "cl100k": "dbrx",
    "o200k": "granite-embed-multi-97m",
    "tekken": "tekken",
    "qwen35": "qwen35",
}


@pytest.fixture
def folder(tmp_path):
    """A tokenizer's folder, changed."""

    def build(family: str = "qwen3", kind: str | None = None, change=lambda tokenizer: None):
        size = len(tiny.save_tokenizer(family, tmp_path, kind))
        tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        change(tokenizer)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return tmp_path, size

    return build


@pytest.mark.parametrize(("kind", "name"), NAMES.items())
def test_the_split_is_found_by_what_it_does(folder, kind, name):
    assert vocabulary_of(*folder("qwen3", kind)).metadata["tokenizer.ggml.pre"] == name


def test_a_renamed_folder_changes_nothing(folder, tmp_path):
    path, size = folder("qwen3", "llama3")
    moved = path.rename(tmp_path.with_name("Qwen3-8B"))
    assert vocabulary_of(moved, size).metadata["tokenizer.ggml.pre"] == "llama-bpe"


def other_split(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[^-]+|-+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


def lower_case(tokenizer):
    tokenizer.normalizer = normalizers.Lowercase()


def unigram(tokenizer):
    tokenizer.model = models.Unigram([("a", 0.0), ("b", -1.0)], 0, False)


def with_nul(tokenizer):
    file = json.loads(tokenizer.to_str())
    model = file["model"]
    model["vocab"]["a\0"] = tokenizer.get_vocab_size()
    tokenizer.model = models.BPE(
        model["vocab"], [tuple(m) for m in model["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )


def test_a_token_that_llama_cpp_would_cut_off_is_refused(folder):
    """Read, it would be a second token of the same text, and end the process."""
    path, size = folder("gemma2", change=with_nul)
    with pytest.raises(UserError, match="NUL"):
        vocabulary_of(path, size + 1)


def test_tokens_that_consume_whitespace_are_kept_as_phi3s_or_noted_or_refused(folder):
    assert vocabulary_of(*folder("phi3")).strips
    for more in ({"lstrip": True, "rstrip": True}, {"lstrip": True}):  # no whitespace beside it in a conversation
        found = vocabulary_of(
            *folder(
                "phi4",
                change=lambda tokenizer, more=more: tokenizer.add_special_tokens(
                    [AddedToken("<|im_sep|>", special=True, normalized=False, **more)]
                ),
            )
        )
        assert not found.strips and "keeps whitespace" in " ".join(found.notes)
    with pytest.raises(UserError, match="consumes whitespace"):
        vocabulary_of(
            *folder(
                change=lambda tokenizer: tokenizer.add_special_tokens(
                    [AddedToken("<|im_end|>", special=True, rstrip=True, normalized=False)]
                )
            )
        )


def test_an_approximate_pre_tokenizer_is_noted(folder):
    assert "non-ASCII words in capitals" in " ".join(vocabulary_of(*folder("gpt_oss", "o200k")).notes)
    assert vocabulary_of(*folder("llama3", "llama3")).notes == []


@pytest.mark.parametrize(
    ("change", "why"), [(other_split, "no pre-tokenizer"), (lower_case, "no pre-tokenizer"), (unigram, "Unigram")]
)
def test_a_strange_tokenizer_is_refused(folder, change, why):
    with pytest.raises(UserError, match=f"{why}.*export `merged`"):
        vocabulary_of(*folder(change=change))


def test_merges_that_scores_cannot_give_are_refused(folder):
    """A token that merges never make of its halves, SentencePiece makes of them."""

    def without_a_merge(tokenizer):
        file = json.loads(tokenizer.to_str())
        model = file["model"]
        longest = max((m for m in model["merges"] if m[0] + m[1] in model["vocab"]), key=lambda m: len(m[0] + m[1]))
        kept = [m for m in model["merges"] if m[0] + m[1] != longest[0] + longest[1]]
        tokenizer.model = models.BPE(
            model["vocab"], [tuple(m) for m in kept], unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )

    with pytest.raises(UserError, match="other ids"):
        vocabulary_of(*folder("gemma2", "gemma-complete", without_a_merge))


def test_more_stop_tokens_than_llama_cpp_supports_are_refused(folder):
    path, size = folder()
    with pytest.raises(UserError, match="all of its stop tokens"):
        vocabulary_of(path, size, stop_ids=(300, 301, 302))
    assert vocabulary_of(path, size, stop_ids=(300, 301)).metadata["tokenizer.ggml.eot_token_id"] == 300


def test_rows_without_token_are_filled(folder):
    path, size = folder()
    found = vocabulary_of(path, size + 3).metadata
    assert len(found["tokenizer.ggml.tokens"]) == size + 3 == len(set(found["tokenizer.ggml.tokens"]))
    assert found["tokenizer.ggml.token_type"][-3:] == [vocabulary.UNUSED] * 3
    with pytest.raises(UserError, match="no row"):
        vocabulary_of(path, size - 1)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Returns the tokenizer, and our model of llama.cpp's."""
    path = tmp_path_factory.mktemp("gemma")
    size = len(tiny.save_tokenizer("gemma2", path, "gemma-complete"))
    found = vocabulary_of(path, size).metadata
    ids = {text: number for number, text in enumerate(found["tokenizer.ggml.tokens"])}
    return Own.load(path), SentencePiece(ids, found["tokenizer.ggml.scores"], [], frozenset())


@given(text=st.text(max_size=40))
def test_any_text_has_the_predicted_ids(gemma, text):
    own, there = gemma
    if not any(token in text for token in own.special_tokens):
        assert there.encode(text, prefix=False) == own.encode(text)[0]
