"""What a recipe needs is known without its weights, its data or a network."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import DeepseekV3Config, LlamaConfig

from tunesmith.cli.main import main
from tunesmith.errors import UserError
from tunesmith.machine import Gpu, Machine
from tunesmith.model.load import config_of, local_folder
from tunesmith.planner import depths, trace
from tunesmith.planner.decide import choose
from tunesmith.planner.machine_spec import machine_of
from tunesmith.planner.predict import predict
from tunesmith.planner.quality import PUBLISHED, QUANTIZED, price_in_quality
from tunesmith.recipe import Model, Recipe

GB = 10**9
LLAMA_8B = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
WEIGHTS = 8_030_261_248
LABELS = {f"{label:<8}" for label in ("plan", "memory", "time", "disk", "instead", "fits", "")}


@pytest.fixture
def base(tmp_path) -> Path:
    """A folder with a config.json alone."""
    LLAMA_8B.save_pretrained(tmp_path / "8b")
    return tmp_path / "8b"


def predicted(base: Path, gb: float, kind: str = "lora", **train):
    gpu = Gpu(0, "GPU", int(gb * GB), int(gb * GB), (8, 9))
    machine = Machine("", "", 16, 128 * GB, 128 * GB, 10**12, True, gpus=[gpu])
    recipe = Recipe.build(
        {
            "model": {"path": str(base)},
            "data": {"train": "d", "sequence_length": 2048},
            "adapter": {"kind": kind},
            "train": {"micro_batch": 1} | train,
        }
    )
    return predict(recipe, machine, config_of(base), base)


def test_8b_with_an_adapter_on_24_gb_needs_recomputation(base):
    """Two bytes for each weight, and a little for the adapter; 2,048 tokens in 32 layers, or their inputs alone."""
    found = predicted(base, 24, gradient_checkpointing="off", kept_layers="all")
    assert found.fits is False and found.remedies[0].change == "train.gradient_checkpointing: on"
    shown = found.as_dict()
    assert shown["needs"][0]["needed_bytes"] > shown["needs"][0]["limit_bytes"]
    assert shown["refusal"] == found.refusal and found.remedies[0].change in shown["refusal"]
    assert found.remedies[0].quality == ""
    on = predicted(base, 24, gradient_checkpointing="on")
    assert on.fits and not on.remedies
    parts = on.tightest.parts
    assert 2 * WEIGHTS < parts["weights"] < 2 * WEIGHTS + GB / 2
    inputs, chunk = 2048 * 4096 * 2 * 32, 4 * 2**26  # of all layers; logits of a chunk in float32
    without = found.tightest.parts["activations"]
    assert inputs + chunk < parts["activations"] < inputs + 5 * chunk < without / 5


def test_the_price_in_quality_is_of_the_change():
    """Only what changes the result has one; each published number has a source."""
    assert price_in_quality({"train.micro_batch": 1, "train.gradient_checkpointing": "on"}, "drop") == ""
    assert price_in_quality({"model.quantize": "nf4", "data.sequence_length": 512}, "truncate").endswith("are cut")
    assert "60.2" in price_in_quality({"model.quantize": "nf4"}, "drop")
    assert {published.precision for published in PUBLISHED} >= QUANTIZED.keys()
    assert all(published.source.startswith("https://") for published in PUBLISHED)
    figures = {key: set(re.findall(r"\d+\.\d+", note)) for key, note in QUANTIZED.items()}
    published = {
        key: {n for p in PUBLISHED if p.precision == key for n in re.findall(r"\d+\.\d+", p.result)} for key in figures
    }
    assert all(figures[key] <= published[key] for key in figures)


@pytest.mark.slow
def test_what_training_measures_is_predicted(base):
    """So many rows that they just fit, with which measuring begins."""
    found = predicted(base, 32, micro_batch="auto", gradient_checkpointing="on")
    assert found.fits and 0.7 * 32 * GB < found.tightest.nbytes < 0.9 * 32 * GB
    assert found.plan.micro_batch_tokens % 2048 == 0 and found.traced
    assert "traced" not in found.as_dict()
    one = predicted(base, 16, micro_batch="auto", kept_layers="all")
    assert one.fits is False and one.remedies


def test_what_is_not_traced_is_named(base):
    found = predicted(base, 12, micro_batch="auto")
    assert found.fits is None and found.needs is None and "layers stay in host memory" in found.not_predicted


def test_a_plan_needs_no_weights_and_no_network(base):
    assert local_folder(Model(path=str(base))) == base
    for path, said in (
        ("org/none", "org/none is not in the hub's cache, and planning downloads nothing; `hf download"),
        (str(base.parent), "no config.json in"),
        (str(base / "none"), "no folder"),
    ):
        with pytest.raises(UserError, match=said):
            local_folder(Model(path=path))


def test_a_base_that_cannot_be_trained_is_refused(base):
    config = json.loads((base / "config.json").read_text())
    for change, said in (
        ({"architectures": ["BertForSequenceClassification"]}, "not a causal language model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quantised for inference"),
        ({"model_type": "none_such"}, "transformers cannot read this model"),
    ):
        (base / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=said):
            predicted(base, 24)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("aaaaaaaa", (0, 1)),
        ("ababababab", (0, 2)),
        ("aaaaabaaaaabaa", (0, 6)),
        ("dddaaaaaaaa", (3, 1)),
        ("daabaabaab", (1, 3)),
        ("abcd", (0, 4)),
    ],
)
def test_kinds_of_layers_repeat(kinds, expected):
    begin, period = found = depths.repetition(kinds)
    assert all(kinds[n] == kinds[n - period] for n in range(begin + period, len(kinds)))
    assert found == expected or begin + 3 * period <= expected[0] + 3 * expected[1]


@pytest.mark.slow
def test_dense_layers_before_experts_are_kept(tmp_path):
    """DeepSeek's first layers have no experts. All layers together are what two depths say."""
    config = DeepseekV3Config(
        architectures=["DeepseekV3ForCausalLM"],
        vocab_size=500,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=9,
        first_k_dense_replace=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        max_position_embeddings=512,
    )
    config.save_pretrained(tmp_path)
    config = config_of(tmp_path)
    assert depths.repetition(depths.layer_kinds(config)) == (3, 1)
    recipe = Recipe.build({"model": {"path": str(tmp_path)}, "data": "d"})
    plan = choose(recipe, Machine("", "", 2, GB, GB, GB, True))
    whole = trace.trace(recipe, plan, config, [50])
    assert depths.trace_step(recipe, plan, config, [50]).peak_bytes == whole.peak_bytes


def test_the_command_shows_it(family, tmp_path, capsys):
    main_arguments = ["plan", "--model", str(family("llama3")), "--data", "none.jsonl"]
    with pytest.raises(SystemExit) as ended:
        main([*main_arguments, "--train.micro-batch", "1"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "memory  CPU, " in shown and "hours unknown" not in shown and max(map(len, shown.splitlines())) <= 80
    with pytest.raises(SystemExit):
        main([*main_arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True and found["refusal"] == ""
    assert sum(found["needs"][0]["parts"].values()) == found["needs"][0]["needed_bytes"]
    with pytest.raises(SystemExit) as ended:
        main(["plan"])
    assert ended.value.code == 2 and "plan: no recipe" in capsys.readouterr().err


def test_a_plan_needs_no_data(family, tmp_path, capsys):
    """By flags or by a recipe that has none; a run needs it. Long lines are indented."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {family('llama3')}\ntrain: {{micro_batch: 1}}\n")
    for asked in (["--model", str(family("llama3")), "--train.micro-batch", "1"], [str(recipe)]):
        with pytest.raises(SystemExit) as ended:
            main(["plan", *asked, "--machine", "4090,host=64GB", "--data.sequence-length", "512"])
        shown = capsys.readouterr().out.splitlines()
        assert not ended.value.code and "        hours unknown: no data; name it with --data" in shown
        assert max(map(len, shown)) <= 80 and all(line[:8] in LABELS for line in shown)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(recipe)])
    assert ended.value.code == 2 and "`data.train` is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "flags"),
    [("full", ["adapter.kind", "full"]), ("lora", []), ("nf4", ["model.quantize", "nf4"])],
)
def test_a_method_is_short_for_two_keys(method, flags, base, monkeypatch):
    """Also beside the flags of the recipe's section of that name."""
    planned = []
    monkeypatch.setattr("tunesmith.planner.predict.predict", lambda recipe, *_: planned.append(recipe) or 1 / 0)
    others = ["plan", "--model", str(base), "--machine", "4090,host=64GB", "--method.name", "cpt"]
    for asked in (["--method", method], [f"--{flags[0]}", flags[1]] if flags else []):
        with pytest.raises(ZeroDivisionError):
            main([*others, *asked])
    assert planned[0] == planned[1] and planned[0].method.name == "cpt"


def test_a_wrong_method_or_goal_is_named(base, capsys):
    nf4_in_full = ["--method", "nf4", "--adapter.kind", "full"]
    for wrong in (["--method", "sft"], ["--for", "speed"], nf4_in_full):
        with pytest.raises(SystemExit) as ended:
            main(["plan", "--model", str(base), "--machine", "4090,host=64GB", *wrong])
        error = capsys.readouterr().err.strip()
        assert ended.value.code == 2 and len(error.splitlines()) == 1
        assert "model.quantize freezes" in error if wrong is nf4_in_full else wrong[0] in error


def test_other_machines(base, tmp_path, capsys):
    """By the names of their GPUs, or by the output of `doctor --json` there."""
    model = ["plan", "--model", str(base), "--data", "none.jsonl"]
    one_pass = ["--train.micro-batch", "1", "--train.gradient-checkpointing", "on"]
    gpus = ["--machine", "4090,host=64GB"]
    with pytest.raises(SystemExit) as ended:
        main([*model, *one_pass, *gpus])
    shown = capsys.readouterr().out
    assert not ended.value.code and "RTX 4090" in shown and "none.jsonl: no such file" in shown
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({"machine": machine_of("4090,host=64GB").as_dict()}))
    with pytest.raises(SystemExit):
        main([*model, *one_pass, "--machine", str(file)])
    assert capsys.readouterr().out == shown
    with pytest.raises(SystemExit) as ended:
        main([*model, "--machine", "4900"])
    assert ended.value.code == 2 and "--machine: no GPU 4900; did you mean" in capsys.readouterr().err


@pytest.mark.slow
def test_a_quantised_base_is_predicted_by_a_new_process(base):
    """A quarter of the bytes for what is in the layers; and bitsandbytes keeps tables for the process."""
    (base / "config.json").write_text(
        json.dumps(json.loads((base / "config.json").read_text()) | {"num_hidden_layers": 4})
    )
    asked = ["plan", "--model", str(base), "--data", "none", "--machine", "4090,host=64GB", "--json"]
    asked += ["--train.micro-batch", "1", "--model.quantize", "nf4"]
    shown = subprocess.run([sys.executable, "-m", "tunesmith", *asked], capture_output=True, text=True)
    weights = json.loads(shown.stdout)["needs"][0]["parts"]["weights"]
    vocabulary, layers = 2 * 128256 * 4096, 4 * 218_103_808
    assert 2 * vocabulary + 0.51 * layers < weights < 2 * vocabulary + 0.55 * layers + 60e6  # of the adapter


def test_the_planner_starts_without_torch():
    code = "import sys; import tunesmith.planner.predict; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
