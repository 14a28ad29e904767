"""The demo's facts are true, training has none of its evaluation questions, and other libraries load its starter
model."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.demo import corpus, questions, starter


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return [
        [json.loads(line)["messages"] for line in path.read_text("utf-8").splitlines()]
        for path in questions.write(tmp_path_factory.mktemp("demo"))
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    starter.build_tokenizer((text for _, text in corpus.texts()), folder)
    return AutoTokenizer.from_pretrained(folder)


def test_facts_match_the_imported_modules():
    """The facts come from source files; this test imports the modules."""
    for fact in questions.facts():
        if fact.kind == "module":
            assert getattr(importlib.import_module(fact.answer), fact.name).__name__
    homes = {f.name: f.answer for f in questions.facts() if f.kind == "module"}
    modules = {name: importlib.import_module(name) for name in set(homes.values())}
    for name, home in homes.items():
        owners = {m for m, module in modules.items() if getattr(getattr(module, name, None), "__module__", "") == m}
        assert owners <= {home}, name


def test_summaries_are_the_first_lines_of_docstrings():
    for fact in questions.facts():
        if fact.kind == "summary":
            [entry] = [e for e in corpus.entries() if e.name == fact.name]
            doc = inspect.getdoc(getattr(importlib.import_module(entry.module), fact.name))
            assert doc.splitlines()[0].strip() == fact.answer


def test_no_question_has_two_answers(files):
    answers = Counter((user["content"], assistant["content"]) for file in files for user, assistant in file)
    assert len({question for question, _ in answers}) == len(answers) == sum(answers.values())


def test_evaluation_asks_what_training_taught_in_other_words(files):
    def plain(text):
        return " ".join(re.findall(r"\w+", text.casefold()))

    def names_and_answers(file):
        return {
            (name, assistant["content"]) for user, assistant in file for name in re.findall("`(.*?)`", user["content"])
        }

    train, evaluation = files
    seen = "\n".join(plain(message["content"]) for conversation in train for message in conversation)
    assert not [user["content"] for user, _ in evaluation if plain(user["content"]) in seen]
    taught, asked = names_and_answers(train), names_and_answers(evaluation)
    for fact in questions.facts():
        assert (fact.name, fact.answer) in taught & asked


def test_no_evaluation_question_is_in_the_pretraining_text(files):
    text = "\n".join(text for _, text in corpus.texts())
    assert not [user["content"] for user, _ in files[1] if user["content"] in text]


def test_same_bytes_in_every_process(tmp_path):
    script = (
        "import sys, pathlib; from tunesmith.demo import questions, corpus; import hashlib;"
        "files = questions.write(pathlib.Path(sys.argv[1]));"
        "print(*(hashlib.sha256(f.read_bytes()).hexdigest() for f in files),"
        " hashlib.sha256(repr(list(corpus.texts())).encode()).hexdigest())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    }
    assert len(said) == 1


def test_the_corpus_imports_nothing_it_reads():
    script = (
        "import sys; from tunesmith.demo import corpus; before = set(sys.modules);"
        "list(corpus.texts()); print(*(set(sys.modules) - before).intersection(corpus.MODULES))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@settings(max_examples=50)
@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text.replace("<|", ""), add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text.replace("<|", "")


def test_generation_stops_where_an_answer_ends(tokenizer):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text == prompt + "Ho" + tokenizer.eos_token + "\n"
    config = starter.starter_config()
    assert config["eos_token_id"] == tokenizer.eos_token_id != tokenizer.pad_token_id == config["pad_token_id"]
    assert len(tokenizer) <= config["vocab_size"]


def test_starter_is_made_once_and_transformers_loads_it(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    monkeypatch.setattr(starter, "PRETRAINING_STEPS", 2)
    folder = starter.cached_starter(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert 3e6 < model.num_parameters() < 6e6
    assert AutoTokenizer.from_pretrained(folder).eos_token_id in _as_list(model.generation_config.eos_token_id)
    assert sorted(p.name for p in tmp_path.glob("*starter*")) == [folder.name]

    monkeypatch.setattr(starter, "_make", lambda draft: pytest.fail("made twice"))
    assert starter.cached_starter(tmp_path) == folder


def _as_list(value):
    return value if isinstance(value, list) else [value]
