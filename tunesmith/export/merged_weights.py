"""A trained model's weights, a layer at a time, so that memory never holds the model.

The adapter's own arithmetic is PEFT's, done on a model without weights into which one layer after the other is read;
what is merged is added in float32 and rounded once. Names are those of transformers' modules, where a layer's experts
are stacked; `of_files` gives those of the model's files.
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
    """`for name, tensor in weights` gives each weight once, in the order of `shapes`. `model` is empty of storage;
    `folder` is the one that is read."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, adapter: Path | None = None, vocabulary: int = 0, rounded=None
    ):
        """`folder`: the base model's, or a whole one's. `vocabulary`: rows of the embedding, where the base has fewer.
        `rounded(model, name, tensor)`: what a base weight became by quantisation, to merge into that. A base in MXFP4
        or stored by bitsandbytes is dequantised as it is read. Raises UserError.
        """
        self.config = config_of(folder)
        self._quantizer, self._packed = _dequantizer(self.config, folder), stored_as(self.config) == BITSANDBYTES
        vars(self.config).pop("quantization_config", None)
        quieten()
        self.dtype, self.folder, self._rounded = dtype, folder, rounded or _as_it_is
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
        """The weights of each layer, and of what is outside the layers."""
        files = self._files()
        for layer, names in self._groups.items():
            self._read(layer, files)
            found = {name: self._rounded(self.model, name, _get(self.model, name).detach()) for name in names}
            if self._layers:
                found |= self._layers.merge(layer, found)
            for name, tensor in self.empty(names).items():
                _put(self.model, name, tensor)
            yield {name: found[name].to(self.dtype) for name in names}

    def empty(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Some of the weights without storage."""
        return {name: torch.empty(self.shapes[name], dtype=self.dtype, device="meta") for name in names}

    def of_files(self, group: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same weights as the model's files name and shape them."""
        return {name: tensor.contiguous() for name, tensor in revert_weight_conversion(self.model, group).items()}

    def _files(self) -> dict[str, dict[str, Path]]:
        """For each layer, its tensors' names in the files, and in which they are."""
        renamings = [c for c in self._conversions if not isinstance(c, WeightConverter)]
        converters = [c for c in self._conversions if isinstance(c, WeightConverter)]
        known = self.model.state_dict()
        found: dict[str, dict[str, Path]] = defaultdict(dict)
        for file in weight_files(self.folder):
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118  no mapping
                    name, _ = rename_source_key(key, renamings, converters, self.model.base_model_prefix, known)
                    found[_layer(name)][key] = file
        return found

    def _read(self, layer: str, files: dict[str, dict[str, Path]]) -> None:
        """Fills a layer of the model from the files. A head that is no longer tied begins as the embedding."""
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
        # By these `of_files` gives names: none of dequantisation, which would be those of blocks and scales.
        self.model._weight_conversions = [c for c in self.model._weight_conversions if c in self._own]
        if not files[layer]:
            _put(self.model, head, _get(self.model, embedding).detach())

    def _grown(self, tensor: torch.Tensor) -> torch.Tensor:
        """With a row for each token of the vocabulary."""
        missing = self.config.get_text_config().vocab_size - tensor.shape[0]
        return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing > 0 else tensor

    def _name_of(self, getter: str) -> str:
        """The name of the embedding's or the head's weight."""
        module = getattr(self.model, getter)()
        return next(f"{name}.weight" for name, other in self.model.named_modules() if other is module)


class _Merging:
    """A hollow model under its adapter: merges what is put into it."""

    def __init__(self, model, adapter: Path):
        self._places = {name: _place(model, name) for name in model.state_dict()}  # PEFT wraps modules, and keeps them
        adapted = PeftModel.from_pretrained(model, adapter, torch_device="cpu", autocast_adapter_dtype=False)
        self._wrapped = _outermost(adapted.get_base_model())

    def changes(self, names: set[str]) -> bool:
        """Whether one of these weights becomes one of its own, so that what was tied no longer is."""
        return any(
            name.startswith(f"{key}.") and not isinstance(wrapper, TrainableTokensWrapper)
            for key, wrapper in self._wrapped.items()
            for name in names
        )

    def merge(self, layer: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of a layer's weights that the adapter changes, in float32."""
        found = {}
        for key, wrapper in self._wrapped.items():
            if _layer(key + ".") != layer:
                continue
            own = {name.removeprefix(f"{key}."): name for name in weights if name.startswith(f"{key}.")}
            for name in own.values():
                module, attribute = self._places[name]
                setattr(module, attribute, nn.Parameter(weights[name].float(), requires_grad=False))
            merged = dict(_merged(wrapper).named_parameters())
            found |= {name: merged[short].detach() for short, name in own.items()}
            wrapper.to("meta")
        return found


def _merged(wrapper: nn.Module) -> nn.Module:
    if isinstance(wrapper, AuxiliaryTrainingWrapper):
        return wrapper.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
    while isinstance(wrapper, BaseTunerLayer):  # the stacks of a layer's experts are wrapped one in the other
        wrapper.merge(safe_merge=True)
        wrapper = wrapper.base_layer
    return wrapper


def _outermost(model) -> dict[str, nn.Module]:
    """PEFT's wrappers by the name of what they wrap, but for those within another."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        wraps = isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
        if wraps and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def _as_it_is(model, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _dequantizer(config, folder: Path):
    """transformers' reader of a base in MXFP4, or None where the weights are whole. Raises UserError for others."""
    if options := dequantising(config):
        return AutoHfQuantizer.from_config(options["quantization_config"], pre_quantized=True)
    if (method := stored_as(config)) not in (None, BITSANDBYTES):
        raise UserError(
            f"{folder}: the base's own weights are quantised ({method}), and nothing is merged into "
            "those; export --to adapter, or train over the base's version in full precision"
        )
    return None


def _empty(config, dtype: torch.dtype):
    with torch.device("meta"):
        return opener_of(config).from_config(config, dtype=dtype)


def _hollow(model):
    """Each weight has the shape it had and the storage of one number: PEFT keeps adapters on the device of what they
    adapt, so it may not be the meta device. Embedding and head may be filled by it, so they have their storage."""

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
    """The layer that a weight is of, e.g. `model.layers.3`; what is outside of them is told apart by its module."""
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found[0] if found else name.rpartition(".")[0]


def _place(model, name: str) -> tuple[nn.Module, str]:
    module, _, attribute = name.rpartition(".")
    return model.get_submodule(module), attribute


def _get(model, name: str) -> torch.Tensor:
    return getattr(*_place(model, name))


def _put(model, name: str, tensor: torch.Tensor) -> None:
    module, attribute = _place(model, name)
    setattr(module, attribute, nn.Parameter(tensor, requires_grad=False))


def weights_of(run: Run, into: str = "full") -> Weights:
    """What a run trained, its adapter merged. `into`: full, or dequantised: the base as training had it, rounded to 4
    or 8 bits."""
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
