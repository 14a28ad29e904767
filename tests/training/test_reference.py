"""The loop against a plain reference: transformers, padding, torch's AdamW and arithmetic written out here."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.conftest import slow_but
from tunesmith import train
from tunesmith.data.row_order import Schedule

STEPS = 20
BOUND = 1e-5


def losses(run) -> list[float]:
    return [event["loss"] for event in run.events("step")]


def reference(recipe) -> list[float]:
    """The loss of each step, by the plainest code there is."""
    folder = recipe.model.path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    torch.manual_seed(recipe.seed)
    if recipe.adapter.kind == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    model.train()
    with open(recipe.data.train[0].path) as file:
        rows = [encoded(tokenizer, json.loads(line)) for line in file]
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decay = [p for name, p in trained if "norm" not in name and p.ndim > 1]
    rest = [p for name, p in trained if "norm" in name or p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.95),
        foreach=False,
    )
    order = Schedule(torch.ones(len(rows)).numpy(), 8, recipe.train.epochs, recipe.seed, STEPS)
    found = []
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 1) / STEPS))  # warmup: the first step only
        batch = [rows[i] for i in order.step_rows(step)]
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([i + [0] * (longest - len(i)) for i, _ in batch])
        labels = torch.tensor([learned + [-100] * (longest - len(learned)) for _, learned in batch])
        mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i, _ in batch])
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


def encoded(tokenizer, row) -> tuple[list[int], list[int]]:
    """Ids and labels: the answer and its end-of-turn token, found as the longest common start of two renderings."""
    full = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
    prompt = tokenizer.apply_chat_template(
        row["messages"][:1], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert full[: len(prompt)] == prompt
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    tail = text[text.rindex(row["messages"][1]["content"]) + len(row["messages"][1]["content"]) :]
    after_end = tokenizer(tail, add_special_tokens=False).input_ids[1:]  # the first is the end of the turn
    end = len(full) - len(after_end)
    return full, [-100] * len(prompt) + full[len(prompt) : end] + [-100] * len(after_end)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("packing", [True, False])
def test_losses_equal_the_reference(recipe, kind, packing):
    asked = recipe(adapter={"kind": kind}, data={"packing": packing})
    assert losses(train(asked)) == pytest.approx(reference(asked), abs=BOUND)


@pytest.mark.parametrize("name", slow_but(("gemma3", "gpt_oss", "phi3"), [f for f in tiny.FAMILIES if f != "llama3"]))
def test_packed_equals_unpacked_in_every_family(recipe, name):
    packed, padded = (
        losses(train(recipe(name, f"packing-{packing}", data={"packing": packing}, train={"max_steps": 5})))
        for packing in (True, False)
    )
    assert packed == pytest.approx(padded, abs=2 * BOUND)


def test_accumulation_and_processes_change_nothing(recipe):
    """8 rows a step as 1x8, 2x4 and 8x1 (rows of at most 64 tokens), and dealt out to two processes."""
    short = {"sequence_length": 64, "packing": False}
    runs = [train(recipe(name=f"micro-{n}", data=short, train={"micro_batch": n})) for n in (1, 2, 8)]
    runs.append(train(recipe(name="two", data=short, train={"processes": 2})))
    first, *others = map(losses, runs)
    assert len(first) == STEPS
    for other in others:
        assert other == pytest.approx(first, abs=BOUND)
