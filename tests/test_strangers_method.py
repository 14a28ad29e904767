"""A method from a stranger's installed package: pairs of sequences, settings of its own, a loss over log-probabilities.

The reference is written here with whole logits and no code of the product's training.
"""

import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from tests.conftest import sums, write_rows
from tunesmith import Recipe, resume, train
from tunesmith.errors import UserError
from tunesmith.finetune.prepared import Prepared
from tunesmith.recipe import METHODS

SOURCE = textwrap.dedent(
    """
    import torch.nn.functional as F
    from typing import Literal
    from tunesmith.data.masking import encode_chat
    from tunesmith.data.rows import Chat
    from tunesmith.recipe import MethodSettings

    reads = (Chat,)
    unit = "row"


    class Settings(MethodSettings):
        \"\"\"asked: the answer is to be likelier behind its question than behind another one.\"\"\"

        name: Literal["asked"] = "asked"
        beta: float = 0.5
        \"\"\"How sharp the preference is.\"\"\"


    def encode(tokenizer, row, settings):
        other = [{**m, "content": "What?"} if m["role"] == "user" else m for m in row.messages]
        [right] = encode_chat(tokenizer, row, "assistant")
        [wrong] = encode_chat(tokenizer, Chat(other), "assistant")
        return [(right, wrong)]


    def loss(answers, settings):
        right_G, wrong_G = answers.sums_D().view(-1, 2).unbind(1)
        gap_G = settings.beta * (right_G - wrong_G)
        return -F.logsigmoid(gap_G).sum(), {"gap": gap_G.sum()}
    """
)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    (tmp_path / "asked_method.py").write_text(SOURCE)
    facts = tmp_path / "asked-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: asked\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[tunesmith.methods]\nasked = asked_method\n")
    monkeypatch.syspath_prepend(tmp_path)
    METHODS.__dict__.pop("_places", None)
    yield
    METHODS.__dict__.pop("_places", None)


def of(recipe, tmp_path, **train):
    write_rows(tmp_path / "rows.jsonl", sums(24))
    return recipe(
        "llama3",
        name=train.pop("name", "run"),
        data={"train": str(tmp_path / "rows.jsonl"), "packing": train.pop("packing", True), "eval_share": 0.2},
        method={"name": "asked", "beta": 0.25},
        adapter={"kind": "full"},
        train={"batch": 4, "max_steps": 4, "warmup_ratio": 0, "max_grad_norm": 0, "weight_decay": 0} | train,
    )


def plain_losses(run) -> list[float]:
    """The same optimisation with whole logits, one pair at a time."""
    prepared, settings = Prepared.open(run), run.recipe.train
    model = AutoModelForCausalLM.from_pretrained(run.base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0)
    tokens, losses = prepared.dataset.train, []
    for step in range(1, prepared.schedule.steps + 1):
        rate = next(event["learning_rate"] for event in run.events("step") if event["step"] == step)
        optimizer.param_groups[0]["lr"] = rate
        rows, total = prepared.schedule.step_rows(step), 0.0
        for row in rows:
            loss = pair_loss(model, *tokens[row]) / len(rows)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def pair_loss(model, ids, supervised, lengths) -> torch.Tensor:
    pair = zip(np.split(ids, lengths[:1]), np.split(supervised, lengths[:1]))
    right, wrong = (log_prob(model, *sequence) for sequence in pair)
    return -F.logsigmoid(0.25 * (right - wrong))


def log_prob(model, ids, supervised) -> torch.Tensor:
    ids = torch.from_numpy(ids.astype(np.int64))
    log_probs_TV = model(ids[None]).logits[0, :-1].log_softmax(-1)
    taken_T = log_probs_TV.gather(1, ids[1:, None])[:, 0]
    return taken_T[torch.from_numpy(supervised[1:])].sum()


def losses(run) -> list[float]:
    return [event["loss"] for event in run.events("step")]


def test_it_learns_as_a_plain_loop_does_however_rows_are_dealt(recipe, tmp_path, installed):
    runs = [
        train(of(recipe, tmp_path, name="packed")),
        train(of(recipe, tmp_path, name="padded", packing=False)),
        train(of(recipe, tmp_path, name="one by one", micro_batch=1)),
    ]
    expected = plain_losses(runs[0])
    assert expected[0] != pytest.approx(expected[-1], rel=1e-2)
    for run in runs:
        assert losses(run) == pytest.approx(expected, rel=1e-4)
        gaps = [event["metrics"]["gap"] for event in run.events("step")]
        assert len(gaps) == 4 and all(np.isfinite(gaps))
        held_out, base = Prepared.open(run).dataset.eval, AutoModelForCausalLM.from_pretrained(run.base)
        with torch.no_grad():
            untrained = [pair_loss(base, *held_out[row]).item() for row in range(len(held_out))]
        assert len(untrained) > 1 and run.events("eval")[0]["loss"] == pytest.approx(np.mean(untrained), rel=1e-5)


def test_two_processes_learn_what_one_does(recipe, tmp_path, installed, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    one = train(of(recipe, tmp_path, name="one"))
    two = train(of(recipe, tmp_path, name="two", processes=2))
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    for event, other in zip(one.events("step"), two.events("step")):
        assert other["metrics"]["gap"] == pytest.approx(event["metrics"]["gap"], rel=1e-4, abs=1e-5)


def test_its_settings_are_keys_of_the_recipe(recipe, tmp_path, installed):
    asked = of(recipe, tmp_path)
    assert asked.method.beta == 0.25 and "beta: 0.25" in asked.dump()
    assert "beta" in str(Recipe.model_json_schema()["$defs"]["MethodSettings"])
    for method, message in (
        ({"name": "asked", "bta": 1}, "unknown key `method.bta`; did you mean `method.beta`"),
        ({"name": "sft", "beta": 1}, "method.beta"),
        ({"name": "askd"}, "`method.name` must be .*did you mean asked"),
        ({"name": "asked", "beta": "much"}, "`method.beta` must be a number"),
    ):
        with pytest.raises(UserError, match=message):
            recipe("llama3", method=method)


def test_a_row_of_another_kind_is_named_in_the_ledger(recipe, tmp_path, installed):
    (tmp_path / "book.txt").write_text("word " * 50)
    with pytest.raises(UserError, match="method.name: asked does not read plain text; use cpt"):
        train(recipe("llama3", data={"train": str(tmp_path / "book.txt")}, method={"name": "asked"}))


def test_it_resumes(recipe, tmp_path, installed):
    whole = train(of(recipe, tmp_path, name="whole", save_every=2))
    for part in ("adapter", "model", "eval.json"):
        if (whole.folder / part).is_dir():
            (whole.folder / part).rename(tmp_path / part)
    expected = losses(whole)
    last = sorted(whole.checkpoints.glob("step-*"))[-1]
    last.rename(tmp_path / "last")
    again = resume(whole.folder)
    assert losses(again) == expected
