"""Evaluation, answers, checkpoints and the disk are predicted as a real run has them."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig

from tests import tiny
from tests.conftest import slow_but, sums, write_rows
from tests.planner.test_layouts import SMALL
from tests.planner.test_trace import CASES, MACHINE, asked, deeper
from tunesmith import train
from tunesmith.cli.main import main
from tunesmith.cli.plan_report import summary_lines
from tunesmith.errors import UserError
from tunesmith.evaluate.generate import answers
from tunesmith.finetune import prepare
from tunesmith.machine import Gpu, Machine, probe
from tunesmith.model.adapt import adapt
from tunesmith.model.load import config_of, load
from tunesmith.plan import Plan
from tunesmith.planner import beside_trace, predict, trace
from tunesmith.planner.beside_steps import (
    ANSWERING,
    EVALUATING,
    Asked,
    Beside,
    BesideSpeed,
    Device,
    beside_speed,
    occasions,
    seconds_by_part,
)
from tunesmith.planner.cost import Lane, Speed, Work
from tunesmith.planner.disk import disk_by_sizes
from tunesmith.planner.live_bytes import LiveBytes
from tunesmith.planner.prediction import Prediction
from tunesmith.planner.rates import DiskRates, HostRates, Rates
from tunesmith.planner.rows import Training, training
from tunesmith.recipe import Recipe
from tunesmith.training import packed_attention
from tunesmith.training.batch import collate
from tunesmith.training.build import inspect
from tunesmith.training.loss import autocast, token_losses

GB = 10**9
ROW, NEW, PROMPTS = 200, 60, 3
ASKED = Asked(100, PROMPTS, NEW)
QUICK = [("llama3", "lora", "none"), ("gpt_oss", "full", "none")]


def _ignore(*_, **__) -> None:
    pass


def traced(base: Path, kind: str, quantize: str = "none", train: dict | None = None) -> tuple[Recipe, Plan]:
    recipe, plan = asked(base, kind, train or {}, quantize, sequence_length=ROW)
    return recipe, replace(plan, micro_batch_tokens=2 * ROW)


@pytest.mark.parametrize(
    ("name", "kind", "quantize"),
    slow_but(QUICK, [*product(tiny.FAMILIES, ("lora", "full"), ("none",)), ("qwen3", "lora", "nf4")]),
)
def test_evaluation_and_answers_take_the_bytes_of_real_ones(family, name, kind, quantize):
    """A real pass over prompts may have its peak before the keys and values of the last layer are there."""
    base = family(name)
    recipe, plan = traced(base, kind, quantize)
    found = beside_trace.trace_beside(recipe, plan, config_of(base), ASKED)
    attention = packed_attention.choose(config_of(base), plan.packing)
    model = load(recipe.model, base, getattr(torch, plan.weights), attention, 0)
    model, live = adapt(model, recipe.adapter, [], model.get_input_embeddings().num_embeddings), LiveBytes()
    built = trace.build(live, model, recipe, plan, None, lambda model, plan: inspect(model, plan, _ignore))
    built.model.eval()
    with live:
        live.begin("batch")
        before = live.now
        batch = collate([(np.arange(5, 5 + ROW), np.ones(ROW, bool))] * 2, np.arange(2), built.plan.packing)
        with autocast(built.plan), torch.inference_mode():
            token_losses(built.model, batch, built.head)
        evaluated = live.peak - before
        del batch
        live.begin("answers")
        before = live.now
        with autocast(built.plan):
            made = answers(built.model, [[5 + n] * ROW for n in range(PROMPTS)], NEW, [])
        answered = live.peak - before
    assert [len(answer.ids) for answer in made] == [NEW] * PROMPTS
    assert sum(found.stages[EVALUATING].values()) == evaluated
    predicted, kept = sum(found.stages[ANSWERING].values()), found.stages[ANSWERING][beside_trace.KEYS]
    assert predicted - kept <= answered <= predicted
    text = config_of(base).get_text_config()
    heads, width = text.num_key_value_heads, getattr(text, "head_dim", None) or text.hidden_size // 4
    room, nbytes = -(-(ROW + NEW) // 64) * 64, getattr(torch, plan.compute).itemsize
    assert kept == PROMPTS * room * text.num_hidden_layers * 2 * heads * width * nbytes


@pytest.mark.parametrize(("name", "case"), slow_but([("llama3", "LoRA")], [*product(("gemma3", "qwen3_moe"), CASES)]))
def test_two_depths_give_all_layers(family, name, case, monkeypatch):
    kind, train = CASES[case]
    recipe, plan = traced(family(name), kind, "nf4" if case == "nf4" else "none", train)
    deep = deeper(config_of(family(name)), 6)
    found = beside_trace.trace_beside(recipe, plan, deep, ASKED)
    monkeypatch.setattr(beside_trace, "_at_all_layers", lambda measure, config: measure(config))
    assert found == beside_trace.trace_beside(recipe, plan, deep, ASKED)


RUNS = {
    "LoRA": {},
    "full": {"adapter": {"kind": "full"}},
    "8 bits": {"adapter": {"kind": "full"}, "train": {"optimizer": "adamw_8bit"}},
    "Adafactor": {"adapter": {"kind": "full"}, "train": {"optimizer": "adafactor", "weights": "bfloat16"}},
    "Muon": {"adapter": {"kind": "full"}, "train": {"optimizer": "muon"}},
    "new tokens": {"tokens": ("<one>", "<two>")},
}


def tensor_bytes(*files: Path) -> int:
    found = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            found += sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118  it is no mapping
    return found


@pytest.mark.parametrize("case", slow_but(["LoRA", "Adafactor"], RUNS))
def test_a_run_does_and_leaves_what_is_predicted(recipe, family, case):
    """Events and the bytes of tensors. Files have headers too, and new tokens make the tokenizer longer."""
    changes = dict(RUNS[case])
    changes["train"] = changes.get("train", {}) | {"max_steps": 7, "eval_every": 3, "save_every": 2, "sample_every": 2}
    if changes.get("adapter") and "weights" in changes["train"]:
        changes["model"] = {"dtype": "auto"}
    made = recipe(**changes, data={"eval_share": 0.1}, evaluate={"samples": 2})
    found = predict.predict(made, probe(made.output), config_of(family("llama3")), family("llama3"))
    run = train(made)
    counts = {kind: len(run.events(kind)) for kind in ("eval", "samples", "checkpoint")}
    times = occasions(made, 7, 7, True)
    assert counts == {"eval": 1 + times.evaluations, "samples": times.samples, "checkpoint": times.checkpoints}
    assert found.training.held_out_rows == len(json.loads(run.before_file.read_text())["losses"])

    kept = sorted(run.checkpoints.iterdir())
    assert 2 <= len(kept) <= found.disk.checkpoints == made.train.keep_checkpoints + 1 and found.disk.writes_more
    for checkpoint in kept:
        files = [checkpoint / "trained.safetensors", checkpoint / "optimizer.safetensors"]
        assert tensor_bytes(*files) == found.disk.checkpoint_bytes
    results, tokenizer = [*run.result.glob("*.safetensors")], sum(f.stat().st_size for f in run.tokenizer.iterdir())
    assert tensor_bytes(*results) + 2 * tokenizer == pytest.approx(found.disk.result_bytes, abs=1000)
    by_sizes = disk_by_sizes(made, found.plan, config_of(family("llama3")), family("llama3"), probe(made.output))
    assert by_sizes.checkpoint_bytes == pytest.approx(found.disk.checkpoint_bytes, rel=0.25)


def test_the_best_checkpoints_are_saved_as_well(recipe):
    made = recipe(train={"result": "best", "eval_every": 2, "save_every": 5, "max_steps": 7}, data={"eval_share": 0.1})
    run = train(made)
    steps = [event["step"] for event in run.events("checkpoint")]
    assert len(steps) <= occasions(made, 7, 7, True).checkpoints == len({0, 2, 4, 5, 6, 7})
    assert {0, 5, 7} <= {*steps} <= {0, 2, 4, 5, 6, 7}


def test_a_run_that_ends_early_does_less():
    """Evaluations are as far apart as those of a run that ends late."""
    whole = Recipe.build({"model": {"path": "m"}, "data": "d"})
    assert occasions(whole, 100, 100, True).evaluations == 10
    early = occasions(whole, 100, 35, True)
    assert (early.evaluations, early.checkpoints) == (4, 4)
    none = occasions(whole, 100, 100, False)
    assert (none.evaluations, none.checkpoints) == (0, 10)


def test_held_out_rows_are_counted_as_a_run_has_them(recipe, family, tmp_path):
    rows = write_rows(tmp_path / "eval.jsonl", sums(30, 1000))
    for data in ({"eval_share": 0.5, "eval_limit": 7}, {"eval_share": 0.02}, {"eval": str(rows), "eval_limit": 20}):
        made = recipe(data=data, train={"max_steps": 1}, name=f"run{len(str(data))}")
        plan = predict.without_memory(made, MACHINE, config_of(family("llama3")))
        expected = train(made).events("data")[0]
        found = training(made, plan, family("llama3"))
        assert found.held_out_rows == expected["held_out"]


PER_SECOND = Rates(10**12, 10**10, 10**10, 5 * 10**9, 0.003, 300.0, "measured")
BESIDE = Beside({}, 1000, Work(10**12, 10**9), Work(10**9, 10**9), 4 * 10**9, 4, 20 * 10**9, 10**9, 10**9)
HOST = HostRates(50e9, "measured")


def test_the_speed_beside_steps_by_hand():
    """A pass of 1,000 tokens computes for 1 s; a token of each answer reads 5 GB in 0.5 s."""
    here = Device(BESIDE, PER_SECOND, 1.0, 30, 0, True)
    found = beside_speed([here], HOST, DiskRates(1e9, 2e9), 6 * 10**9)
    assert found == BesideSpeed(1000.0, 0.5, 4, 4.0, 20.0, 3.0, 1.0)
    launching = replace(here, layers=1000)
    assert beside_speed([launching], HOST, DiskRates(), 0).token_seconds == pytest.approx(1.0)  # a third of 3 ms each
    alone = replace(PER_SECOND, weights_bytes_per_second=2e9, launches_overlap=False)  # as a CPU
    on_cpu = beside_speed([replace(here, rates=alone)], HOST, DiskRates(), 0)
    assert on_cpu.token_seconds == pytest.approx(30 * 0.001 + 0.1 + 2)
    streaming = replace(here, away_bytes=30 * 10**9, checkpoint_is_here=False)
    found = beside_speed([streaming], HOST, DiskRates(), 0)
    assert (found.tokens_per_second, found.token_seconds) == pytest.approx((1000 / 3, 3.0))
    assert found.copy_seconds == pytest.approx(0.8) and found.write_seconds is found.load_seconds is None
    both = beside_speed([replace(here, share=0.5)] * 2, HOST, DiskRates(), 0)
    assert (both.tokens_per_second, both.together) == (2000.0, 8)


def test_the_time_of_a_run_by_hand():
    """10 evaluations of 100 rows of 50 tokens, and one before and after; 3 answers of 128 tokens."""
    recipe = Recipe.build({"model": {"path": "m"}, "data": "d", "train": {"batch": 10}})
    speed = Speed(1000, 1.0, [Lane(1000, 1, 0, 0, 0)], 0.0, "compute", None)
    beside = BesideSpeed(500.0, 0.5, 2, 1.0, 30.0, 4.0, 2.0)
    amount = Training(100, 100 * 10 * 100.0, 100.0, False, 100, 50.0)
    parts = seconds_by_part(recipe, speed, beside, amount)
    answers_seconds = (2 * 128 + 4) * 0.5 + 3 * 50 / 500
    assert parts == pytest.approx(
        {
            "training": 100.0,
            "evaluation": 12 * 10.0,
            "answers": 2 * answers_seconds,
            "checkpoints": 10 * 1.0 + 9 * (30.0 - 10.0) + 30.0,  # each is written in 30 s, and begun every 10 s
            "loading and saving": 6.0,
        }
    )
    assert seconds_by_part(recipe, speed, None, amount) == {"training": 100.0}
    exact = Recipe.build({"model": {"path": "m"}, "data": "d", "evaluate": {"exact_match": True, "max_new_tokens": 10}})
    assert seconds_by_part(exact, speed, beside, amount)["answers"] == pytest.approx(2 * ((500 + 4) * 0.5 + 10.0))
    without = replace(amount, held_out_rows=0)
    assert {"evaluation", "answers"}.isdisjoint(seconds_by_part(recipe, speed, beside, without))


def test_answers_that_do_not_fit_are_refused(tmp_path):
    """Examples of 64 tokens, and up to 3 answers of 8,000: their keys and values take more than the step."""
    changes = {"num_key_value_heads": 32, "max_position_embeddings": 16384, "num_hidden_layers": 2}
    config = LlamaConfig(**SMALL.to_dict() | changes)
    config.save_pretrained(tmp_path)
    asked = {
        "model": {"path": str(tmp_path), "dtype": "bfloat16"},
        "data": {"train": "none", "sequence_length": 64},
        "train": {"micro_batch": 1, "gradient_checkpointing": "on", "batch": 1, "kept_layers": "all"},
        "evaluate": {"max_new_tokens": 8000},
    }
    kept = 2 * 8064 * 2 * 2 * 2048 * 2  # of two answers, as 16,384 tokens are the most

    def predicted(free: int) -> Prediction:
        machine = Machine("", "", 8, 64 * GB, 64 * GB, None, True, gpus=[Gpu(0, "GPU", free, free, (8, 6))])
        found = predict.predict(Recipe.build(asked), machine, config_of(tmp_path), tmp_path)
        assert found.tightest.stage == ANSWERING and found.tightest.parts["keys and values"] == kept
        return found

    roomy = predicted(8 * GB)
    found = predicted(int(roomy.tightest.nbytes / 0.91))
    assert roomy.fits and found.fits is False
    assert "answering held-out prompts needs" in found.refusal
    assert [other.change for other in found.remedies] == ["evaluate.max_new_tokens: 128", "evaluate.samples: 0"]


def test_a_disk_that_is_too_small_is_refused(recipe, tmp_path, monkeypatch, capsys):
    made = recipe("qwen3", train={"max_steps": 1})
    (tmp_path / "recipe.yaml").write_text(made.dump())
    small = replace(probe(tmp_path), free_disk_bytes=1000)
    monkeypatch.setattr("tunesmith.cli.plan.probe", lambda folder: small)
    monkeypatch.setattr(prepare, "probe", lambda folder: small)
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(tmp_path / "recipe.yaml")])
    shown = capsys.readouterr()
    [line] = [line for line in shown.out.splitlines() if line.startswith("disk    ")]
    assert line.endswith("1.0 kB free  does not fit") and "1 checkpoint and the result" in line
    assert ended.value.code == 2 and len(shown.err.splitlines()) == 1 and "1.0 kB are free" in shown.err
    with pytest.raises(UserError, match=r"^output: .*/runs: checkpoints of .* and 1.0 kB are free; .*--force"):
        train(made)
    assert not [*made.output.glob("*")]
    from tunesmith.finetune import job

    run = job.train(made, force=True)
    assert "1.0 kB are free" in " ".join(event["message"] for event in run.events("warning"))


def test_the_disk_of_another_machine_is_not_known(family, capsys):
    asked = ["plan", "--model", str(family("llama3")), "--machine", "4090,host=64GB"]
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--data.sequence-length", "512"])
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("disk    ")]
    assert not ended.value.code and "free" not in line and "3 checkpoints" in line


def test_screens_and_files_have_the_parts(recipe, tmp_path, monkeypatch, capsys):
    made = recipe(data={"eval_share": 0.2}, evaluate={"samples": 3})
    (tmp_path / "recipe.yaml").write_text(made.dump())
    asked = ["plan", str(tmp_path / "recipe.yaml"), "--machine", "4090,host=64GB"]
    with pytest.raises(SystemExit):
        main(asked)
    shown = capsys.readouterr().out
    assert " of it evaluation" in shown and max(map(len, shown.splitlines())) <= 80
    with pytest.raises(SystemExit):
        main([*asked, "--json"])
    found = json.loads(capsys.readouterr().out)
    parts = found["cost"]["parts"]
    assert parts.keys() == {"training", "evaluation", "answers", "checkpoints"}  # no disk was measured
    assert found["cost"]["seconds"] == pytest.approx(sum(parts.values()))
    assert found["disk"]["fits"] is None and found["disk"]["needed_bytes"] >= found["disk"]["checkpoint_bytes"]

    monkeypatch.setattr(prepare, "surely_fits", lambda *given: False)
    predicted = train(made).plan.predicted
    lines = summary_lines(predicted | {"seconds": 1.0, "seconds_by_part": parts, "tokens_per_second": 9.0})
    assert predicted["disk"]["free_bytes"] and max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines] == ["memory", "time", "9", "disk"]


def test_held_out_rows_on_the_hub_are_left_out_of_the_time(recipe, family, tmp_path, capsys):
    """Planning downloads nothing."""
    (tmp_path / "recipe.yaml").write_text(recipe(data={"eval": "hub:org/rows"}).dump())
    with pytest.raises(SystemExit):
        main(["plan", str(tmp_path / "recipe.yaml"), "--machine", "4090,host=64GB"])
    shown = capsys.readouterr().out
    assert "without evaluation and answers: data.eval: hub:org/rows is on the hub" in shown and "steps," in shown
