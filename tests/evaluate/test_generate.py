"""Answers of a model in the middle of training are those of transformers' generate, and leave no trace."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.inference.test_generate import alone
from tests.inference.test_scheduler import NEW, prompts
from tunesmith.evaluate.generate import answers
from tunesmith.training import packed_attention
from tunesmith.training.layer_transforms import checkpoint_layers


def training(folder, attention: str):
    """A model with an adapter that is not zero, as the training loop holds it."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    checkpoint_layers(model, "on")
    return model.train()


@pytest.mark.parametrize("name", ["llama3", "qwen3_moe", "gemma2", "gpt_oss", "mistral"])
@pytest.mark.parametrize("attention", [packed_attention.NAME, "eager"])
def test_answers_of_a_model_in_training(family, name, attention):
    model, given = training(family(name), attention), prompts(7)
    plain = training(family(name), "eager").eval()
    base = AutoModelForCausalLM.from_pretrained(family(name), attn_implementation="eager").eval()
    stops = frozenset({alone(plain, given[0], frozenset({10**6}))[4]})
    for found, expecting in ((answers, plain), (without_adapter, base)):
        told = found(model, given, NEW, sorted(stops))
        assert [answer.ids for answer in told] == [alone(expecting, ids, stops) for ids in given]
    assert model.training and model.config._attn_implementation == attention
    assert all(part.training for part in model.modules())


def without_adapter(model, *rest):
    with model.disable_adapter():
        return answers(model, *rest)


def test_answers_in_bfloat16_are_as_likely_as_the_likeliest(family):
    """Rounding may turn a tie, so each token is looked at beside the likeliest in its place."""
    model, given = training(family("llama3"), packed_attention.NAME), prompts(4)
    with torch.autocast("cpu", torch.bfloat16):
        told = [answer.ids for answer in answers(model, given, NEW, [10**6])]
        plain = training(family("llama3"), "eager").eval()
        with torch.inference_mode():
            for ids, answer in zip(given, told):
                logits = plain(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].float()
                chosen = logits[range(NEW), answer]
                assert (logits.max(-1).values - chosen).max() < 0.05 * logits.std()


def test_no_prompts_no_answers(family):
    assert answers(training(family("llama3"), "eager"), [], NEW, [1]) == []
