"""One point of shapes.py by Tunesmith, in a process of its own: its loop, over a model with random weights."""

import math
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from operations import per_token
from points import Point
from transformers import AutoModelForCausalLM

from tunesmith.data.packing import Sizes
from tunesmith.data.row_order import Schedule
from tunesmith.energy import Meter
from tunesmith.errors import NotEnoughMemory
from tunesmith.machine import probe
from tunesmith.methods import Method
from tunesmith.model import adapt, load
from tunesmith.model.memory import is_out_of_memory, peak_bytes, reset_peak
from tunesmith.plan import Plan
from tunesmith.planner.decide import CPU_TOKENS, GPU_TOKENS, choose
from tunesmith.planner.fit import MULTIPLE, Measured, learn
from tunesmith.recipe import Model, Recipe
from tunesmith.training import distributed, packed_attention
from tunesmith.training.build import Trainable, inspect, transform
from tunesmith.training.checkpoint import State
from tunesmith.training.loop import loop
from tunesmith.training.step import Job

WARMUP, FEWEST, STEPS = 1, 2, 5
SECONDS = 12  # of counted steps, after which no more than FEWEST are made
CONTEXT_RANK = 32  # as in the published figure
CONTEXT_PROBES = (4096, 8192, 16384)
CLOSE = 0.02  # of what does not fit or is not expected to, at which the search ends


def steps(point: Point) -> dict:
    """Rates of the steps after warm-up, peak memory in them, and how they were computed."""
    recipe = recipe_of(point)
    check_size(point)
    built, device, said = build(point, recipe)
    state = State(
        micro_batch_tokens=built.plan.micro_batch_tokens, checkpointing=built.plan.gradient_checkpointing == "on"
    )
    watch = Watch(device, said)
    rows = Rows(point.length, recipe.train.batch * recipe.train.max_steps, built.model.config.vocab_size)
    schedule = Schedule(rows.weights, recipe.train.batch, 1, recipe.seed)
    loop(
        Job(
            run=None,
            method=Method(recipe.method),
            settings=recipe.train,
            **vars(built),
            tokens=rows,
            held_out=rows,
            tokenizer=None,
            plain=str,
            schedule=schedule,
            saver=SimpleNamespace(save=lambda *_: None),
            device=device,
            requested=lambda: "stop" if watch.enough() else "run",
            evaluate=lambda: None,
            sample=lambda: None,
            meter=Meter(unknown="not measured"),
            seed=recipe.seed,
            log=watch.log,
        ),
        state,
    )
    operations = per_token(point.config(), point.length, point.kind == "full")
    return watch.found() | {"operations_per_token": operations, "how": _how(recipe, built.plan, state), "said": said}


class Rows:
    """Rows of random tokens, all of them supervised, as the loop reads them."""

    def __init__(self, length: int, count: int, vocabulary: int):
        self.lengths, self.weights, self._vocabulary = np.full(count, length), np.ones(count), vocabulary
        self.sizes = Sizes.single(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        length = self.lengths[number]
        return np.random.default_rng(number).integers(0, self._vocabulary, length), np.ones(length, bool)

    def where(self, number: int) -> str:
        return f"random row {number}"


class Watch:
    """Takes the loop's events. A step that was done again in smaller parts is warm-up too."""

    def __init__(self, device: torch.device, said: list[str]):
        self._device, self._said, self._warmup, self._done = device, said, WARMUP, []

    def log(self, event: str, **values) -> None:
        if event == "warning":
            self._said.append(values["message"])
            self._warmup = len(self._done) + 1 + WARMUP
        if event == "step":
            self._done.append(values | {"reserved_bytes": _reserved(self._device)})
            reset_peak(self._device)

    def enough(self) -> bool:
        counted = self._done[self._warmup :]
        late = sum(step["seconds"] for step in counted) > SECONDS
        return len(counted) >= (FEWEST if late else STEPS)

    def found(self) -> dict:
        counted = self._done[self._warmup :] or self._done[-1:]
        rates = [step["tokens"] / step["seconds"] for step in counted]
        return {
            "tokens_per_second": statistics.median(rates),
            "spread": (min(rates), max(rates)),
            "steps": len(rates),
            "allocated_bytes": max(step["memory_bytes"] for step in counted),
            "reserved_bytes": max(step["reserved_bytes"] for step in counted),
        }


def _reserved(device: torch.device) -> int:
    """Peak of what torch holds of the GPU, with what it keeps for later."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0


def recipe_of(point: Point) -> Recipe:
    """A step is one forward pass of as many tokens as the planner takes, two where its optimizer has all weights."""
    full, pass_tokens = point.kind == "full", GPU_TOKENS if point.device == "cuda" else CPU_TOKENS
    length = point.length or CONTEXT_PROBES[0]
    train = {
        "batch": max(1, pass_tokens * (2 if full else 1) // length),
        "max_steps": WARMUP * 2 + STEPS,
        "eval_every": 10**6,
        "save_every": 10**6,
        "learning_rate": 1e-5,
        "compile": "on" if point.variant == "compiled" else "auto",
    }
    if full:  # float32 weights and moments of 8B parameters take 128 GB
        train |= {"weights": "bfloat16", "optimizer": "adamw_8bit" if find_spec("bitsandbytes") else "adafactor"}
    return Recipe.build(
        {
            "model": {
                "path": point.shape,
                "dtype": "bfloat16",
                "quantize": "nf4" if point.kind in ("qlora", "context") else "none",
            },
            "data": {"train": "random", "sequence_length": length},
            "adapter": {"kind": "full" if full else "lora", "rank": CONTEXT_RANK if point.kind == "context" else 16},
            "train": train,
        }
    )


def check_size(point: Point) -> None:
    """Raises NotEnoughMemory where a full training's weights and gradients alone are larger than the GPU."""
    gpus = probe().gpus
    if point.kind == "full" and gpus:
        with torch.device("meta"):
            count = sum(p.numel() for p in AutoModelForCausalLM.from_config(point.config()).parameters())
        if 4 * count > gpus[0].total_bytes:
            raise NotEnoughMemory(f"does not fit: {2 * count / 1e9:.0f} GB of weights and as much of gradients")


def build(point: Point, recipe: Recipe, **decided) -> tuple[Trainable, torch.device, list[str]]:
    """The model ready to train as the planner decides, but for what is `decided` here; and what was said of it."""
    said: list[str] = []
    plan = replace(choose(recipe, probe()), **decided)
    device = distributed.join(plan.device)
    torch.set_num_threads(plan.threads)
    base = random_base(point.config(), plan, recipe, device)
    torch.manual_seed(recipe.seed)
    model = adapt.adapt(base, recipe.adapter, [], 0).to(device)

    def log(event: str, **values) -> None:
        said.append(values["message"])

    built = transform(model, recipe, plan, inspect(model, plan, log), log)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reset_peak(device)
    return built, device, said


def random_base(config, plan: Plan, recipe: Recipe, device: torch.device):
    """A base as `load` gives it, its weights drawn on the device, one at a time if they are quantised."""
    how, dtype = packed_attention.choose(config, plan.packing), getattr(torch, plan.weights)
    if recipe.model.quantize == "none":
        with tempfile.TemporaryDirectory() as folder, device:
            config.save_pretrained(folder)
            return load.load(Model(path=folder, initialize="random"), Path(folder), dtype, how, recipe.seed)
    from tunesmith.model import quantize

    load.quieten()
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights = {name: Drawn(tensor.shape, dtype, device) for name, tensor in empty.state_dict().items()}
    model = type(empty).from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=dtype,
        attn_implementation=how,
        quantization_config=quantize.settings(recipe.model.quantize, dtype, empty),
    )
    quantize.settle(model)
    return model


@dataclass(frozen=True)
class Drawn:
    """Stands for a tensor in a file; drawn when it is read."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def __getitem__(self, _) -> torch.Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return tensor.fill_(1) if len(self.shape) == 1 else tensor.normal_(0, 0.02)


def _how(recipe: Recipe, plan: Plan, state: State) -> str:
    parts = [
        f"{recipe.train.optimizer}, {plan.weights} weights"
        if recipe.adapter.kind == "full"
        else f"rank {recipe.adapter.rank}"
    ]
    parts.append("activations recomputed" if state.checkpointing else "activations kept")
    parts.append(f"{state.micro_batch_tokens:,} tokens a pass")
    parts += ["compiled"] * plan.compile + ["tiled MLP"] * plan.tiled_mlp + ["padded"] * (not plan.packing)
    return ", ".join(parts)


def context(point: Point, seconds: float) -> dict:
    """The longest row of which a whole step ran within `cap_bytes`, activations offloaded and MLPs tiled."""
    began, recipe, most = time.monotonic(), recipe_of(point), point.config().max_position_embeddings
    if point.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(point.cap_bytes / torch.cuda.get_device_properties(0).total_memory)
    built, device, _ = build(point, recipe, gradient_checkpointing="on", activation_offload=True, tiled_mlp=True)
    built.model.train()
    largest = {}

    def peak_of(tokens: int) -> int | None:
        pass_began, peak = time.monotonic(), _peak(built, tokens, device)
        if not peak or peak > point.cap_bytes:
            return None
        largest.update(
            allocated_bytes=peak,
            reserved_bytes=_reserved(device),
            tokens_per_second=tokens / (time.monotonic() - pass_began),
        )
        return peak

    tokens, why = largest_context(peak_of, point.cap_bytes, most, seconds - (time.monotonic() - began))
    return {"tokens": tokens, "why": why, **largest} if tokens else {"problem": "no row fits"}


def largest_context(peak_of, cap_bytes: int, most: int, seconds: float) -> tuple[int, str]:
    """The most tokens up to `most` that were seen to fit, and why no more were tried.

    `peak_of(tokens)`: peak bytes of a step, or None if it does not fit. (0, …) if nothing does. A step that would not
    end in the `seconds` left, as its time grows with the square of its tokens, is not begun.
    """
    began, measured, last = time.monotonic(), [], (0, 0.0)
    failed, failures = math.inf, 0

    def tried(tokens: int) -> bool:
        nonlocal last
        step_began = time.monotonic()
        peak = peak_of(tokens)
        last = tokens, time.monotonic() - step_began
        measured.extend([(tokens, peak)] if peak else [])
        return bool(peak)

    for tokens in [n for n in CONTEXT_PROBES if n < most] or [most]:
        if not tried(tokens):
            failed, failures = tokens, 1
            break
    while measured:
        fits, _ = measured[-1]
        expected = Measured(measured, cap_bytes, 0).tokens
        tokens = int(min(most, expected, failed * (1 - CLOSE * 2**failures))) // MULTIPLE * MULTIPLE
        if fits == most:
            return fits, "all its positions"
        if tokens <= fits * (1 + CLOSE):
            return fits, f"{failed:,} do not fit" if failures else f"{tokens:,} expected to fit"
        if time.monotonic() - began + last[1] * (tokens / last[0]) ** 2 > seconds:
            return fits, f"no time to try {tokens:,}"
        if tried(tokens):
            failures = min(failures, 1)
        else:
            failed, failures = tokens, failures + 1
    return 0, "nothing fits"


def _peak(built: Trainable, tokens: int, device: torch.device) -> int | None:
    """Peak bytes of a step from one row; None if it ran out of memory."""
    reset_peak(device)
    try:
        learn(built, 1, tokens, device)
        return peak_bytes(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    built.optimizer.zero_grad(set_to_none=True)  # out of the handler, which kept the failed step's tensors alive
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None
