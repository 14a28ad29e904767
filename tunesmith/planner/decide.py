"""Plan: what is decided from the recipe and the machine before anything runs."""

import os
from dataclasses import replace
from importlib.util import find_spec

from tunesmith.errors import UserError
from tunesmith.machine import Machine, best_precision
from tunesmith.plan import Plan
from tunesmith.recipe import Recipe, Train

# Tokens of one forward pass where nothing else is asked for: enough to fill a device, small enough for its memory.
CPU_TOKENS, GPU_TOKENS = 4096, 16384
CHECKPOINTING_FROM_LENGTH = 4096
TILED_MLP_FROM_TOKENS = 32768  # an MLP's activations are then several GB in a model of 8B parameters


def choose(recipe: Recipe, machine: Machine) -> Plan:
    """Raises UserError where the recipe asks for what this machine has not. `machine` may be a whole cluster."""
    settings = recipe.train
    device = "cuda" if machine.gpus else "cpu"
    processes = settings.processes or len(machine.gpus) or machine.nodes
    check_processes("train.processes", processes, len(machine.gpus), machine.cores, machine.nodes)
    compute, reasons = _precision(recipe, machine)
    # By default full fine-tuning keeps float32 weights: the updates of bfloat16 ones are lost or noisy.
    usual = "float32" if recipe.adapter.kind == "full" else compute
    weights = usual if settings.weights == "auto" else settings.weights
    _check_optimizer(settings.optimizer, device)
    if settings.network == "nccl" and device == "cpu":
        raise UserError("train.network: nccl connects GPUs, and there are none; leave it out")
    asked = recipe.data.sequence_length
    length = CHECKPOINTING_FROM_LENGTH if asked == "max" else asked  # to begin measuring with
    if isinstance(settings.micro_batch, int):
        tokens = settings.micro_batch * length
    else:
        tokens = max(length, GPU_TOKENS if machine.gpus else CPU_TOKENS)
    layers, why = layers_for(settings, length, tokens)
    _check_layers(layers, machine)
    return Plan(
        device=device,
        processes=processes,
        weights=weights,
        compute=compute,
        sequence_length=length,
        micro_batch_tokens=tokens,
        packing=recipe.data.packing,
        threads=threads_of(machine.cores, processes),
        shares=("measured" if machine.gpus else "equal") if settings.shares == "auto" else settings.shares,
        reasons=reasons | why,
        **layers,
    )


def _precision(recipe: Recipe, machine: Machine) -> tuple[str, dict[str, str]]:
    """The precision of computing, and the reason for it if the recipe leaves it open."""
    if recipe.model.dtype != "auto":
        return recipe.model.dtype, {}
    best = best_precision(machine.gpus) if machine.gpus else "bfloat16" if machine.cpu_fast_bf16 else "float32"
    if recipe.train.weights == "bfloat16" and best != "bfloat16":
        if best == "float16":
            raise UserError(
                f"train.weights: bfloat16: {_first_without_bf16(machine)} does not compute bfloat16; leave it out for "
                "float32 weights, or set model.dtype: bfloat16 to compute it slowly"
            )
        return "bfloat16", {"compute": "train.weights: bfloat16"}
    if best == "float16":
        return best, {"compute": f"{_first_without_bf16(machine)} does not compute bfloat16; with loss scaling"}
    return best, {"compute": f"the device computes bfloat16 {'fast' if best == 'bfloat16' else 'slowly or not at all'}"}


def _first_without_bf16(machine: Machine) -> str:
    return next(gpu for gpu in machine.gpus if not gpu.fast_bf16).label


def check_processes(name: str, processes: int, gpus: int, cores: int, nodes: int = 1) -> None:
    """Raises UserError, naming the option, for more processes than this machine can run, and for none. `nodes`: the
    machines that have the GPUs and cores."""
    if not 1 <= processes <= (gpus or cores):
        has = f"{gpus} GPUs" if gpus else f"{cores} cores"
        where = "this machine has" if nodes == 1 else f"the cluster's {nodes} machines have"
        raise UserError(f"{name}: {processes} asked for, but {where} {has}")


def threads_of(cores: int, processes: int) -> int:
    """Threads of each process: as OMP_NUM_THREADS says, else its share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(asked) if asked.isdigit() and int(asked) else max(1, cores // processes)


def within(plan: Plan, recipe: Recipe, positions: int | None) -> Plan:
    """The plan for a model that cannot take more than so many tokens in a row; None: it can take any number."""
    if not positions or plan.sequence_length <= positions:
        return plan
    rows = recipe.train.micro_batch
    tokens = rows * positions if isinstance(rows, int) else plan.micro_batch_tokens
    why = {"sequence_length": f"the model has {positions:,} positions and cannot take a longer row"}
    return replace(plan, sequence_length=positions, micro_batch_tokens=tokens, reasons=plan.reasons | why)


def layers_for(settings: Train, length: int, tokens: int) -> tuple[dict, dict]:
    """Decides the transforms of the decoder layers for examples of up to `length` tokens and `tokens` in a forward
    pass. Returns fields of the plan, and the reasons for those that the recipe leaves open."""
    checkpointing, offload = settings.gradient_checkpointing, settings.activation_offload
    compiled, tiled = settings.compile == "on", settings.tiled_mlp == "on"
    reasons = {}
    if checkpointing == "auto":
        checkpointing = "on" if length >= CHECKPOINTING_FROM_LENGTH or offload else "off"
        reasons["gradient_checkpointing"] = f"examples of up to {length:,} tokens"
    if settings.tiled_mlp == "auto":
        tiled = tokens >= TILED_MLP_FROM_TOKENS and not compiled
        reasons["tiled_mlp"] = f"{tokens:,} tokens in a forward pass"
    if settings.compile == "auto":
        reasons["compile"] = "off: no gain seen on a CPU, not measured on a GPU"
    return {
        "gradient_checkpointing": checkpointing,
        "activation_offload": offload,
        "tiled_mlp": tiled,
        "compile": compiled,
    }, reasons


def _check_layers(layers: dict, machine: Machine) -> None:
    """Raises UserError for what has no use or does not go together."""
    checkpointing, offload = layers["gradient_checkpointing"], layers["activation_offload"]
    tiled, compiled = layers["tiled_mlp"], layers["compile"]
    if offload and not machine.gpus:
        raise UserError(
            "train.activation_offload: without a GPU activations are in host memory already; set it to false"
        )
    if offload and checkpointing in ("off", 0):
        raise UserError("train.activation_offload moves what checkpointing keeps; set train.gradient_checkpointing: on")
    if compiled and not machine.compiles_cpp:
        raise UserError(
            "train.compile: needs a C++ compiler and Python's headers (apt install g++ python3-dev); or set it to off"
        )
    if compiled and checkpointing == "selective":
        raise UserError(
            "train.compile fuses the products that gradient_checkpointing: selective would keep; "
            "set train.gradient_checkpointing: on, or train.compile: off"
        )
    if compiled and tiled:
        raise UserError(
            "train.compile would build a graph for each number of tiles; "
            "set train.tiled_mlp: off, or train.compile: off"
        )


def _check_optimizer(name: str, device: str) -> None:
    if name == "paged_adamw_8bit" and device == "cpu":
        raise UserError(
            f"train.optimizer: {name} moves moments between a GPU and memory, and this machine has no "
            "GPU; use adamw_8bit"
        )
    if name.endswith("_8bit") and find_spec("bitsandbytes") is None:
        raise UserError(
            f"train.optimizer: {name} needs bitsandbytes; pip install 'tunesmith[bnb]', or use adafactor, "
            "which is as small"
        )
