"""Places a model that gives answers: on one GPU if it fits there, else layer by layer on all GPUs and the CPU.

Each decoder layer computes where its weights are. The embedding, the head and all else are on the GPU with most free
memory, which is the model's device. What passes from one GPU to another goes through host memory, because on some
boards direct copies between GPUs give zeros. Nothing here knows a model family: a trial pass shows whether it works.
"""

from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith import leases, machine
from tunesmith.errors import UserError, first_line
from tunesmith.model.experts import is_stack
from tunesmith.model.files import weight_bytes
from tunesmith.model.load import BITSANDBYTES, config_of, empty, stored_as
from tunesmith.model.memory import is_out_of_memory
from tunesmith.model.text import base_of, decoder_layers, text_modules
from tunesmith.recipe import Model

ROOM = 1.25  # memory that weights need with keys, values and activations, as a multiple of their bytes
STEPS = 100  # in which the share of each GPU's memory is searched
QUANTIZED_BYTES = {"nf4": 0.52, "int8": 1.0}  # of a weight with its scales
TRIED = [1, 2]  # tokens of the trial pass
CPU = torch.device("cpu")
NAME = "_tunesmith_placement"  # the attribute of a model that holds its Placement


@dataclass(frozen=True)
class Placement:
    """The device of each decoder layer, in order; none if all of the model is on its device. `text` is for people."""

    devices: list[torch.device]
    text: str


def on_best(model):
    """The model on the GPU with most free memory, if it has room for the weights and a quarter more; else its layers
    spread over all GPUs, and over the CPU if they do not fit there. A model that is on a GPU stays where it is."""
    base = base_of(model)
    if not torch.cuda.is_available() or base.device.type != "cpu":
        return model
    numbers, free = _free_gpu_bytes()
    best = free.index(max(free))
    if ROOM * _bytes_in(model) < free[best]:
        _move(model, {}, torch.device("cuda", best))
        return model
    try:
        layers = decoder_layers(model)
    except UserError:
        setattr(base, NAME, Placement([], "not spread over GPUs: it has no list of decoder layers"))
        return model
    try:
        sizes = [ROOM * _bytes_in(layer) for layer in layers]
        chosen = layer_gpus(sizes, ROOM * _bytes_in(model) - sum(sizes), free)
        if any(gpu is not None for gpu in chosen):
            devices = [CPU if gpu is None else torch.device("cuda", gpu) for gpu in chosen]
            _spread(model, devices, torch.device("cuda", best), numbers)
    except UserError as error:
        setattr(base, NAME, Placement([], f"not spread over GPUs: {error}"))
    return model


def layer_gpus(layers: list[float], rest: float, free: list[int]) -> list[int | None]:
    """Returns the GPU of each layer, None for the CPU, from the bytes that each layer and the `rest` of the model need
    and the `free` bytes of each GPU. The rest is on the GPU with most free memory, and so are the first layers. Each
    GPU gets consecutive layers, in proportion to the memory that is left there."""
    best = free.index(max(free))
    order = [best, *(gpu for gpu in range(len(free)) if gpu != best)]
    rooms = {gpu: free[gpu] - (rest if gpu == best else 0) for gpu in order}
    chosen: list[int | None] = [None] * len(layers)
    if rooms[best] < 0:
        return chosen
    for step in range(1, STEPS + 1):
        chosen = [None] * len(layers)
        layer = 0
        for gpu in order:
            left = rooms[gpu] * step / STEPS
            while layer < len(layers) and layers[layer] <= left:
                left -= layers[layer]
                chosen[layer] = gpu
                layer += 1
        if layer == len(layers):
            break
    return chosen


def needs_host(model: Model, folder: Path, dtype: Any) -> bool:
    """Whether a quantised base is too large for the GPU that it would be loaded onto, and has to be loaded into host
    memory first. `dtype`: the torch dtype of the weights that are not quantised."""
    config = config_of(folder)
    stored = stored_as(config) == BITSANDBYTES
    if model.initialize == "random" or not torch.cuda.is_available() or not (stored or model.quantize != "none"):
        return False
    nbytes = weight_bytes(folder) if stored else _quantized_bytes(empty(config), model.quantize, dtype)
    return ROOM * nbytes >= torch.cuda.mem_get_info()[0]


def describe(model) -> str:
    """Says, for people, where the model computes."""
    base = base_of(model)
    placement = getattr(base, NAME, None)
    return base.device.type + (f", {placement.text}" if placement else "")


def device_bytes(model, kv_bytes: int = 0) -> dict[str, int]:
    """Returns the bytes of the weights, and of so many keys and values, on each GPU that has some, by its UUID; all of
    them on the CPU of a machine without a GPU."""
    total: Counter[torch.device] = Counter()
    for tensor in {id(tensor): tensor for *_, tensor in _tensors(model)}.values():
        total[tensor.device] += getattr(tensor, "packed", tensor).nbytes
    counts = _layer_counts(model)
    for device, count in counts.items():
        total[device] += kv_bytes * count // counts.total()
    gpus = machine.find_gpus()[1]
    if not gpus:
        return {leases.CPU: total.total()}
    return {gpus[device.index].uuid: nbytes for device, nbytes in total.items() if device.type == "cuda"}


def free_bytes(model) -> int:
    """Returns the memory that is free for keys and values of all layers: as much as fits beside the layers of the
    device that would be full first."""
    counts = _layer_counts(model)
    free = {device: torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None for device in counts}
    available = {device: machine.memory()[1] if nbytes is None else nbytes for device, nbytes in free.items()}
    return min(available[device] * counts.total() // count for device, count in counts.items())


def _layer_counts(model) -> Counter[torch.device]:
    """How many layers compute on each device; one for the whole model if it is not spread."""
    base = base_of(model)
    placement = getattr(base, NAME, None)
    return Counter(placement.devices if placement and placement.devices else [base.device])


def settle(model) -> None:
    """Brings what was added to a model, such as an adapter, to the devices of the modules that it belongs to."""
    base = base_of(model)
    placement = getattr(base, NAME, None)
    devices = _module_devices(decoder_layers(model), placement.devices) if placement and placement.devices else {}
    _move(model, devices, base.device)


def on_cpu(model):
    """The model on the CPU, also one that was spread."""
    base = base_of(model)
    if getattr(base, NAME, None):
        for layer in decoder_layers(model):
            layer.forward = getattr(layer.forward, "inner", layer.forward)
        delattr(base, NAME)
    _move(model, {}, CPU)
    return model


def _free_gpu_bytes() -> tuple[list[int], list[int]]:
    """The numbers of the GPUs in nvidia-smi and their free bytes, in CUDA's order."""
    gpus = machine.find_gpus()[1]
    if not gpus:  # such as GPUs of AMD
        return [0], [torch.cuda.mem_get_info()[0]]
    return [gpu.index for gpu in gpus], [gpu.free_bytes for gpu in gpus]


def _quantized_bytes(whole: nn.Module, kind: str, dtype: torch.dtype) -> float:
    """Bytes of a model on the meta device once it is quantised."""
    head = whole.get_output_embeddings()
    small = {
        id(parameter)
        for _, module in text_modules(whole)
        for name, parameter in module.named_parameters(recurse=False)
        if (isinstance(module, nn.Linear) and module is not head and name == "weight") or is_stack(module, name)
    }
    return sum(p.numel() * (QUANTIZED_BYTES[kind] if id(p) in small else dtype.itemsize) for p in whole.parameters())


def _bytes_in(module: nn.Module) -> int:
    """Bytes of its weights; a Stack4bit's are those of its `packed` tensor, without scales."""
    return sum(getattr(tensor, "packed", tensor).nbytes for tensor in (*module.parameters(), *module.buffers()))


def _spread(model, devices: list[torch.device], home: torch.device, numbers: list[int]) -> None:
    """Puts each layer on its device and the rest on `home`. Raises UserError if the model cannot be computed so; it is
    then on the CPU."""
    base, layers = base_of(model), decoder_layers(model)
    _move(model, _module_devices(layers, devices), home)
    text = _listed(devices, numbers)
    if getattr(base, "is_loaded_in_4bit", False) and CPU in devices:
        text += ", which computes 4 bits slowly"
    setattr(base, NAME, Placement(devices, text))
    blocks = [_Block(device) for device, _ in groupby(devices)]
    places = [place for place, (_, same) in enumerate(groupby(devices)) for _ in same]
    for number, (layer, place) in enumerate(zip(layers, places)):
        ends = number + 1 == len(layers) or places[number + 1] != place
        layer.forward = _Placed(layer.forward, blocks[place], ends, home if number + 1 == len(layers) else None)
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([TRIED], device=home))
    except Exception as error:  # whatever a model of another kind raises
        if is_out_of_memory(error):
            raise
        on_cpu(model)
        raise UserError(f"a trial pass failed: {first_line(error)}") from None


def _listed(devices: list[torch.device], numbers: list[int]) -> str:
    """Names the layers of each device, which are consecutive, from 1 on."""
    ranges, first = [], 1
    for device, same in groupby(devices):
        last = first + len([*same]) - 1
        where = "the CPU" if device == CPU else f"GPU {numbers[device.index]}"
        ranges.append(f"layers {first}–{last} on {where}" if last > first else f"layer {first} on {where}")
        first = last + 1
    return ", ".join(ranges)


def _module_devices(layers: list[nn.Module], devices: list[torch.device]) -> dict[nn.Module, torch.device]:
    """The device of each module in the layers. Raises UserError for a module of two layers on different devices."""
    chosen: dict[nn.Module, torch.device] = {}
    for layer, device in zip(layers, devices):
        for module in layer.modules():
            if chosen.setdefault(module, device) != device:
                raise UserError("its layers share weights")
    return chosen


def _tensors(model: nn.Module) -> Iterator[tuple[nn.Module, dict, str, torch.Tensor]]:
    """Yields each parameter and buffer with its module, and the dictionary and name under which it is there."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    yield module, tensors, name, tensor


def _move(model: nn.Module, devices: dict[nn.Module, torch.device], rest: torch.device) -> None:
    """Puts the weights of each module on its device, or on `rest`. Raises UserError for weights that modules on
    different devices share, before anything has moved. Parameters are replaced, because a parameter in 4 bits does not
    take its scales along when only its data changes."""
    chosen: dict[int, torch.device] = {}
    for module, _, _, tensor in _tensors(model):
        if chosen.setdefault(id(tensor), devices.get(module, rest)) != devices.get(module, rest):
            raise UserError("its layers share weights")
    moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the old ones stay alive, so that no other gets their ids
    for _, tensors, name, tensor in [*_tensors(model)]:
        if tensor.device != chosen[id(tensor)]:
            if id(tensor) not in moved:
                moved[id(tensor)] = tensor, _moved(tensor, chosen[id(tensor)])
            tensors[name] = moved[id(tensor)][1]


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    with torch.no_grad():
        new = through_host(tensor, device)
    if isinstance(tensor, nn.Parameter) and not isinstance(new, nn.Parameter):
        return nn.Parameter(new, requires_grad=tensor.requires_grad)
    return new


def through_host(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns the tensor on another device, never copied straight from GPU to GPU."""
    return (tensor.cpu() if tensor.device.type == device.type == "cuda" else tensor).to(device)


@dataclass
class _Block:
    """Consecutive layers on one device. `copies` has what they are all given in a pass, such as masks, with its copy
    on their device, by id."""

    device: torch.device
    copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def brought(self, value: Any) -> Any:
        """Brings all tensors in an argument to the device. Those in a mapping or list are replaced there, so that
        layers that hand on something there, such as shared keys and values, still do."""
        if isinstance(value, torch.Tensor):
            if value.device == self.device:
                return value
            if id(value) not in self.copies:
                self.copies[id(value)] = value, through_host(value, self.device)
            return self.copies[id(value)][1]
        if type(value) is tuple:
            return tuple(map(self.brought, value))
        if isinstance(value, (MutableMapping, list)):
            for key in list(value) if isinstance(value, MutableMapping) else range(len(value)):
                value[key] = self.brought(value[key])
        return value


class _Placed:
    """A layer's forward on its device, with arguments from any. `home`: the device that the output goes to."""

    def __init__(self, inner, block: _Block, ends: bool, home: torch.device | None):
        """`ends`: it is the last layer of its block."""
        self.inner, self.block, self.ends, self.home = inner, block, ends, home

    def __call__(self, *args, **kwargs):
        device = self.block.device
        args, kwargs = self.block.brought(args), self.block.brought(kwargs)
        if self.ends:
            self.block.copies.clear()
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            output = self.inner(*args, **kwargs)
        return _Block(self.home).brought(output) if self.home else output
