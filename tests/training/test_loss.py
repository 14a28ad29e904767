"""The chunked output layer against the plain one: logits of the model's own forward, autograd's gradients, float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model

from tests.training.padded import IGNORED, targets_of
from tunesmith.training import loss
from tunesmith.training.batch import collate

FAMILIES = {
    "Llama": {},
    "Llama, tied": {"tie_word_embeddings": True},
    "Gemma2": {"final_logit_softcapping": 3.0},
    "Cohere": {"logit_scale": 0.3},
    "Granite": {"logits_scaling": 4.0},
    "Bloom": {},
}
ROWS = [(np.arange(2, 40) * 7 % 90, np.arange(38) % 3 > 0), (np.arange(5, 25) * 11 % 90, np.arange(20) > 4)]


def model_of(name: str):
    family = name.partition(",")[0]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        attn_implementation="eager",
        **({"tie_word_embeddings": False} | FAMILIES[name]),
    )
    return getattr(transformers, f"{family}ForCausalLM")(config).double()


def all_trained(model):
    return model


def frozen_head(model):
    model.get_output_embeddings().requires_grad_(False)
    return model


def adapted_head(model):
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).double()


def adapter(model):
    targets = ["lm_head"] if "lm_head" in dict(model.named_modules()) else "all-linear"
    return get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)).double()


def plain(model, batch) -> torch.Tensor:
    logits_BTV = loss.forward(model, batch).logits
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_of(ROWS).flatten(), ignore_index=IGNORED, reduction="sum")


def gradients(model, total) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (total / 7).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("change", [all_trained, frozen_head, adapted_head, adapter])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_the_plain_loss(name, change, monkeypatch):
    monkeypatch.setattr(loss, "LEAST_ROWS", 1)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", {"cpu": (90 * 5, 90 * 5)})  # five positions at a time
    model, batch = change(model_of(name)), collate(ROWS, np.array([0, 1]), packed=False)
    head = loss.find_head(model, packed=False)
    assert head
    largest = []
    hook = head.layer.register_forward_hook(lambda *seen: largest.append(seen[-1].numel() // 90))
    total = loss.total_loss(model, batch, head)
    found = gradients(model, total)
    hook.remove()
    reference = plain(model, batch)
    expected = gradients(model, reference)
    assert max(largest) == 5
    assert torch.allclose(total, reference, rtol=1e-12)
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        assert torch.allclose(found[parameter], gradient, rtol=1e-9, atol=1e-12), parameter
    with torch.no_grad():
        alone_N = loss.token_losses(model, batch, head)
    assert torch.allclose(alone_N.sum(), reference, rtol=1e-12)
    assert batch.sequence_N.bincount().tolist() == [int(s[1:].sum()) for _, s in ROWS]


@pytest.mark.parametrize("change", [all_trained, frozen_head, adapted_head, adapter])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("chunked", [True, False])
def test_a_formula_over_token_losses_has_the_gradient_of_whole_logits(name, change, chunked, monkeypatch):
    """Any formula: here one in which each token's loss has another weight, some of them negative."""
    monkeypatch.setattr(loss, "LEAST_ROWS", 1)
    monkeypatch.setattr(loss, "CHUNK_LOGITS", {"cpu": (90 * 5, 90 * 5)})
    model, batch = change(model_of(name)), collate(ROWS, np.array([0, 1]), packed=False)
    targets = targets_of(ROWS).flatten()
    logits_BTV = loss.forward(model, batch).logits
    whole_N = F.cross_entropy(logits_BTV.flatten(0, 1), targets, ignore_index=IGNORED, reduction="none")
    whole_N = whole_N[targets != IGNORED]
    expected = gradients(model, (whole_N.sin() * whole_N.detach().cos()).sum())
    losses_N = loss.token_losses(model, batch, loss.find_head(model, packed=False) if chunked else None)
    assert torch.allclose(losses_N, whole_N, rtol=1e-12)
    found = gradients(model, (losses_N.sin() * losses_N.detach().cos()).sum())
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        assert torch.allclose(found[parameter], gradient, rtol=1e-9, atol=1e-12), parameter


def test_a_model_that_does_something_else_to_its_logits_is_left_alone(monkeypatch):
    model = model_of("Llama")
    plain_forward = type(model).forward

    def shifted(self, *args, **options):
        output = plain_forward(self, *args, **options)
        output.logits = output.logits + 1
        return output

    monkeypatch.setattr(type(model), "forward", shifted)
    assert loss.find_head(model, packed=False) is None


def test_bfloat16_logits_are_taken_a_few_rows_at_a_time(monkeypatch):
    """Bit for bit what they give at once, and near what float32 gives."""
    torch.manual_seed(0)
    logits_CV, targets_C = torch.randn(50, 90) * 3, torch.randint(0, 90, (50,))
    at_once = loss._losses_and_gradient(logits_CV.bfloat16(), targets_C)
    monkeypatch.setattr(loss, "CACHED_LOGITS", 90 * 7)
    in_parts = loss._losses_and_gradient(logits_CV.bfloat16(), targets_C)
    assert all(torch.equal(a, b) for a, b in zip(at_once, in_parts))
    logits_CV = logits_CV.bfloat16().float().requires_grad_()
    exact = F.cross_entropy(logits_CV, targets_C, reduction="none")
    [gradient] = torch.autograd.grad(exact.sum(), logits_CV)
    assert torch.allclose(in_parts[0], exact, atol=1e-5)
    assert (in_parts[1].float() - gradient).abs().max() < 2**-8
