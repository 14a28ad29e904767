"""How many layers a GPU keeps, by the shapes of models that need no disk: their files are sparse."""

import json
import math
from pathlib import Path

import pytest
from transformers import LlamaConfig, Qwen3MoeConfig

from tunesmith.errors import UserError
from tunesmith.machine import Gpu, Machine
from tunesmith.planner.decide import choose
from tunesmith.planner.kept_layers import sizes, with_kept_layers
from tunesmith.recipe import Recipe

GB = 10**9
LLAMA_8B = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8
)
LLAMA_70B = LlamaConfig(
    vocab_size=128256,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
)


def llama_shapes(config: LlamaConfig) -> dict[str, list[int]]:
    hidden, wide, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    low = hidden // config.num_attention_heads * config.num_key_value_heads
    layer = {
        "self_attn.q_proj": [hidden, hidden],
        "self_attn.k_proj": [low, hidden],
        "self_attn.v_proj": [low, hidden],
        "self_attn.o_proj": [hidden, hidden],
        "mlp.gate_proj": [wide, hidden],
        "mlp.up_proj": [wide, hidden],
        "mlp.down_proj": [hidden, wide],
        "input_layernorm": [hidden],
    }
    shapes = {"model.embed_tokens.weight": [vocabulary, hidden], "lm_head.weight": [vocabulary, hidden]}
    for number in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def base_of(shapes: dict[str, list[int]], folder: Path) -> Path:
    """A folder with safetensors of these shapes, in which no block is written but the header."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * 2
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def plan(
    folder: Path, config, gpus: list[float], host: float = 128, quantize: str = "none", kind: str = "lora", **train
):
    machine = Machine(
        "",
        "",
        16,
        int(host * GB),
        int(host * GB),
        10**13,
        True,
        gpus=[Gpu(i, f"GPU {i}", int(gb * GB), int(gb * GB), (8, 6)) for i, gb in enumerate(gpus)],
    )
    recipe = Recipe.build(
        {
            "model": {"path": "m", "quantize": quantize},
            "data": "d",
            "train": {"micro_batch": 1} | train,
            "adapter": {"kind": kind},
        }
    )
    return with_kept_layers(choose(recipe, machine), recipe, config, base_of(llama_shapes(config), folder), machine)


@pytest.mark.parametrize(("quantize", "gpus"), [("none", [24]), ("nf4", [12]), ("nf4", [12, 24])])
def test_a_model_that_fits_stays_on_the_gpu(tmp_path, quantize, gpus):
    assert plan(tmp_path, LLAMA_8B, gpus, quantize=quantize).kept_layers is None


def test_each_gpu_keeps_the_layers_that_it_has_room_for(tmp_path):
    mixed = plan(tmp_path, LLAMA_8B, [24, 12])
    assert mixed.kept_layers[0] == 32 and 0 < mixed.kept_layers[1] < 32
    assert mixed.gradient_checkpointing == "off" and "kept_layers" in mixed.reasons
    less, more = (plan(tmp_path, LLAMA_8B, [gb]) for gb in (10, 14))
    assert 0 <= less.kept_layers[0] < more.kept_layers[0] < 32 and more.gradient_checkpointing == "on"


def test_a_layer_has_the_bytes_of_its_weights(tmp_path):
    folder, recipe = base_of(llama_shapes(LLAMA_8B), tmp_path), Recipe.build({"model": "m", "data": "d"})
    machine = Machine("", "", 1, GB, GB, GB, True, gpus=[Gpu(0, "", GB, GB, (8, 6))])
    found = sizes(choose(recipe, machine), recipe, LLAMA_8B, folder)
    assert found.layer == 2 * (218_103_808 + 4096)  # 8.03 billion less the vocabulary, by 32
    assert found.rest > 2 * 2 * 128256 * 4096


def test_70b_in_4_bits_streams_through_a_24_gb_gpu(tmp_path):
    found = plan(tmp_path, LLAMA_70B, [24], host=64, quantize="nf4")
    assert 0 <= found.kept_layers[0] < 80 and found.activation_offload


def test_inputs_of_layers_have_room_in_host_memory(tmp_path):
    """A token of the 70B model has 80 inputs of 8,192 numbers. The weights at home take 25 GB, or a little more."""
    input_bytes, tokens = 80 * 8192 * 2, 32 * 2048
    found = plan(tmp_path, LLAMA_70B, [24, 24], host=64, quantize="nf4")
    assert tokens * input_bytes > 64 * GB
    assert 20 * GB < 2 * found.walk_tokens * input_bytes < 0.9 * 64 * GB - 25 * GB
    assert plan(tmp_path, LLAMA_70B, [24, 24], host=256, quantize="nf4").walk_tokens is None
    assert plan(tmp_path, LLAMA_8B, [24, 12]).walk_tokens is None
    auto = plan(tmp_path, LLAMA_70B, [24, 24], host=44, quantize="nf4", micro_batch="auto")
    assert 2048 <= auto.walk_tokens == auto.micro_batch_tokens < 16384
    with pytest.raises(UserError, match=r"train.micro_batch: the layers' inputs of [\d,]+ tokens fit in host memory"):
        plan(tmp_path, LLAMA_70B, [24, 24], host=44, quantize="nf4", micro_batch=8)
    small = {"weights": "bfloat16", "optimizer": "adafactor"}
    with pytest.raises(UserError, match=r"train.batch: the layers' inputs of a step need 137.4 GB of host memory, and"):
        plan(tmp_path, LLAMA_8B, [24], host=64, kind="full", batch=256, **small)


@pytest.mark.parametrize(
    ("config", "gpus", "host", "quantize", "said"),
    [
        (LLAMA_70B, [24], 16, "nf4", r"model.path: \d+ of 80 layers do not fit on a GPU, and need .* of host memory"),
        (LLAMA_70B, [24], 64, "none", "model.quantize: nf4 needs about a quarter"),
        (LLAMA_70B, [6], 64, "nf4", "train.kept_layers: GPU 0 has 6.0 GB free, and .* are needed even if no layer"),
    ],
)
def test_a_machine_that_is_too_small_is_refused_with_numbers(tmp_path, config, gpus, host, quantize, said):
    with pytest.raises(UserError, match=said):
        plan(tmp_path, config, gpus, host, quantize)


def test_the_recipe_says_how_many(tmp_path):
    assert plan(tmp_path, LLAMA_8B, [80], kept_layers=7).kept_layers == [7]
    assert plan(tmp_path, LLAMA_8B, [80], kept_layers=99).kept_layers is None
    assert plan(tmp_path, LLAMA_8B, [80], host=224, kind="full", kept_layers=32).kept_layers == [32]
    assert plan(tmp_path, LLAMA_8B, [80], host=224, kind="full", kept_layers="all").kept_layers is None
    with pytest.raises(UserError, match="train.kept_layers: model.quantize: int8 needs all layers"):
        plan(tmp_path, LLAMA_8B, [80], quantize="int8", kept_layers=7)


def test_a_full_fine_tune_has_its_states_in_host_memory(tmp_path):
    """8.03 billion weights: 4 bytes each with bfloat16 and Adafactor, 18 with float32, its copies and AdamW."""
    small = {"weights": "bfloat16", "optimizer": "adafactor"}
    found = plan(tmp_path, LLAMA_8B, [24], host=64, kind="full", **small)
    assert 0 < found.kept_layers[0] <= 32 and found.gradient_checkpointing == "on"
    with pytest.raises(UserError, match=r"adapter.kind: full: .* they need 1[34]\d.\d GB of host memory; 64.0 GB are"):
        plan(tmp_path, LLAMA_8B, [24], host=64, kind="full")
    assert plan(tmp_path, LLAMA_8B, [24], host=224, kind="full").kept_layers[0] < 32
    assert plan(tmp_path, LLAMA_8B, [80], kind="full", **small).kept_layers is None  # fits


def test_a_full_fine_tune_asked_to_keep_all_layers_updates_in_host_memory(tmp_path):
    assert plan(tmp_path, LLAMA_8B, [80], host=224, kind="full", kept_layers=99).kept_layers == [32]
    with pytest.raises(UserError, match="train.kept_layers: .* set train.optimizer: adamw_8bit"):
        plan(tmp_path, LLAMA_8B, [80], kind="full", kept_layers=9, optimizer="paged_adamw_8bit")


def test_experts_are_part_of_their_layer(tmp_path):
    config = Qwen3MoeConfig(num_hidden_layers=2, hidden_size=64, moe_intermediate_size=32, num_experts=4)
    shapes = {"model.embed_tokens.weight": [1000, 64]}
    for layer in range(2):
        shapes |= {f"model.layers.{layer}.mlp.experts.{e}.up_proj.weight": [32, 64] for e in range(4)}
    recipe = Recipe.build({"model": "m", "data": "d"})
    machine = Machine("", "", 1, GB, GB, GB, True, gpus=[Gpu(0, "", GB, GB, (8, 6))])
    found = sizes(choose(recipe, machine), recipe, config, base_of(shapes, tmp_path))
    assert found.layer == 4 * 32 * 64 * 2
