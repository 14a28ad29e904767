"""A model that fits on no GPU answers with its layers on several: exactly as on the CPU, on simulated GPUs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests import other, simulated_gpu, tiny
from tests.conftest import slow_but, sums, write_rows
from tests.inference.test_hybrids import HYBRIDS, hybrids  # noqa: F401  the fixture
from tests.inference.test_scheduler import prompts
from tunesmith import leases, train
from tunesmith.cli.data import select
from tunesmith.export.export import export
from tunesmith.finetune.evaluation import evaluate
from tunesmith.finetune.result import trained_model
from tunesmith.inference.generate import generate
from tunesmith.inference.transformers_model import TorchWeights
from tunesmith.machine import Gpu
from tunesmith.model import spread
from tunesmith.model.adapt import adapt
from tunesmith.model.load import load
from tunesmith.model.text import base_of, decoder_layers
from tunesmith.recipe import Adapter, Model

CPU = torch.device("cpu")
GPUS = [torch.device("cuda", number) for number in range(2)]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, which is simulated")


@pytest.fixture
def two_gpus(monkeypatch):
    """Calls a function on a machine with two GPUs, known to nvidia-smi as 2 and 5, with `free` bytes."""

    def call(free: list[int], function):
        found = [Gpu(index, "a GPU", 2**33, nbytes, (9, 0), f"GPU-{index}") for index, nbytes in zip((2, 5), free)]
        with monkeypatch.context() as patch, simulated_gpu.played(2):
            patch.setattr("tunesmith.machine.find_gpus", lambda: ("600", found))
            patch.setattr("torch.cuda.mem_get_info", lambda device=GPUS[0]: (free[device.index], 2**33))
            return function()

    return call


def opened(folder, **model):
    return load(Model(path="m", **model), folder, torch.float32, None, 0, on_host=True).eval()


def nbytes(module) -> int:
    return sum(getattr(t, "packed", t).nbytes for t in (*module.parameters(), *module.buffers()))


def room(model, *layers: int) -> list[int]:
    """Free bytes of GPUs that have room for so many layers each, the first also for the rest of the model."""
    sizes = [nbytes(layer) for layer in decoder_layers(model)]
    rest = nbytes(model) - sum(sizes)
    return [int(1.25 * (rest * (gpu == 0) + (count + 0.1) * max(sizes))) for gpu, count in enumerate(layers)]


def devices_of(model) -> list:
    """The device of each layer's parameters, and of all others."""
    layers = decoder_layers(model)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    of_layers = [{parameter.device for parameter in layer.parameters()} for layer in layers]
    return [*of_layers, {p.device for p in base_of(model).parameters() if id(p) not in inside}]


def answered(weights: TorchWeights, adapter: str | None = None) -> dict:
    """All that a model is asked for: more answers than fit into a pass, scores of a prompt, an embedding."""
    answers = generate(
        weights, prompts(2), max_new_tokens=3, stop_ids=frozenset(range(60)), per_prompt=2, together=3, adapter=adapter
    )
    ids = prompts(1)[0]
    return {
        "ids": [[answer.ids for answer in one] for one in answers],
        "logprobs": [answer.logprobs.tolist() for one in answers for answer in one],
        "scores": torch.cat([*weights.prompt_logits(adapter, ids)]).flatten().tolist(),
        "embedding": weights.embedding(adapter, ids),
        "way": (weights.divides, weights.inner.config._attn_implementation, weights.bytes_per_token),
    }


def alike(found: dict, expected: dict) -> bool:
    """Whether tokens and the way to compute them are the same, and numbers up to rounding: attention on a GPU and on
    the CPU take other ways."""
    exact, rounded = ("ids", "way"), ("logprobs", "scores", "embedding")
    assert all(found[key] == expected[key] for key in exact)
    return all(torch.allclose(_flat(found[key]), _flat(expected[key]), rtol=1e-4, atol=1e-5) for key in rounded)


def _flat(numbers: list) -> torch.Tensor:
    return torch.tensor([x for row in numbers for x in (row if isinstance(row, list) else [row])])


def test_bytes_do_not_go_from_gpu_to_gpu_on_the_simulated_ones(two_gpus):
    def copied(function):
        return two_gpus([1, 1], lambda: function(torch.ones(2, device="cuda:0"), torch.zeros(2, device="cuda:1")))

    for function in (
        lambda a, b: a.to("cuda:1"),
        lambda a, b: b.copy_(a),
        lambda a, b: a + b,
        lambda a, b: a[b.long()],
        lambda a, b: torch.cat([a, b]),
    ):
        with pytest.raises(simulated_gpu.WrongDevice):
            copied(function)
    assert copied(lambda a, b: (a.cpu().to("cuda:1") + b).device) == GPUS[1]


@pytest.mark.parametrize("name", slow_but(("gpt_oss",), [*tiny.FAMILIES, *tiny.OTHERS]))
def test_a_spread_model_answers_as_on_the_cpu(family, two_gpus, name):
    expected = answered(TorchWeights(opened(family(name))))
    model, whole = opened(family(name)), opened(family(name))
    found = two_gpus(room(model, 1, 1), lambda: answered(TorchWeights.opened(model)))
    devices = devices_of(model)
    assert devices[:2] == [{GPUS[0]}, {GPUS[1]}] and devices[-1] == {GPUS[0]}
    assert all(device == {CPU} for device in devices[2:-1])
    assert alike(found, expected)
    if devices[2:-1] == []:  # else the CPU takes part
        assert found == two_gpus([1, 10**9], lambda: answered(TorchWeights.opened(whole)))
        assert devices_of(whole) == 3 * [{GPUS[1]}]


def test_the_bytes_on_each_device(tmp_path, two_gpus):
    """Those on the CPU count where there is no GPU; keys and values are where the layers are."""
    model = opened(tiny.save("llama3", tmp_path, num_hidden_layers=3))
    assert spread.device_bytes(model) == {leases.CPU: nbytes(model)}
    layer = nbytes(decoder_layers(model)[0])
    rest = nbytes(model) - 3 * layer
    found = two_gpus(room(model, 1, 1), lambda: spread.device_bytes(spread.on_best(model), kv_bytes=300))
    assert found == {"GPU-2": rest + layer + 100, "GPU-5": layer + 100}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*other.TEXT, *other.IMAGES])
def test_other_models_answer_spread_as_on_the_cpu(tmp_path, two_gpus, name):
    folder = (other.save_images if name in other.IMAGES else other.save_text)(name, tmp_path)
    expected, model = answered(TorchWeights(opened(folder))), opened(folder)
    found = two_gpus(room(model, 1, 1), lambda: answered(TorchWeights.opened(model)))
    assert devices_of(model) == [{GPUS[0]}, {GPUS[1]}, {GPUS[0]}]
    assert alike(found, expected)


@pytest.mark.parametrize("name", slow_but(("lfm2",), HYBRIDS))
def test_a_spread_model_with_states_answers_as_on_the_cpu(hybrids, two_gpus, name):  # noqa: F811
    expected = answered(TorchWeights(opened(hybrids(name))))
    model = opened(hybrids(name))
    found = two_gpus(room(model, 1, 1), lambda: answered(TorchWeights.opened(model)))
    assert devices_of(model) == [{GPUS[0]}, {GPUS[1]}, {GPUS[0]}]
    assert alike(found, expected)


@pytest.mark.parametrize(
    ("name", "quantize"),
    slow_but([("qwen3", "nf4")], [("qwen3", "nf4"), ("qwen3_moe", "nf4"), ("gpt_oss", "nf4"), ("llama3", "none")]),
)
def test_adapters_are_where_their_layers_are(tmp_path, two_gpus, name, quantize):
    """With three layers, one of which is on the CPU, and two adapters."""
    kinds = {"layer_types": None} if name == "gpt_oss" else {}
    folder = tiny.save(name, tmp_path / "base", num_hidden_layers=3, **kinds)
    for seed in range(2):
        torch.manual_seed(seed)
        model = adapt(opened(folder, quantize=quantize), Adapter(rank=4, alpha=8), [], 0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(tmp_path / f"{seed}")

    def ask(weights):
        names = [weights.add(tmp_path / f"{seed}") for seed in range(2)]
        return answered(weights, names[0]), weights.reserve(10**6, 64, 2, 64)[1]

    expected, text = ask(TorchWeights(opened(folder, quantize=quantize)))
    assert text == "transformers in this process, cpu, float32"
    model = opened(folder, quantize=quantize)
    found, text = two_gpus(room(model, 1, 1), lambda: ask(TorchWeights.opened(model)))
    assert devices_of(model) == [{GPUS[0]}, {GPUS[1]}, {CPU}, {GPUS[0]}]
    slowly = ", which computes 4 bits slowly" if quantize == "nf4" else ""
    where = f"layer 1 on GPU 2, layer 2 on GPU 5, layer 3 on the CPU{slowly}"
    assert text == f"transformers in this process, cuda, {where}, float32"
    assert alike(found, expected)


@pytest.mark.slow
def test_a_spread_result_is_evaluated_and_exported(recipe, two_gpus, tmp_path, monkeypatch):
    chosen, choose = [], spread.layer_gpus
    monkeypatch.setattr(spread, "layer_gpus", lambda *sizes: chosen.append(choose(*sizes)) or chosen[-1])
    run = train(recipe("qwen3", train={"max_steps": 3}))
    data = write_rows(tmp_path / "other.jsonl", sums(6, first=500))
    [source] = select(str(data), None, "auto", [], None, None).sources
    expected = evaluate(run, source)
    free = room(trained_model(run), 1, 1)
    found = two_gpus(free, lambda: evaluate(run, source))
    assert found["samples"] == expected["samples"] and chosen == [[0, 1]]
    for when in ("before", "after"):
        assert found[when]["loss"] == pytest.approx(expected[when]["loss"], rel=1e-5)
    assert two_gpus(free, lambda: export(run, "merged", tmp_path / "merged"))["passed"]
    assert chosen[1:] == 2 * [[0, 1]]  # the trained and the exported model


def test_a_model_that_fits_on_a_gpu_is_on_the_one_with_most_memory(family, two_gpus):
    model = opened(family("qwen2"))  # embedding and head are one parameter
    enough = int(1.25 * nbytes(model)) + 1
    two_gpus([enough, enough + 1], lambda: spread.on_best(model))
    assert devices_of(model) == [{GPUS[1]}, {GPUS[1]}, {GPUS[1]}]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_without_room_for_a_layer_a_model_stays_on_the_cpu(family, two_gpus):
    model = opened(family("llama3"))
    weights = two_gpus(room(model, 0, 0), lambda: TorchWeights.opened(model))
    assert devices_of(model) == 3 * [{CPU}]
    assert weights.reserve(10**6, 64, 2, 64)[1] == "transformers in this process, cpu, float32"


def test_free_memory_is_that_of_the_gpu_that_would_be_full_first(tmp_path, two_gpus):
    """Of five layers the first GPU has three."""
    model = opened(tiny.save("llama3", tmp_path, num_hidden_layers=5))
    first, second = room(model, 3, 2)

    def left(*free: int) -> int:
        return two_gpus([*free], lambda: spread.free_bytes(model))

    two_gpus([first, second], lambda: spread.on_best(model))
    assert devices_of(model) == [{GPUS[0]}] * 3 + [{GPUS[1]}] * 2 + [{GPUS[0]}]
    assert left(3000, 5000) == 5000 and left(9000, 1000) == 2500


def test_layers_that_share_weights_are_not_spread(family, two_gpus):
    model = opened(family("llama3"))
    model.model.layers[1].mlp = model.model.layers[0].mlp
    weights = two_gpus([int(0.8 * nbytes(model)), nbytes(model) // 2], lambda: TorchWeights.opened(model))
    assert devices_of(model) == 3 * [{CPU}]
    text = "transformers in this process, cpu, not spread over GPUs: its layers share weights, float32"
    assert weights.reserve(10**6, 64, 2, 64)[1] == text


def test_a_model_whose_trial_pass_fails_computes_on_the_cpu(family, two_gpus):
    """A layer that reads weights of another one."""
    model = opened(family("llama3"))
    expected = answered(TorchWeights(opened(family("llama3"))))
    first, last = model.model.layers
    last.mlp.register_forward_pre_hook(lambda mlp, args: (args[0] + 0 * first.input_layernorm.weight,))
    weights = two_gpus(room(model, 1, 1), lambda: TorchWeights.opened(model))
    assert devices_of(model) == 3 * [{CPU}]
    assert "cpu, not spread over GPUs: a trial pass failed: " in weights.reserve(10**6, 64, 2, 64)[1]
    assert answered(weights) == expected


def test_a_spread_model_comes_back_to_the_cpu(family, two_gpus):
    model = opened(family("llama3"))
    two_gpus(room(model, 1, 1), lambda: spread.on_cpu(spread.on_best(model)))
    assert devices_of(model) == 3 * [{CPU}]
    assert answered(TorchWeights(model)) == answered(TorchWeights(opened(family("llama3"))))


@pytest.mark.parametrize("quantize", ["nf4", "int8", "none"])
def test_a_quantised_base_larger_than_the_gpu_is_loaded_into_host_memory(family, two_gpus, quantize):
    folder, recipe = family("qwen3_moe" if quantize == "nf4" else "qwen3"), Model(path="m", quantize=quantize)
    needed = 1.25 * nbytes(opened(folder, quantize=quantize))

    def needs_host(free: float) -> bool:
        return two_gpus([int(free), 10**9], lambda: spread.needs_host(recipe, folder, torch.float32))

    assert needs_host(0.9 * needed) is (quantize != "none") and not needs_host(1.1 * needed)


def test_a_base_stored_in_4_bits_is_loaded_into_host_memory_too(family, two_gpus, tmp_path):
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(family("qwen3"), quantization_config=quantized).save_pretrained(tmp_path)
    stored = opened(tmp_path)

    def needs_host(free: float) -> bool:
        return two_gpus([int(free), 10**9], lambda: spread.needs_host(Model(path="m"), tmp_path, "auto"))

    assert needs_host(1.2 * nbytes(stored)) and not needs_host(1.4 * nbytes(stored))


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(0, 100),
    st.lists(st.integers(0, 500), min_size=1, max_size=5),
)
def test_no_gpu_gets_more_than_it_holds(layers, rest, free):
    chosen = spread.layer_gpus(layers, rest, free)
    best = max(range(len(free)), key=lambda gpu: free[gpu])
    order = [best, *(gpu for gpu in range(len(free)) if gpu != best), None]
    assert [order.index(gpu) for gpu in chosen] == sorted(order.index(gpu) for gpu in chosen)
    for gpu, nbytes in enumerate(free):
        used = sum(size for size, where in zip(layers, chosen) if where == gpu)
        assert not used or used + (rest if gpu == best else 0) <= nbytes
    if None in chosen and rest <= free[best]:  # the first one on the CPU fits nowhere
        assert layers[chosen.index(None)] > free[order[-2]] - (rest if order[-2] == best else 0) - sum(
            size for size, where in zip(layers, chosen) if where == order[-2]
        )


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ([24, 12], 20 * [0] + 12 * [1]),  # 4 go to the rest
        ([12, 24], 20 * [1] + 12 * [0]),
        ([44, 40, 40], 11 * [0] + 11 * [1] + 10 * [2]),
        ([14, 10], 10 * [0] + 10 * [1] + 12 * [None]),
        ([3, 3], 32 * [None]),
    ],
)
def test_layers_are_in_proportion_to_what_is_free(free, expected):
    found = spread.layer_gpus(32 * [1], 4, free)
    assert found == expected
