"""The tokenizer compared with that of Transformers, for each family."""

import json
import pickle
import shutil
import subprocess
import sys
import unicodedata
from datetime import date

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests import tiny
from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError

ASK = [{"role": "user", "content": " Say  «héllo» 🙂\n\n\ttwice "}]
TALK = [
    *ASK,
    {"role": "assistant", "content": "\n Hi, hi. "},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "You asked\nme"},
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = {family: tmp_path_factory.mktemp(family) for family in tiny.FAMILIES}
    for family, folder in made.items():
        tiny.save_tokenizer(family, folder)
    return made


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_same_ids_and_facts_as_transformers(family, folders):
    ours, theirs = Tokenizer.load(folders[family]), AutoTokenizer.from_pretrained(folders[family])
    for messages, prompt in [(ASK, True), (TALK, False), ([{"role": "system", "content": "Be brief."}, *TALK], False)]:
        text = ours.render(messages, add_generation_prompt=prompt)
        expected = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        assert ours.encode(text)[0] == expected
        assert ours.decode(expected) == theirs.decode(expected)
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)
    assert ours.special_tokens >= set(theirs.all_special_tokens)
    assert ours.template_name == "own" and ours.chat_template == theirs.chat_template
    assert ours.adds_bos == (theirs("word").input_ids[0] == theirs.bos_token_id)


@settings(max_examples=100)
@given(family=st.sampled_from(list(tiny.FAMILIES)), text=st.text(max_size=40))
def test_offsets_cover_the_text(family, text, folders):
    assume(unicodedata.is_normalized("NFC", text))
    ids, offsets = Tokenizer.load(folders[family]).encode(text)
    assert len(ids) == len(offsets)
    assert {i for start, end in offsets for i in range(start, end)} == set(range(len(text)))


def test_a_lone_surrogate_is_a_problem_of_the_row(folders):
    with pytest.raises(RowProblem, match="surrogate"):
        Tokenizer.load(folders["llama3"]).encode("a\ud800")


def test_a_worker_gets_the_same_tokenizer_without_torch(folders):
    tokenizer = Tokenizer.load(folders["qwen3"], template_kwargs={"enable_thinking": False})
    sent = pickle.dumps(tokenizer)
    assert len(sent) < 1000
    code = (
        "import pickle, sys; t = pickle.loads(bytes.fromhex(sys.argv[1]));"
        "text = t.render([{'role': 'user', 'content': 'a'}], add_generation_prompt=True);"
        "print(t.fingerprint, text.count('think'), 'torch' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code, sent.hex()], capture_output=True, text=True, check=True).stdout
    assert output.split() == [tokenizer.fingerprint, "2", "False"]


def test_fingerprint_follows_template_and_variables(folders, tmp_path):
    folder = folders["qwen3"]
    other = tmp_path / "mine.jinja"
    other.write_text("{{ messages[0].content }}")
    tokenizers = [
        Tokenizer.load(folder),
        Tokenizer.load(folder, "chatml"),
        Tokenizer.load(folder, str(other)),
        Tokenizer.load(folder, template_kwargs={"enable_thinking": False}),
    ]
    assert len({t.fingerprint for t in tokenizers}) == 4
    assert [t.template_name for t in tokenizers] == ["own", "chatml", str(other), "own"]
    assert Tokenizer.load(folder).fingerprint == tokenizers[0].fingerprint


def test_the_date_that_a_template_writes(folders, tmp_path):
    template = tmp_path / "dated.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}")
    today, plain = Tokenizer.load(folders["qwen3"], str(template)), Tokenizer.load(folders["qwen3"])
    then = today.on("2024-07-26")
    asked = [{"role": "user", "content": "Hello"}]
    assert then.render(asked) == pickle.loads(pickle.dumps(then)).render(asked) == "26 Jul 2024: Hello"
    assert today.render(asked).startswith(f"{date.today():%d %b %Y}")
    assert len({t.fingerprint for t in (today, then, today.on("2024-07-27"))}) == 3
    assert plain.on("2024-07-26") is plain


def test_older_layouts_of_templates_and_tokens(folders, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["mistral"] / name, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["eos_token"]
    config["chat_template"] = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>", "lstrip": false}}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.render(ASK) == "plain"
    assert tokenizer.render(ASK, tools=[{"type": "function"}]) == "tools"


def test_a_model_without_template_gets_plain_text(folders, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["mistral"] / name, tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": " A "},
    ]
    assert tokenizer.template_name == "plain"
    assert tokenizer.render(messages) == (
        '<s>System:\nS\n\nUser:\nU\n\nAssistant:\nCall: {"name": "add", "arguments": {"a": 1}}</s>\n\n'
        "Tool:\n2\n\nAssistant:\n A </s>\n\n"
    )
    assert tokenizer.render(ASK[:1], add_generation_prompt=True).endswith("\n\nAssistant:\n")


def test_mistakes_are_named(folders, tmp_path):
    with pytest.raises(UserError, match="save_pretrained"):
        Tokenizer.load(tmp_path)
    with pytest.raises(UserError, match="chat_template: nowhere.jinja"):
        Tokenizer.load(folders["qwen2"], "nowhere.jinja")
    broken = tmp_path / "broken.jinja"
    broken.write_text("\n{% if %}")
    with pytest.raises(UserError, match="broken.jinja, line 2"):
        Tokenizer.load(folders["qwen2"], str(broken)).render(ASK)
    with pytest.raises(RowProblem, match="alternate"):
        Tokenizer.load(folders["gemma3"]).render([*ASK, *ASK])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)
