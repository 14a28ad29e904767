"""Our LoRA forward pass gives the same results as PEFT's, and is not used where it does not apply."""

import copy

import pytest
import torch
from peft import get_peft_model

from tests import tiny
from tunesmith.model.adapt import adapt, lora_config
from tunesmith.model.load import load
from tunesmith.model.lora import _Fused
from tunesmith.recipe import Adapter, Model


def randomized(model, seed: int = 0):
    """Randomizes the adapter, because PEFT initializes B to zero, which makes half of the gradients zero."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def both(family, name: str, quantize: str = "none", dtype=torch.float32, **adapter) -> tuple:
    """Returns the same model with PEFT's layers, and as Tunesmith adapts it."""
    settings = Adapter(**{"rank": 4, "alpha": 12} | adapter)
    one, another = (load(Model(path="m", quantize=quantize), family(name), dtype, "eager", 0) for _ in range(2))
    return randomized(get_peft_model(one, lora_config(one, settings, []))), randomized(adapt(another, settings, [], 0))


def fused_layers(model) -> int:
    return sum(isinstance(module.forward, _Fused) for module in model.modules())


def results(model) -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 45).view(2, 20)
    logits = model(input_ids=ids).logits
    logits.float().logsumexp(-1).sum().backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_outputs_and_gradients_are_those_of_peft(family, name):
    plain, fused = both(family, name)
    assert fused_layers(fused) and not fused_layers(plain)
    bound = 1e-5
    if name not in tiny.MOE_FAMILIES:  # torch's grouped matrix products have no float64
        plain, fused, bound = plain.double(), fused.double(), 1e-12
    expected, found = results(plain), results(fused)
    assert expected.keys() == found.keys() and len(expected) > 8
    for key in expected:
        assert (expected[key] - found[key]).abs().max() < bound * max(1, expected[key].abs().max()), key


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_over_a_quantised_base_too(family, quantize):
    plain, fused = both(family, "llama3", quantize)
    assert fused_layers(fused) == 14
    expected, found = results(plain), results(fused)
    for key in expected:
        assert torch.allclose(expected[key], found[key], atol=1e-5 * expected[key].abs().max()), key


def test_in_bfloat16_as_near_to_float32_as_peft(family):
    plain, fused = both(family, "qwen2")
    exact = results(copy.deepcopy(plain))
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = results(plain), results(fused)
    for key in exact:
        error = [(found[key].float() - exact[key]).norm() for found in (ours, theirs)]
        assert error[0] < 1.2 * error[1] + 1e-4 * exact[key].norm(), key


def test_an_input_is_kept_once_for_all_that_read_it(family):
    """q, k and v read the same hidden states, so do gate and up: three inputs of each layer are not kept again."""
    plain, fused = both(family, "llama3", dtype=torch.bfloat16)
    tokens = 40

    def kept_bytes(model) -> int:
        kept, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

        def note(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            model(input_ids=torch.arange(5, 5 + tokens)[None], use_cache=False)
        return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)

    saved = kept_bytes(plain) - kept_bytes(fused)
    assert saved >= 2 * 3 * tokens * 64 * 2  # layers, inputs, tokens, hidden size, bytes


@pytest.mark.parametrize("adapter", [{"dora": True}, {"dropout": 0.1}])
def test_other_adapters_keep_pefts_forward(family, adapter):
    _, left = both(family, "llama3", **adapter)
    assert not fused_layers(left)


def test_an_adapter_switched_off_is_the_base(family):
    plain, fused = both(family, "qwen2")
    ids = torch.arange(5, 45).view(2, 20)
    with torch.no_grad(), plain.disable_adapter(), fused.disable_adapter():
        assert torch.equal(plain(input_ids=ids).logits, fused(input_ids=ids).logits)
    fused.merge_adapter()
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=ids).logits, fused(input_ids=ids).logits, atol=1e-3)
