"""The proof grid: every family, kind of training, layout of layers and division of tokens learns what a single plain
process learns.

Two references are computed here. `plain` is independent of Tunesmith's ways: padded rows and Transformers' eager
attention, whole logits, PEFT's own layers, dequantised weights, torch's AdamW, all rows of a step in one pass. Two
processes must equal it to 1e-5. `same_passes` has all of Tunesmith's model on the device, and calls backward and AdamW
in the plainest loop. One process whose layers are streamed must equal it to the bit.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tests import tiny
from tests.training.padded import IGNORED, targets_of
from tunesmith.data.packing import Sizes, micro_batches, share_of
from tunesmith.finetune import launch
from tunesmith.machine import probe
from tunesmith.model import adapt, load
from tunesmith.model.experts import routers
from tunesmith.model.quantize import Stack4bit
from tunesmith.planner.decide import choose
from tunesmith.recipe import Recipe
from tunesmith.training import distributed, packed_attention
from tunesmith.training.batch import Batch, collate
from tunesmith.training.build import Trainable, inspect, place, transform
from tunesmith.training.exchange import Exchange
from tunesmith.training.loss import total_loss
from tunesmith.training.walk import backward

pytestmark = pytest.mark.slow

STEPS, ROWS, BOUND = 20, 4, 1e-5
SEEN = (0, STEPS - 1)  # steps whose gradients are compared
LONELY = 7  # a step of one row, in which one of two processes has none
ROUNDED_BOUND = 1e-6  # of losses where a streamed process rounds otherwise: see is_rounded_otherwise
CAPACITY = 80  # tokens of a micro-batch
NORM, SEED, CPU = 0.5, 0, torch.device("cpu")
ROUTER_LOSS = 0.1

KINDS: dict[str, dict] = {
    "full": {"adapter": {"kind": "full"}, "train": {"learning_rate": 1e-3}},
    "lora": {"adapter": {"rank": 4, "alpha": 8}, "train": {"learning_rate": 3e-3}},
    "nf4": {"adapter": {"rank": 4, "alpha": 8}, "train": {"learning_rate": 3e-3}, "model": {"quantize": "nf4"}},
}
# Layers that each process keeps, of two; None: all, without a home.
KEPT_OF_TWO: dict[str, list[int] | None] = {"all": None, "none": [0, 0], "some": [1, 0]}
KEPT_OF_ONE: dict[str, list[int] | None] = {"none": [0], "some": [1]}
SHARES = {"equal": [0.5, 0.5], "1:3": [0.25, 0.75]}
SWITCHES: dict[str, dict] = {
    "": {},
    "padded": {"data": {"packing": False}},
    "dropout": {"adapter": {"dropout": 0.3}},
    "new tokens": {"model": {"new_tokens": ["<new>"]}},
    "saved whole": {"adapter": {"modules_to_save": ["embed_tokens", "lm_head"]}},
    "tiled": {"train": {"tiled_mlp": "on"}},
    "selective": {"train": {"gradient_checkpointing": "selective"}},
    "router loss": {"method": {"name": "sft", "router_loss": ROUTER_LOSS}},
}
# Dropout draws, and the load-balancing loss is a mean, for each micro-batch. So these depend on the division of rows,
# and are compared with one process that makes the passes of both.
BY_PASS = ("dropout", "router loss")


@dataclass(frozen=True)
class Case:
    family: str
    kind: str
    kept: str
    shares: str = ""
    """Of two processes; "" for one."""
    switch: str = ""

    def __str__(self) -> str:
        return ", ".join(part for part in (self.family, self.kind, self.kept, self.shares, self.switch) if part)

    @property
    def packed(self) -> bool:
        return self.switch != "padded"


def grid(kept: dict, shares: tuple[str, ...]) -> list[Case]:
    """The cases of a number of processes."""
    found = [
        Case(family, kind, layers, share)
        for family in tiny.FAMILIES
        for kind in KINDS
        for layers in kept
        for share in shares
    ]
    share = shares[-1]
    for layers in kept:
        found += [Case(family, "lora", layers, share, "padded") for family in tiny.FAMILIES]
        found += [Case(family, k, layers, share, "router loss") for family in tiny.MOE_FAMILIES for k in KINDS]
        found += [Case(family, "lora", layers, share, "new tokens") for family in ("llama3", "qwen2", "gemma3")]
        found += [Case("llama3", kind, layers, share, "dropout") for kind in ("lora", "nf4")]
        found += [Case("llama3", "lora", layers, share, "saved whole")]
        found += [Case("llama3", kind, layers, share, "tiled") for kind in KINDS]
    if "all" in kept:  # a walk recomputes every layer
        found += [Case("llama3", kind, "all", share, "selective") for kind in KINDS]
    return found


@dataclass
class Learned:
    """What 20 steps gave: the loss and the gradient norm of each, the gradients of some, the weights at the end."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def note(self, loss: float, norm: float) -> None:
        self.losses.append(loss)
        self.norms.append(norm)


# Rows


def rows_of(step: int, new_id: int | None) -> list:
    """Of ten kinds of token, which is soon learned; one of them may be new."""
    random = np.random.default_rng(step)
    made = []
    for count in random.integers(20, 60, 1 if step == LONELY else ROWS):
        ids = random.integers(5, 15, count)
        made.append((np.where(ids == 5, 5 if new_id is None else new_id, ids), np.arange(count) > 3))
    return made


def units_of(rows: list) -> int:
    return sum(int(supervised[1:].sum()) for _, supervised in rows)


def tokens_of(rows: list) -> int:
    return sum(len(ids) for ids, _ in rows)


def parts_of(rows: list, rank: int, shares: list[float], packed: bool) -> list[np.ndarray]:
    """A process's micro-batches, as the loop makes them."""
    lengths = np.array([len(ids) for ids, _ in rows])
    mine = share_of(np.arange(len(rows)), lengths, rank, shares)
    return micro_batches(mine, Sizes.single(lengths), CAPACITY, packed)


def seed(step: int, row: int) -> None:
    torch.manual_seed(step * 100 + row)


# Tunesmith's model


def recipe_of(case: Case, folder: Path) -> Recipe:
    values: dict[str, dict] = {
        "model": {"path": str(folder), "dtype": "float32"},
        "data": {"train": "none.jsonl"},
        "train": {"weight_decay": 0.0, "max_grad_norm": NORM},
    }
    for changes in (KINDS[case.kind], SWITCHES[case.switch]):
        for section, change in changes.items():
            values[section] = values.get(section, {}) | change
    return Recipe.build(values)


def model_of(case: Case, folder: Path, on_host: bool = False) -> Any:
    """Adapted, with updates of LoRA that are not 0."""
    recipe = recipe_of(case, folder)
    attention = packed_attention.choose(load.config_of(folder), case.packed)
    model = load.load(recipe.model, folder, torch.float32, attention, SEED, on_host)
    torch.manual_seed(SEED)
    model = adapt.adapt(model, recipe.adapter, *new_tokens_of(case, model))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def new_tokens_of(case: Case, model: Any) -> tuple[list[int], int]:
    """A token that the base has not, and the vocabulary with it."""
    size = model.config.vocab_size
    return ([size], size + 1) if case.switch == "new tokens" else ([], 0)


def last_id_of(case: Case, adapted: Any) -> int | None:
    return adapted.config.vocab_size - 1 if case.switch == "new tokens" else None


def built(case: Case, folder: Path, kept: list[int] | None) -> Trainable:
    recipe = recipe_of(case, folder)
    plan = replace(choose(recipe, replace(probe(), gpus=[])), kept_layers=kept)
    model = model_of(case, folder, kept is not None)
    home = place(model, plan, CPU, fail, case.kind == "full")
    made = transform(model, recipe, plan, inspect(model, plan, fail), fail, home)
    made.model.train()
    return made


def fail(*values, **others) -> None:
    raise AssertionError(f"a warning: {values} {others}")


def learn(case: Case, folder: Path, kept: list[int] | None, shares: list[float]) -> Learned:
    """Twenty steps of this process, as the loop takes them."""
    made, found = built(case, folder, kept), Learned()
    exchange, optimizer, new_id = Exchange(CPU), made.optimizer, last_id_of(case, made.model)
    for step in range(STEPS):
        rows = rows_of(step, new_id)
        units, tokens, total = units_of(rows), tokens_of(rows), []
        batches = [collate(rows, part, case.packed) for part in parts_of(rows, distributed.rank(), shares, case.packed)]

        def loss(batch: Batch, units=units, total=total) -> torch.Tensor:
            total.append(total_loss(made.model, batch, made.head) / units)
            return total[-1]

        backward(
            made.walk,
            batches,
            loss,
            lambda batch, tokens=tokens: made.routing.loss(batch, tokens),
            lambda batch, step=step: seed(step, batch.rows[0]),
        )
        exchange.add_up(optimizer.to_exchange)
        if step in SEEN:
            distributed.wait()  # those in host memory are whole when the last process has added its own
            found.gradients |= {f"{step} {name}": gradient for name, gradient in gradients_of(made).items()}
        [summed] = distributed.add_up([sum(one.item() for one in total)])
        found.note(summed, optimizer.clip(NORM))
        optimizer.step((SEED, step))
        optimizer.zero_grad()
    found.weights = {name: weight.detach().clone() for name, weight in optimizer.weights().items()}
    return found


def gradients_of(made: Trainable) -> dict[str, torch.Tensor]:
    at_home = made.walk.home.gradients if made.walk else None
    trained = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
    return {n: or_zeros(at_home.delivered.get(p) if at_home else p.grad, p) for n, p in trained.items()}


def or_zeros(gradient: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.clone()


def process(folder: Path, base: Path, cases: list[Case]) -> None:
    """One of two processes, which go through all cases of a family."""
    distributed.join("cpu")
    torch.set_num_threads(1)
    for number, case in enumerate(cases):
        found = learn(case, base, KEPT_OF_TWO[case.kept], SHARES[case.shares])
        if distributed.rank() == 0:
            torch.save(found, folder / f"{number}.pt")
    distributed.wait()


# The references


def adamw(case: Case, folder: Path, model: Any) -> torch.optim.Optimizer:
    settings = recipe_of(case, folder).train
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def steps(case: Case, optimizer: torch.optim.Optimizer, model: Any, add_gradients: Any) -> Learned:
    """`add_gradients(step, rows)` returns the loss."""
    found = Learned()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = add_gradients(step, rows_of(step, last_id_of(case, model)))
        if step in SEEN:
            found.gradients |= {f"{step} {name}": or_zeros(p.grad, p) for name, p in trained.items()}
        found.note(loss, torch.nn.utils.clip_grad_norm_(trained.values(), NORM).item())
        optimizer.step()
    found.weights = {name: weight.detach().clone() for name, weight in trained.items()}
    return found


def plain(case: Case, folder: Path) -> Learned:
    """Transformers, PEFT and torch."""
    recipe = recipe_of(case, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if recipe.adapter.kind != "full":
        ids, vocabulary = new_tokens_of(case, model)
        if ids:
            model.resize_token_embeddings(vocabulary)
        model = get_peft_model(model, adapt.lora_config(model, recipe.adapter, ids))
    model.train().float()
    copy_weights(model_of(case, folder), model)
    seen: dict[str, torch.Tensor] = {}
    for name, (module, index) in routers(model).items() if case.switch == "router loss" else ():
        module.register_forward_hook(lambda _, given, out, name=name, index=index: seen.update({name: out[index]}))

    def add_gradients(step: int, rows: list) -> float:
        parts = [np.arange(len(rows))]
        if case.switch in BY_PASS:
            parts = [part for rank in range(2) for part in parts_of(rows, rank, SHARES[case.shares], case.packed)]
        total = 0.0
        for part in parts:
            some = [rows[row] for row in part]
            batch = collate(some, np.arange(len(some)), False)
            mask = batch.real_BT()
            logits = model(input_ids=batch.input_ids_BT, attention_mask=mask, use_cache=False).logits
            targets = targets_of(some).flatten()
            loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")
            loss = loss / units_of(rows)
            total += loss.item()
            if seen:
                balance = torch.stack([load_balancing_loss_func((layer,), 4, 2, mask) for layer in seen.values()])
                loss = loss + ROUTER_LOSS * balance.mean() * tokens_of(some) / tokens_of(rows)
            loss.backward()
        return total

    return steps(case, adamw(case, folder, model), model, add_gradients)


@torch.no_grad()
def copy_weights(source: Any, target: Any) -> None:
    found = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        parameter.copy_(dequantised(found.pop(name)))
    assert not found


def dequantised(parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, Stack4bit):
        return parameter.dequantized()
    return dequantize_4bit(parameter.data, parameter.quant_state) if hasattr(parameter, "quant_state") else parameter


def same_passes(case: Case, folder: Path, shares: list[float]) -> Learned:
    """The plain loop over Tunesmith's model, which is on the device whole, with the passes of all processes."""
    made = built(case, folder, None)

    def add_gradients(step: int, rows: list) -> float:
        total = 0.0
        for part in [part for rank in range(len(shares)) for part in parts_of(rows, rank, shares, case.packed)]:
            batch = collate(rows, part, case.packed)
            seed(step, batch.rows[0])
            loss = total_loss(made.model, batch, made.head) / units_of(rows)
            total += loss.item()
            (loss + made.routing.loss(batch, tokens_of(rows))).backward()
        return total

    return steps(case, adamw(case, folder, made.model), made.model, add_gradients)


# The grid


@pytest.fixture(scope="module")
def of_two(family, tmp_path_factory):
    """Gives what two processes learned in a case. They go through all cases of its family when one is asked for."""
    known: dict[Case, Learned] = {}
    failed: set[str] = set()

    def result(case: Case) -> Learned:
        assert case.family not in failed, "its processes have failed in another case"
        if case not in known:
            failed.add(case.family)
            cases = [other for other in GRID_OF_TWO if other.family == case.family]
            folder = tmp_path_factory.mktemp(case.family)
            launch.launch(process, 2, folder, family(case.family), cases)
            for number, other in enumerate(cases):
                known[other] = torch.load(folder / f"{number}.pt", weights_only=False)
            failed.remove(case.family)
        return known[case]

    return result


@pytest.fixture(scope="module")
def reference(family):
    """Gives what a reference learns, once for all layouts that it does not depend on."""
    known: dict[tuple, Learned] = {}

    def result(compute: Any, case: Case, *given: Any) -> Learned:
        key = (compute.__name__, case, repr(given))
        if key not in known:
            known[key] = compute(case, family(case.family), *given)
        return known[key]

    return result


GRID_OF_TWO, GRID_OF_ONE = grid(KEPT_OF_TWO, ("equal", "1:3")), grid(KEPT_OF_ONE, ("",))


def differences(found: Learned, expected: Learned) -> dict[str, float]:
    """The largest of each kind. Norms and gradients of a step whose norm is more than 1 in proportion to it, as float32
    rounds them."""
    assert found.gradients.keys() == expected.gradients.keys() and found.weights.keys() == expected.weights.keys()
    sizes = [max(1.0, norm) for norm in expected.norms]
    by_step = [(int(name.partition(" ")[0]), found.gradients[name] - g) for name, g in expected.gradients.items()]
    return {
        "losses": max(abs(a - b) for a, b in zip(found.losses, expected.losses, strict=True)),
        "norms": max(abs(a - b) / size for a, b, size in zip(found.norms, expected.norms, sizes, strict=True)),
        "gradients": max(by.abs().max().item() / sizes[step] for step, by in by_step),
        "weights": max((found.weights[n] - w).abs().max().item() for n, w in expected.weights.items()),
    }


# The norm of one step is 1.4e-5 off in one process with the same passes as well: attention of packed rows rounds
# otherwise than the eager one, and this model enlarges it.
UNSTEADY, UNSTEADY_BOUND = [case for case in GRID_OF_TWO if "gpt_oss, full" in str(case) and case.switch], 2e-5


@pytest.mark.parametrize("case", GRID_OF_TWO, ids=str)
def test_two_processes_learn_what_a_plain_one_does(of_two, reference, case):
    """Losses, norms and gradients. AdamW divides a gradient by its own size, so that a weight whose gradient is little
    more than rounding may move by another share of the learning rate. Such a weight does not matter to the losses."""
    if case.switch == "dropout":
        expected = reference(same_passes, replace(case, kept=""), SHARES[case.shares])
    else:
        shares = case.shares if case.switch in BY_PASS else ""
        expected = reference(plain, replace(case, kept="", shares=shares))
    found = differences(of_two(case), expected)
    assert expected.losses[0] - expected.losses[-1] > 0.1  # it learns
    assert found["weights"] < recipe_of(case, Path()).train.learning_rate / 10
    bounds = {"losses": BOUND, "gradients": BOUND, "norms": UNSTEADY_BOUND if case in UNSTEADY else BOUND}
    assert {name: found[name] for name, bound in bounds.items() if found[name] >= bound} == {}


@pytest.mark.parametrize("case", GRID_OF_ONE, ids=str)
def test_one_process_with_streamed_layers_learns_the_same_to_the_bit(family, reference, case):
    expected = reference(same_passes, replace(case, kept=""), [1.0])
    found = differences(learn(case, family(case.family), KEPT_OF_ONE[case.kept], [1.0]), expected)
    if is_rounded_otherwise(case, family(case.family)):
        assert found["losses"] < ROUNDED_BOUND and max(found["norms"], found["gradients"]) < BOUND
    else:
        assert set(found.values()) == {0.0}


def is_rounded_otherwise(case: Case, folder: Path) -> bool:
    """Of tied matrices that train, the walk adds up the gradients of head and embedding in another order. gpt-oss that
    trains whole has the same bits for twelve steps; then a few gradients of its experts' activations differ in the
    last bit."""
    tied = load.config_of(folder).tie_word_embeddings and (case.kind == "full" or case.switch == "new tokens")
    return tied or (case.family, case.kind) == ("gpt_oss", "full")
