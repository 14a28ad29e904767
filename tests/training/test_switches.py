"""No switch changes what is learned: losses of 20 steps in every family beside a plain path, which is padded rows,
transformers' eager attention and whole logits, PEFT's own layers and torch's AdamW."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model

from tests import tiny
from tests.conftest import slow_but
from tests.training.padded import IGNORED, targets_of
from tunesmith.model.adapt import adapt, lora_config
from tunesmith.model.load import load
from tunesmith.recipe import Adapter, Model, Train
from tunesmith.training import packed_attention
from tunesmith.training.batch import collate
from tunesmith.training.layer_transforms import checkpoint_layers, tile_mlps
from tunesmith.training.loss import find_head, total_loss
from tunesmith.training.offload import Offload
from tunesmith.training.optimizer import build_optimizer

STEPS, ROWS, BOUND = 20, 4, 1e-5
SETTINGS = Train(learning_rate=3e-3, weight_decay=0.0)
LORA = Adapter(rank=4, alpha=8)


def unchanged(model) -> None:
    pass


CHANGES = {  # of a model on Tunesmith's path: packed, attention by document, loss in chunks, its own LoRA
    "nothing more": unchanged,
    "recomputed": lambda model: checkpoint_layers(model, "on"),
    "selective": lambda model: checkpoint_layers(model, "selective"),
    "recomputed by half": lambda model: checkpoint_layers(model, 0.5),
    "offloaded": lambda model: checkpoint_layers(model, "on", Offload(torch.device("cpu"))),
    "tiled": tile_mlps,
    "tiled and recomputed": lambda model: (tile_mlps(model), checkpoint_layers(model, "on")),
}


@pytest.fixture
def base(family):
    """Gives a family's model, not adapted yet."""
    return lambda name, how: load(Model(path="m"), family(name), torch.float32, how, 0)


def rows() -> list:
    """Another number of tokens in each step; of ten kinds, which is soon learned."""
    random = np.random.default_rng(0)
    return [(random.integers(5, 15, n), np.arange(n) > 3) for n in random.integers(20, 60, ROWS * STEPS)]


def batches(step: int, packed: bool, parts: int):
    of_step = np.arange(ROWS * step, ROWS * (step + 1))
    return [collate(rows(), part, packed) for part in np.split(of_step, parts)]


def plain_curve(model) -> list[float]:
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=SETTINGS.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    found = []
    for step in range(STEPS):
        [batch] = batches(step, packed=False, parts=1)
        logits = model(input_ids=batch.input_ids_BT, attention_mask=batch.real_BT(), use_cache=False).logits
        loss = F.cross_entropy(
            logits.flatten(0, 1), targets_of(rows()[ROWS * step : ROWS * (step + 1)]).flatten(), ignore_index=IGNORED
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def curve(model, packed: bool = True, chunked: bool = True, parts: int = 1, settings: Train = SETTINGS) -> list[float]:
    head, optimizer, found = find_head(model, packed) if chunked else None, build_optimizer(model, settings), []
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate
    for step in range(STEPS):
        of_step = batches(step, packed, parts)
        supervised, loss = sum(batch.supervised_tokens for batch in of_step), 0.0
        for batch in of_step:
            total = total_loss(model, batch, head)
            (total / supervised).backward()
            loss += total.item() / supervised
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss)
    return found


@pytest.mark.parametrize("name", slow_but(("qwen3", "gemma3", "mixtral"), tiny.FAMILIES))
def test_the_loss_curve_stays_in_every_family(base, name):
    ours, eager = base(name, packed_attention.NAME), base(name, "eager")
    torch.manual_seed(0)
    plain = get_peft_model(eager, lora_config(eager, LORA, []))
    for layer in plain.modules():  # as Tunesmith starts them
        layer.float()
    start = {key: value.clone() for key, value in plain.state_dict().items() if "lora" in key}
    expected = plain_curve(plain)
    assert expected[0] - expected[-1] > 0.1  # it learns

    def model(change=unchanged):
        made = adapt(copy.deepcopy(ours), LORA, [], 0).train()
        assert not made.load_state_dict(start, strict=False).unexpected_keys
        change(made)
        return made

    for change, make in CHANGES.items():
        if not (name in tiny.MOE_FAMILIES and "tiled" in change):
            assert curve(model(make)) == pytest.approx(expected, abs=BOUND), change
    assert curve(model(), chunked=False) == pytest.approx(expected, abs=BOUND), "logits whole"
    assert curve(model(packed_attention.use_default), packed=False) == pytest.approx(expected, abs=BOUND), "padded"
    assert curve(model(), parts=ROWS) == pytest.approx(expected, abs=BOUND), "one row at a time"
