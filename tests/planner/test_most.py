"""The most that fits is found: one step longer does not fit, by the plan itself."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from tunesmith.cli.main import main
from tunesmith.model.load import config_of
from tunesmith.planner import trace
from tunesmith.planner.machine_spec import described
from tunesmith.planner.most import last_that, lengths, most
from tunesmith.planner.predict import predict
from tunesmith.recipe import Recipe

SMALL = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=2,
    num_attention_heads=16,
    num_key_value_heads=4,
    max_position_embeddings=12000,
)
PASS = {"micro_batch": 1, "gradient_checkpointing": "on"}


@pytest.fixture
def base(tmp_path) -> Path:
    SMALL.save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def recipe_of(base: Path, kind: str, length: int | str = 2048, **train) -> Recipe:
    return Recipe.build(
        {
            "model": {"path": str(base)},
            "data": {"train": "none", "sequence_length": length},
            "adapter": {"kind": kind},
            "train": train,
        }
    )


def test_bisection_finds_the_last_value_that_fits():
    for count in range(20):
        for limit in range(-1, count):
            tried: list[int] = []

            def fits(n: int, limit: int = limit, tried: list[int] = tried) -> str | None:
                tried.append(n)
                return str(n) if n <= limit else None

            assert last_that(range(count), fits) == ((limit, str(limit)) if limit >= 0 else None)
            assert len({*tried}) == len(tried) <= 10 and max(tried, default=0) <= 2 * max(0, limit) + 2


def test_lengths_are_fine_below_8k_and_end_at_the_positions():
    assert lengths(2000) == [512, 1024, 1536, 2000]
    assert lengths(32768)[-7:] == [8192, 12288, 16384, 20480, 24576, 28672, 32768]
    assert all(length % 512 == 0 for length in lengths(None))


@pytest.mark.slow
def test_the_longest_is_what_the_plan_says(base, monkeypatch):
    """In full, all weights with moments fit on 8 GB, and few activations beside them. Each step is traced once."""
    traced = []
    real = trace.trace_step
    monkeypatch.setattr(trace, "trace_step", lambda *a: traced.append(str(a[3:])) or real(*a))
    config, machine = config_of(base), described("3070,host=64GB")
    found = most(recipe_of(base, "full", 512), machine, config, base)
    assert len(traced) == len({*traced})
    longest = found.sequence_length.resident
    following = lengths(found.positions)[lengths(found.positions).index(longest.value) + 1]
    for length, fits in ((longest.value, True), (following, False)):
        kept = recipe_of(base, "full", length, kept_layers="all", **PASS)
        plan = predict(kept, machine, config, base)
        assert plan.fits is fits
        assert not fits or plan.tightest.nbytes == longest.needed_bytes
    assert found.rank is None and found.gpus == [["NVIDIA GeForce RTX 3070"]]


@pytest.mark.slow
def test_layers_in_host_memory_make_room_for_longer_examples(tmp_path):
    """8 layers take 3.5 of 7.9 GB."""
    wide = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 8}
    LlamaConfig(**SMALL.to_dict() | wide | {"max_position_embeddings": 65536}).save_pretrained(tmp_path)
    machine, config = described("3070,host=64GB"), config_of(tmp_path)
    found = most(recipe_of(tmp_path, "lora", 512), machine, config, tmp_path).sequence_length
    assert found.streaming.value > found.resident.value and found.streaming.kept_layers[0] < 8
    kept = most(recipe_of(tmp_path, "lora", 512, kept_layers="all"), machine, config, tmp_path).sequence_length
    assert kept.resident == found.resident and kept.streaming is None


def test_the_command_shows_the_most(family, capsys):
    """Of a model so small that all of it fits: its positions, the largest rank, either GPU."""
    asked = ["plan", "--model", str(family("llama3")), "--for", "fit", "--data.sequence-length", "512"]
    positions = config_of(family("llama3")).max_position_embeddings
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--machine", "4090+3070,host=64GB"])
    shown = capsys.readouterr().out.splitlines()
    assert not ended.value.code and max(map(len, shown)) <= 80
    assert any(line.startswith(f"length  {positions:,} tokens") for line in shown)
    assert "        the model has no more positions" in shown
    assert any(line.startswith("rank    512 at 512 tokens") for line in shown)
    assert "GPUs    1 at 512 tokens: NVIDIA GeForce RTX 4090, or NVIDIA GeForce RTX 3070" in " ".join(shown)
    with pytest.raises(SystemExit):
        main([*asked, "--machine", "3070,host=16GB", "--adapter.kind", "full", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["sequence_length"]["resident"]["value"] == positions and found["rank"] is None


def test_nothing_fits(tmp_path, capsys):
    wide = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 80}
    LlamaConfig(**SMALL.to_dict() | wide).save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--model", str(tmp_path), "--machine", "3070,host=16GB", "--for", "fit"])
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        not ended.value.code
        and "nothing fits" in shown
        and "do not fit on a GPU, and need 135.6 GB of host memory" in shown
    )
