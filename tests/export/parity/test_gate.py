"""The parity gate lets a true export through and stops a false one, naming the first difference."""

import itertools
import json
import math
import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tunesmith import train
from tunesmith.errors import NotTheSame, UserError
from tunesmith.export.export import export
from tunesmith.export.forms import gguf, merged
from tunesmith.export.forms.ollama import Template
from tunesmith.export.parity import gate
from tunesmith.export.parity.gate import CHANCE, chance, distance
from tunesmith.export.parity.subject import Generated, Transformers
from tunesmith.finetune.prepared import Prepared

QUICK = {"max_steps": 3, "learning_rate": 1e-2}


@pytest.fixture
def run(recipe):
    return train(recipe("qwen3", data={"eval_share": 0.1}, train=QUICK, evaluate={"exact_match": True}))


def rewritten(monkeypatch, change) -> None:
    """Changes every merged export by `change(folder)` after it is written."""
    write = merged.write

    def and_changed(run, folder, settings):
        write(run, folder, settings)
        change(folder)

    monkeypatch.setattr(merged, "write", and_changed)


def other_weights(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1.5
    save_file(tensors, file, metadata={"format": "pt"})


def other_template(folder):
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_start|>", "<|im_start|> ", 1))


def no_template(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")


def other_ids(folder):
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text())
    found["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(found))


def other_stop(folder):
    file = folder / "generation_config.json"
    found = json.loads(file.read_text())
    found["eos_token_id"] = [7]
    file.write_text(json.dumps(found))


def not_a_number(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_true_export_passes(run, tmp_path):
    found = export(run, "merged", tmp_path / "merged")
    assert found["passed"] and found["logits"]["mean_kl"] < 1e-6 and found["logits"]["positions"] > 50
    assert found["rows_from"] == "held-out rows" and found["tokens"]["conversations"] == 9
    loss = found["measure"]["loss"]
    assert loss["exported"] == pytest.approx(loss["trained"], abs=1e-5)
    told = json.loads(run.eval_file.read_text())["after"]  # measured by training's own code
    assert loss["trained"] == pytest.approx(told["loss"]["mean"], abs=1e-4)
    assert found["measure"]["exact_match"]["trained"] == told["exact_match"]["mean"]
    assert json.loads((tmp_path / "merged/parity.json").read_text())["passed"]
    card = (tmp_path / "merged/README.md").read_text()
    assert str(run.recipe.model.path) in card and "data.jsonl" in card


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights, "mean KL"),
        (other_template, "conversation “system”: token 1"),
        (no_template, "refuses"),
        (other_ids, "The quick brown fox"),
        (other_stop, "does not stop"),
        (not_a_number, "mean KL nan"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_a_false_export_fails_and_is_marked(run, tmp_path, monkeypatch, change, named):
    rewritten(monkeypatch, change)
    with pytest.raises(NotTheSame, match=named):
        export(run, "merged", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert json.loads((tmp_path / "merged.failed/parity.json").read_text())["passed"] is False


def test_what_loses_too_much_by_rounding_names_what_to_try(run, tmp_path, monkeypatch):
    """Here by bounds that nothing keeps to; what is wrong in another way gets no such advice."""
    monkeypatch.setattr(gate, "BOUNDS", dict.fromkeys(gate.BOUNDS, gate.Bound(kl=-1, top1=1)))
    with pytest.raises(NotTheSame, match="bound -1; try --to fp8, or --to gguf --precision q4_k_m$"):
        export(run, "int4", tmp_path / "int4")
    monkeypatch.setattr(merged, "instead", lambda settings: "--to adapter", raising=False)
    rewritten(monkeypatch, other_stop)
    with pytest.raises(NotTheSame, match="of the trained model$"):
        export(run, "merged", tmp_path / "merged")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"precision": "q4_k_m"}, "--importance, or --precision q5_k_m"),
        ({"precision": "q4_k_m", "importance": True}, "--precision q5_k_m"),
        ({"precision": "q8_0"}, "--precision bf16"),
        ({}, "--precision f32"),
        ({"precision": "f32"}, None),
    ],
)
def test_a_finer_gguf_is_what_to_try(settings, advice):
    assert gguf.instead(gguf.Settings(**settings)) == advice


def test_no_parity_is_recorded(run, tmp_path):
    export(run, "merged", tmp_path / "merged", parity=False)
    assert json.loads((tmp_path / "merged/parity.json").read_text())["passed"] is None


def test_other_engines_are_compared_too(run, tmp_path, monkeypatch):
    """All that the gate asks of one that is not there is shown by one that is."""
    asked = []

    class Another(Transformers):
        name = "another 1.0"

        def log_probs(self, ids):
            asked.append(len(ids))
            found = super().log_probs(ids)
            return np.where(found >= np.sort(found, 1)[:, [-10]], found, -np.inf)  # tells ten

        def close(self):
            asked.append("closed")

    def fails(*arguments):
        raise UserError("another did not start: no GPU")

    def elsewhere(opener):
        monkeypatch.setattr(merged, "elsewhere", lambda run, folder, settings, say: {"another": lambda: opener(folder)})

    elsewhere(Another.load)
    found = export(run, "merged", tmp_path / "one")
    there = found["elsewhere"]["another"]
    assert there["passed"] and there["engine"] == "another 1.0" and there["logits"]["mean_kl"] < 1e-6
    assert there["logits"]["positions"] == found["logits"]["positions"] and asked.count("closed") == 1

    elsewhere(fails)
    found = export(run, "merged", tmp_path / "two")
    assert found["passed"] and found["elsewhere"]["another"] == {
        "passed": None,
        "problem": "another did not start: no GPU",
    }

    monkeypatch.setattr(
        Another, "generate", lambda self, prompts, most, progress: [Generated([5] * most, False)] * len(prompts)
    )
    monkeypatch.setattr(Another, "log_probs", lambda self, ids: Transformers.log_probs(self, ids[::-1]))
    elsewhere(Another.load)
    with pytest.raises(NotTheSame, match="in another, logits: mean KL"):
        export(run, "merged", tmp_path / "three")
    assert json.loads((tmp_path / "three.failed/parity.json").read_text())["passed"] is False


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 12))
def test_tokens_without_a_probability_count_as_one(seed, words, told):
    """By the definition of KL over the tokens told and the rest together; no more than over all tokens."""
    random = np.random.default_rng(seed)
    p, q = (torch.from_numpy(random.normal(0, 2, (3, words))).log_softmax(1).numpy() for _ in "pq")
    whole = distance([p], [q])["mean_kl"]
    expected = np.mean([divergence(np.exp(a), np.exp(b)) for a, b in zip(p, q)])
    assert whole == pytest.approx(expected, abs=1e-9)
    least = np.sort(q, 1)[:, [-min(told, words)]]
    partly = distance([p], [np.where(q >= least, q, -np.inf)])
    together = []
    for a, b, of_row in zip(np.exp(p), np.exp(q), q >= least):
        (a, b) = (np.append(one[of_row], one[~of_row].sum()) for one in (a, b))
        together.append(divergence(a, b))
    assert partly["mean_kl"] == pytest.approx(np.mean(together), abs=1e-9) and partly["mean_kl"] <= whole + 1e-9


@pytest.mark.parametrize("missed", range(6))
def test_a_few_answers_without_an_end_may_be_chance(missed):
    """Beside all outcomes of five answers, one by one."""
    expected = sum(
        math.prod(0.1 if gone else 0.9 for gone in outcome)
        for outcome in itertools.product([True, False], repeat=5)
        if sum(outcome) >= missed
    )
    assert chance(missed, 5) == pytest.approx(expected) and (chance(missed, 5) < CHANCE) == (missed > 2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"adapter": {"modules_to_save": ["lm_head"]}}, "modules_to_save"),
        ({"tokens": ["<call>"]}, "new tokens"),
        ({}, ""),
    ],
)
def test_an_adapter_that_vllm_does_not_load_is_noted(recipe, tmp_path, settings, named):
    notes = export(train(recipe(train=QUICK, **settings)), "adapter", tmp_path / "out", parity=False)["notes"]
    assert named in " ".join(notes) and bool(notes) == bool(named)


def test_a_failed_export_leaves_nothing(run, tmp_path, monkeypatch):
    def broken(folder):
        raise RuntimeError("as a full disk would")

    rewritten(monkeypatch, broken)
    with pytest.raises(RuntimeError):
        export(run, "merged", tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("to", "settings", "said"),
    [
        ("gold", {}, "choose adapter, fp8, gguf, gguf-adapter, int4, merged, ollama"),
        (
            "merged",
            {"precision": "q8_0"},
            "--precision: --to merged does not take it; forms that do: gguf, ollama",
        ),
        ("gguf", {"rounds": 2}, "--rounds: --to gguf does not take it; no form does"),
        ("merged", {"into": "half"}, "into"),
    ],
)
def test_mistakes(run, tmp_path, to, settings, said):
    with pytest.raises(UserError, match=said):
        export(run, to, tmp_path / "out", settings)


def test_the_adapter_alone(run):
    found = export(run, "adapter")
    assert found["passed"] and found["folder"] == str(run.folder / "adapter-export")  # run.folder / "adapter" is there


@pytest.mark.parametrize("base", ["llama3", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "smollm3", "olmo2"])
def test_ollama_templates_write_what_the_chat_template_writes(recipe, base):
    tokenizer = Prepared.open(train(recipe(base, train={"max_steps": 1}))).tokenizer
    template = Template.of(tokenizer)
    said = {"system": "Be brief. 🙂", "user": "What is {{2}}?", "assistant": 'It is "4".'}
    system, first, answer = ({"role": role, "content": content} for role, content in said.items())
    second = {"role": "user", "content": "And\n\nnow?"}
    for messages in ([first], [system, first], [first, answer, second], [system, first, answer, second, answer, first]):
        assert template.render(messages) == tokenizer.render(messages, add_generation_prompt=True)


GO = """package main
import ("encoding/json"; "os"; "text/template")
type message struct { Role, Content string }
func main() {
    var given struct { Template string; Conversations [][]message }
    if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil { panic(err) }
    parsed := template.Must(template.New("").Parse(given.Template))
    for _, messages := range given.Conversations {
        if err := parsed.Execute(os.Stdout, map[string]any{"Messages": messages}); err != nil { panic(err) }
        os.Stdout.WriteString("\\x00")
    }
}"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("go"), reason="needs Go, whose text/template Ollama uses")
@pytest.mark.parametrize("base", ["llama3", "qwen2", "mistral", "gemma3", "phi3"])
def test_go_runs_the_ollama_template_as_we_do(recipe, tmp_path, base):
    template = replace(Template.of(Prepared.open(train(recipe(base, train={"max_steps": 1}))).tokenizer), trimmed=[])
    conversations = [
        [{"role": role, "content": f'{role} "{{{{x}}}}" 🙂\n'} for role in roles.split()]
        for roles in ("user", "system user", "user assistant user", "system user assistant user assistant user")
    ]
    (tmp_path / "main.go").write_text(GO)
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go")],
        capture_output=True,
        text=True,
        check=True,
        input=json.dumps({"Template": template.go_text(), "Conversations": conversations}),
        env=os.environ | {"GOCACHE": str(tmp_path / "cache"), "GOFLAGS": "-mod=mod"},
    )
    assert done.stdout.split("\x00")[:-1] == [template.render(messages) for messages in conversations]
