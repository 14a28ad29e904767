"""From files to training and held-out examples: no duplicates, no leakage, and every row accounted for."""

import json
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.conftest import sums, write_rows
from tunesmith.data import encode
from tunesmith.data.dataset import prepare
from tunesmith.data.encode import Settings
from tunesmith.data.source import Sources
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.methods import Method, cpt, sft
from tunesmith.recipe import Data


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(tiny.save("llama3", tmp_path_factory.mktemp("model") / "llama3"))


def prepared(tokenizer, tmp_path, **data):
    asked = Data(**data)
    how = Settings(
        tokenizer=tokenizer,
        method=Method(sft.Settings()),
        too_long=asked.too_long,
        sequence_length=asked.sequence_length,
    )
    ledger = tmp_path / "ledger.jsonl"
    dataset = prepare(asked, Sources.resolve(asked), how, tmp_path / "cache", ledger, lambda *_: None)
    return dataset, [json.loads(line) for line in ledger.open()]


def texts(store, tokenizer) -> list[str]:
    return [tokenizer.decode(store[i][0].tolist()) for i in range(len(store))]


def row(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


pairs = st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("xyz")), min_size=5, max_size=40)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs, st.randoms(use_true_random=False))
def test_nothing_leaks_and_the_order_of_rows_does_not_matter(tokenizer, tmp_path_factory, pairs, shuffled):
    held_out = []
    for order in (pairs, shuffled.sample(pairs, len(pairs))):
        folder = tmp_path_factory.mktemp("data")
        file = write_rows(folder / "rows.jsonl", [row(*pair) for pair in order])
        dataset, ledger = prepared(tokenizer, folder, train=str(file), eval_share=0.3)
        asked = [dataset.eval.asked(i) for i in range(len(dataset.eval))]
        learned = {text.split("user<|end_header_id|>\n\n")[1][0] for text in texts(dataset.train, tokenizer)}
        assert not learned & set(asked) and len(dataset.eval) <= max(0.3 * len(set(pairs)) + 1, 8)
        assert len(dataset.train) + len(dataset.eval) == len(set(pairs)) == dataset.ledger["kept"]
        repeats = Counter(pairs)
        assert len(ledger) == sum(n - 1 for n in repeats.values()) == dataset.ledger["read"] - dataset.ledger["kept"]
        held_out.append(sorted(texts(dataset.eval, tokenizer)))
    assert held_out[0] == held_out[1]


def test_rows_of_the_evaluation_are_not_learned(tokenizer, tmp_path):
    train = write_rows(tmp_path / "train.jsonl", sums(20))
    held_out = write_rows(tmp_path / "eval.jsonl", sums(10, first=15))
    dataset, ledger = prepared(tokenizer, tmp_path, train=str(train), eval=str(held_out))
    assert [(e["file"], e["line"], e["reason"]) for e in ledger] == [
        (str(train), line, "duplicate_of_eval") for line in range(16, 21)
    ]
    assert not set(texts(dataset.train, tokenizer)) & set(texts(dataset.eval, tokenizer))
    assert (len(dataset.train), len(dataset.eval)) == (15, 10)


def test_long_rows_are_dropped_cut_or_refused(tokenizer, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [row("a", "b"), row("a", "long " * 60), row("c", "d")])
    asked = dict(train=str(file), eval_share=0, sequence_length=40)
    dataset, ledger = prepared(tokenizer, tmp_path, **asked)
    assert len(dataset.train) == 2 and [(e["line"], e["action"]) for e in ledger] == [(2, "dropped")]
    dataset, ledger = prepared(tokenizer, tmp_path, **asked, too_long="truncate")
    assert dataset.train.lengths.max() == 40 and [(e["line"], e["action"]) for e in ledger] == [(2, "shortened")]
    with pytest.raises(UserError, match=r"rows\.jsonl:2: \d+ tokens"):
        prepared(tokenizer, tmp_path, **asked, too_long="refuse")


def test_many_processes_encode_as_one_does(tokenizer, tmp_path, monkeypatch):
    rows = sums(1500)
    random.Random(0).shuffle(rows)
    file = write_rows(tmp_path / "rows.jsonl", [*rows, {"messages": "none"}])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    alone, ledger_alone = prepared(tokenizer, tmp_path / "a", train=str(file))
    monkeypatch.setattr(encode, "PARALLEL_FROM_BYTES", 0)
    together, ledger_together = prepared(tokenizer, tmp_path / "b", train=str(file))
    assert texts(alone.train, tokenizer) == texts(together.train, tokenizer)
    assert texts(alone.eval, tokenizer) == texts(together.eval, tokenizer)
    assert [alone.eval.asked(i) for i in range(5)] == [together.eval.asked(i) for i in range(5)]
    assert ledger_alone == ledger_together


@given(st.lists(st.integers(0, 40), max_size=60))
def test_pieces_are_small_and_lose_nothing(sizes):
    lines = [(number, b"x" * size) for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "CHUNK_ROWS", 8)
        patch.setattr(encode, "CHUNK_CHARACTERS", 100)
        pieces = list(encode._pieces(iter(lines)))
    assert [line for piece in pieces for line in piece] == lines
    for piece in pieces:
        assert 0 < len(piece) <= 8 and sum(len(payload) for _, payload in piece[:-1]) < 100


def test_tokens_come_from_the_cache_until_something_changes(tokenizer, tmp_path, monkeypatch):
    file = write_rows(tmp_path / "rows.jsonl", sums(20))
    first, _ = prepared(tokenizer, tmp_path, train=str(file))
    calls = []
    monkeypatch.setattr(encode.Encoder, "chunk", lambda *_: calls.append(1) or pytest.fail("encoded again"))
    again, _ = prepared(tokenizer, tmp_path, train=str(file))
    assert texts(first.train, tokenizer) == texts(again.train, tokenizer) and not calls
    write_rows(file, sums(21))
    with pytest.raises(pytest.fail.Exception):
        prepared(tokenizer, tmp_path, train=str(file))


def test_a_column_that_the_first_rows_lack(tokenizer, tmp_path):
    rows = [{"q": "1+1", "reply": "2"}] * 30 + [{"q": "1+2", "reply": "3", "passage": "Sums."}]
    file = write_rows(tmp_path / "late.jsonl", rows)
    columns = {"question": "q", "answer": "reply", "context": "passage"}
    dataset, _ = prepared(tokenizer, tmp_path, train=[{"path": str(file), "columns": columns}], eval_share=0)
    assert len(dataset.train) == 2
    with pytest.raises(UserError, match="no column 'none'"):
        prepared(tokenizer, tmp_path, train=[{"path": str(file), "columns": {"answer": "none"}}])


def test_weights_and_a_column_mapping(tokenizer, tmp_path):
    odd = write_rows(tmp_path / "odd.jsonl", [{"q": "1+1", "reply": "2"}])
    file = write_rows(tmp_path / "rows.jsonl", sums(4))
    sources = [{"path": str(odd), "columns": {"question": "q", "answer": "reply"}, "weight": 2.5}, str(file)]
    dataset, _ = prepared(tokenizer, tmp_path, train=sources, eval_share=0)
    assert dataset.formats == ["question_answer", "messages"]
    assert dataset.train.weights.tolist() == [2.5, 1, 1, 1, 1]


def test_a_prompt_of_the_evaluation_is_not_learned_with_another_answer(tokenizer, tmp_path):
    train = write_rows(tmp_path / "train.jsonl", [row("a", "x"), row("b", "x"), row("b", "x")])
    held_out = write_rows(tmp_path / "eval.jsonl", [row("a", "y"), row("c", "y"), row("c", "y")])
    dataset, ledger = prepared(tokenizer, tmp_path, train=str(train), eval=str(held_out))
    assert sorted((e["file"], e["line"], e["reason"]) for e in ledger) == sorted(
        [(str(train), 1, "duplicate_of_eval"), (str(train), 3, "duplicate"), (str(held_out), 3, "duplicate")]
    )
    assert (len(dataset.train), len(dataset.eval)) == (1, 2)


def test_the_limit_of_evaluation_is_for_all_its_sources(tokenizer, tmp_path):
    train = write_rows(tmp_path / "train.jsonl", sums(5))
    evals = [write_rows(tmp_path / f"eval-{n}.jsonl", sums(20, first=100 * n)) for n in (1, 2)]
    dataset, _ = prepared(tokenizer, tmp_path, train=str(train), eval=[str(e) for e in evals], eval_limit=8)
    assert (len(dataset.eval), dataset.eval_unused) == (8, 32)
    assert len({dataset.eval.where(i).file for i in range(8)}) == 2


def test_a_long_text_is_learned_to_its_last_token(tokenizer, tmp_path):
    text = " ".join(f"word{i}" for i in range(1500))
    (tmp_path / "book.txt").write_text(text)
    for length in (8, 9, 10, 11):
        asked = Data(train=str(tmp_path / "book.txt"), sequence_length=length, eval_share=0)
        how = Settings(
            tokenizer=tokenizer,
            method=Method(cpt.Settings()),
            too_long="drop",
            sequence_length=length,
        )
        store = prepare(asked, Sources.resolve(asked), how, tmp_path / "cache", None, lambda *_: None).train
        ids = [int(i) for n in range(len(store)) for i in store[n][0]]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text and ids[-1] == tokenizer.eos_id
        assert len(store) > 257 and store.lengths.min() >= 2 and store.lengths.max() <= length


@pytest.mark.parametrize("workers", [False, True])
def test_the_system_prompts_of_rows_are_counted(tokenizer, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(encode, "PARALLEL_FROM_BYTES", 0 if workers else 10**9)
    monkeypatch.setattr(encode, "CHUNK_ROWS", 7)
    systems = ["Be brief."] * 20 + [None] * 10 + ["Be kind."] * 6 + ["Be bold.", "Be sad.", "Be glad.", "Be odd."]
    rows = [row(f"{number}?", "yes") for number in range(40)]
    for one, system in zip(rows, systems):
        one["messages"][:0] = [{"role": "system", "content": system}] if system else []
    random.Random(0).shuffle(rows)
    rows.append({"messages": [{"role": "system", "content": "Be lost."}]})  # dropped, so not counted
    dataset, _ = prepared(tokenizer, tmp_path, train=str(write_rows(tmp_path / "rows.jsonl", rows)), eval_share=0.2)
    assert dataset.system_prompts == {"Be brief.": 0.5, "": 0.25, "Be kind.": 0.15}
