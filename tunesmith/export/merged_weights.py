"""Iterates over a trained model's merged weights one layer at a time, so that memory never holds the whole model.

PEFT merges the adapter, on a model without weights into which one layer at a time is read. The merge is computed in
float32 and rounded once. Names are those of Transformers' modules, in which a layer's experts are stacked; `of_files`
converts them to the names in the model's files.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from safetensors import safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.quantizers import AutoHfQuantizer

from tunesmith.errors import UserError
from tunesmith.finetune.prepared import Prepared
from tunesmith.model.files import weight_files
from tunesmith.model.load import BITSANDBYTES, config_of, dequantising, opener_of, quieten, stored_as
from tunesmith.run import Run

HEAD, EMBEDDING = "get_output_embeddings", "get_input_embeddings"


class Weights:
    """The weights of a model. Iterating yields (name, tensor) for each weight once, in the order of `shapes`. `model`
    is on the meta device; `folder` is the folder that is read."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, adapter: Path | None = None, vocabulary: int = 0, rounded=None
    ):
        """Opens the folder of a base model, or of a fully trained one. The embedding grows to `vocabulary` rows.
        `rounded(model, name, tensor)` returns a base weight as quantisation changed it, to merge the adapter into that.
        A base in MXFP4, or stored by bitsandbytes, is dequantised while it is read. Raises UserError for other
        quantised bases.
        """
        self.config = config_of(folder)
        self._quantizer, self._packed = _dequantizer(self.config, folder), stored_as(self.config) == BITSANDBYTES
        vars(self.config).pop("quantization_config", None)
        quieten()
        self.dtype, self.folder, self._rounded = dtype, folder, rounded or _unchanged
        text = self.config.get_text_config()
        text.vocab_size = max(text.vocab_size, vocabulary)
        self.model = _empty(self.config, dtype)
        self.architecture = type(self.model).__name__
        embedding, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        tied = {self._name_of(HEAD)} if head.weight is embedding.weight else set()
        self._layers = _Merging(_hollow(_empty(self.config, dtype)), adapter) if adapter else None
        if tied and self._layers and self._layers.changes(tied | {self._name_of(EMBEDDING)}):
            tied, text.tie_word_embeddings, self.config.tie_word_embeddings = set(), False, False
        self._own = self._conversions = get_model_conversion_mapping(self.model)
        if self._quantizer:
            self._conversions = self._quantizer.update_weight_conversions(self._own, self.model)
        names = [name for name in self.model.state_dict() if name not in tied]
        self._groups = {layer: [n for n in names if _layer(n) == layer] for layer in dict.fromkeys(map(_layer, names))}
        shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        self.shapes = {name: shapes[name] for group in self._groups.values() for name in group}

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for group in self.layers():
            yield from group.items()

    def layers(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields {name: tensor} for each layer, and for each module outside the layers."""
        files = self._files()
        for layer, names in self._groups.items():
            self._read(layer, files)
            weights = {name: self._rounded(self.model, name, _get(self.model, name).detach()) for name in names}
            if self._layers:
                weights |= self._layers.merge(layer, weights)
            for name, tensor in self.empty(names).items():
                _put(self.model, name, tensor)
            yield {name: weights[name].to(self.dtype) for name in names}

    def empty(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Returns some of the weights as meta tensors."""
        return {name: torch.empty(self.shapes[name], dtype=self.dtype, device="meta") for name in names}

    def of_files(self, group: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Converts weights to the names and shapes of the model's files."""
        return {name: tensor.contiguous() for name, tensor in revert_weight_conversion(self.model, group).items()}

    def _files(self) -> dict[str, dict[str, Path]]:
        """Returns {layer: {tensor's name in the files: file}}."""
        renamings = [c for c in self._conversions if not isinstance(c, WeightConverter)]
        converters = [c for c in self._conversions if isinstance(c, WeightConverter)]
        known = self.model.state_dict()
        by_layer: dict[str, dict[str, Path]] = defaultdict(dict)
        for file in weight_files(self.folder):
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118  it is not a mapping
                    name, _ = rename_source_key(key, renamings, converters, self.model.base_model_prefix, known)
                    by_layer[_layer(name)][key] = file
        return by_layer

    def _read(self, layer: str, files: dict[str, dict[str, Path]]) -> None:
        """Reads a layer of the model from the files. An output head that is no longer tied starts as a copy of the
        embedding."""
        embedding, head = self._name_of(EMBEDDING), self._name_of(HEAD)
        tensors = files[layer] or files[_layer(embedding)]
        state = {}
        for file in sorted(set(tensors.values())):
            with safe_open(file, "pt") as opened:
                state |= {key: opened.get_tensor(key) for key, at in tensors.items() if at == file}
        if self._packed:
            from tunesmith.model.quantize import dequantized

            state = dequantized(state)
        if layer in (_layer(embedding), _layer(head)):
            state = {key: self._grown(tensor) for key, tensor in state.items()}
        options = LoadStateDictConfig(
            dtype=self.dtype, weight_mapping=self._conversions, device_map={"": "cpu"}, hf_quantizer=self._quantizer
        )
        convert_and_load_state_dict_in_model(self.model, state, options)
        # `of_files` uses these conversions; those of dequantisation would return the names of blocks and scales.
        self.model._weight_conversions = [c for c in self.model._weight_conversions if c in self._own]
        if not files[layer]:
            _put(self.model, head, _get(self.model, embedding).detach())

    def _grown(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds zero rows up to the size of the vocabulary."""
        missing = self.config.get_text_config().vocab_size - tensor.shape[0]
        return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing > 0 else tensor

    def _name_of(self, getter: str) -> str:
        """Returns the name of the weight of the embedding or the output head."""
        module = getattr(self.model, getter)()
        return next(f"{name}.weight" for name, other in self.model.named_modules() if other is module)


class _Merging:
    """A hollow model with an adapter, which merges the weights that are put into it."""

    def __init__(self, model, adapter: Path):
        self._places = {
            name: _place(model, name) for name in model.state_dict()
        }  # PEFT wraps modules, but these stay valid
        adapted = PeftModel.from_pretrained(model, adapter, torch_device="cpu", autocast_adapter_dtype=False)
        self._wrapped = _outermost(adapted.get_base_model())

    def changes(self, names: set[str]) -> bool:
        """Whether the adapter changes one of these weights in a way that unties embedding and output head."""
        return any(
            name.startswith(f"{key}.") and not isinstance(wrapper, TrainableTokensWrapper)
            for key, wrapper in self._wrapped.items()
            for name in names
        )

    def merge(self, layer: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the merged weights of a layer that the adapter changes, in float32."""
        result = {}
        for key, wrapper in self._wrapped.items():
            if _layer(key + ".") != layer:
                continue
            own = {name.removeprefix(f"{key}."): name for name in weights if name.startswith(f"{key}.")}
            for name in own.values():
                module, attribute = self._places[name]
                setattr(module, attribute, nn.Parameter(weights[name].float(), requires_grad=False))
            merged = dict(_merged(wrapper).named_parameters())
            result |= {name: merged[short].detach() for short, name in own.items()}
            wrapper.to("meta")
        return result


def _merged(wrapper: nn.Module) -> nn.Module:
    if isinstance(wrapper, AuxiliaryTrainingWrapper):
        return wrapper.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
    while isinstance(wrapper, BaseTunerLayer):  # wrappers of a layer's expert stacks are nested
        wrapper.merge(safe_merge=True)
        wrapper = wrapper.base_layer
    return wrapper


def _outermost(model) -> dict[str, nn.Module]:
    """Returns PEFT's outermost wrappers, by the name of the wrapped module."""
    wrappers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        wraps = isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        if wraps and not any(name.startswith(f"{outer}.") for outer in wrappers):
            wrappers[name] = module
    return wrappers


def _unchanged(model, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _dequantizer(config, folder: Path):
    """Returns Transformers' quantizer for a base in MXFP4, or None if it is not needed. Raises UserError for a base in
    another quantised format."""
    if options := dequantising(config):
        return AutoHfQuantizer.from_config(options["quantization_config"], pre_quantized=True)
    if (method := stored_as(config)) not in (None, BITSANDBYTES):
        raise UserError(
            f"{folder}: the base's weights are quantised ({method}), so the adapter cannot be merged into them; "
            "export --to adapter, or train on the base's version in full precision"
        )
    return None


def _empty(config, dtype: torch.dtype):
    with torch.device("meta"):
        return opener_of(config).from_config(config, dtype=dtype)


def _hollow(model):
    """Replaces each weight by one of the same shape with the storage of one number. It cannot be on the meta device,
    because PEFT puts an adapter on the device of the weight. Embedding and head keep their storage, because PEFT may
    write into them."""

    def filled(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
        if module in (model.get_input_embeddings(), model.get_output_embeddings()):
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)

    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(filled(module, tensor), requires_grad=False))
        for name, tensor in [*module.named_buffers(recurse=False)]:
            setattr(module, name, filled(module, tensor))
    return model


def _layer(name: str) -> str:
    """Returns the layer of a weight, e.g. `model.layers.3`, or its module if it is outside the layers."""
    match = re.match(r".*?\.\d+(?=\.)", name)
    return match[0] if match else name.rpartition(".")[0]


def _place(model, name: str) -> tuple[nn.Module, str]:
    module, _, attribute = name.rpartition(".")
    return model.get_submodule(module), attribute


def _get(model, name: str) -> torch.Tensor:
    return getattr(*_place(model, name))


def _put(model, name: str, tensor: torch.Tensor) -> None:
    module, attribute = _place(model, name)
    setattr(module, attribute, nn.Parameter(tensor, requires_grad=False))


def weights_of(run: Run, into: str = "full") -> Weights:
    """Returns a run's weights with the adapter merged. `into` is "full", or "dequantised" to merge into the base as
    training had it, rounded to 4 or 8 bits."""
    recipe = run.recipe
    if recipe.adapter.kind == "full":
        config = config_of(run.result)
        return Weights(run.result, config.dtype or torch.float32)
    rounded = None
    if into == "dequantised" and recipe.model.quantize != "none":
        from tunesmith.model.quantize import rounded_by

        rounded = rounded_by(recipe.model.quantize)
    vocabulary = Prepared.open(run).tokenizer.vocab_size if recipe.model.new_tokens else 0
    return Weights(run.base, getattr(torch, run.plan.weights), run.result, vocabulary, rounded)
