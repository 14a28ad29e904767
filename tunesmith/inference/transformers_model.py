"""Models computed by transformers' code in this process: sequences packed without padding (attention.py), or, where
layers keep other things than keys and values, one after the other with transformers' own cache."""

from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import torch
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from tunesmith.errors import UserError, first_line
from tunesmith.inference.kv_attention import KV, NAME, Segment, packed
from tunesmith.inference.loaded_model import Part
from tunesmith.machine import memory
from tunesmith.model.load import on_best

# Largest difference of logits over their spread between one packed pass and transformers' own attention. A model that
# mixes sequences or positions differs by the spread itself.
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}


# Prompts to try a model with: above the special tokens, which stand first or last, whatever the vocabulary.
FIRST = [100 + 3 * i for i in range(5)]
SECOND = [90 + 5 * i for i in range(9)]
SCORED = 128  # logits of so many tokens of a prompt are computed at once


class States:
    """See weights.KV: transformers' own cache, for models with layers that keep states. They cannot be gone back in."""

    def __init__(self, config):
        self.cache = DynamicCache(config=config)

    @property
    def nbytes(self) -> int:
        kept = [value for layer in self.cache.layers for value in vars(layer).values()]
        kept = [tensor for value in kept for tensor in (value.values() if isinstance(value, dict) else [value])]
        return sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor))

    def free(self) -> None:
        self.cache.layers.clear()


def _keeps_more(config) -> bool:
    """Whether layers keep anything but keys and values of all tokens or a window of them."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or [])
    layers = DynamicCache(config=config).layers
    return bool(kinds - {"full_attention", "sliding_attention"}) or any(
        isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers
    )


class TorchWeights:
    """See weights.Weights. `inner` is the model without PEFT around it; its layers still hold the adapters. `module` is
    what to call `generate` of."""

    divides = True

    def __init__(self, model):
        self.inner = self.module = on_best(model).eval()
        self.device = self.inner.device
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.bytes_per_token = 0
        self._adapters = 0
        self._active: str | None = None

    def add(self, folder: Path) -> str:
        """Loads one more adapter; returns its name."""
        from peft import PeftModel

        name = f"adapter{self._adapters}"  # PEFT takes no dots, which names of runs may have
        if not self._adapters:
            self.module = PeftModel.from_pretrained(self.inner, folder, name, autocast_adapter_dtype=False)
            self.module.to(self.device).eval()
            self._active = name
        else:
            self.module.load_adapter(folder, name, torch_device=str(self.device), autocast_adapter_dtype=False)
        self._adapters += 1
        return name

    def switch(self, adapter: str | None) -> None:
        """Switches the model to an adapter, or with None to its base."""
        if adapter == self._active:
            return
        if adapter is None:
            self.module.base_model.disable_adapter_layers()
        else:
            self.module.base_model.enable_adapter_layers()
            self.module.set_adapter(adapter, inference_mode=True)
        self._active = adapter

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else memory()[1]

    def reserve(self, limit_bytes: int, context: int, sequences: int, step: int) -> tuple[int, str]:
        precision = str(self.inner.dtype).removeprefix("torch.")
        self.divides = not _keeps_more(self.inner.config)
        with torch.inference_mode():
            self.bytes_per_token = self._prepare() if self.divides else self._prepare_alone()
        computes = f"transformers in this process, {self.device.type}, {precision}"
        return limit_bytes // self.bytes_per_token, computes + ("" if self.divides else ", one sequence at a time")

    def new_kv(self) -> "KV | States":
        return KV() if self.divides else States(self.inner.config)

    def logits(self, adapter: str | None, parts: list[Part]) -> torch.Tensor:
        self.switch(adapter)
        if not self.divides:
            return torch.cat([self._alone(part.ids, part.kv, 1).logits[0, -1:] for part in parts])
        ids, positions, last = [], [], []
        for part in parts:
            ids += part.ids
            positions += range(part.at, part.at + len(part.ids))
            last += [len(ids) - 1] if part.last else []
        segments = [Segment(part.kv, part.at, len(part.ids)) for part in parts]
        return self._forward(ids, positions, segments, last or [0]).logits[0][: len(last)]

    def embedding(self, adapter: str | None, ids: list[int]) -> list[float]:
        self.switch(adapter)
        more = {"output_hidden_states": True}
        if self.divides:
            out = self._forward(ids, [*range(len(ids))], [Segment(KV(), 0, len(ids))], [0], **more)
        else:
            out = self._alone(ids, None, 1, **more)
        mean = out.hidden_states[-1][0].float().mean(0)
        return torch.nn.functional.normalize(mean, dim=0).tolist()

    def prompt_logits(self, adapter: str | None, ids: list[int]) -> Iterator[torch.Tensor]:
        self.switch(adapter)
        if not self.divides:
            yield self._alone(ids, None, 0).logits[0]
            return
        kv = KV()
        for at in range(0, len(ids), SCORED):
            part = ids[at : at + SCORED]
            segments = [Segment(kv, at, len(part))]
            yield self._forward(part, [*range(at, at + len(part))], segments, [*range(len(part))]).logits[0]

    def close(self) -> None:
        self.inner = self.module = None

    def _forward(self, ids: list[int], positions: list[int], segments: list[Segment], keep: list[int], **more):
        """The model's output, its logits at the places `keep`."""
        device = self.device
        with packed(segments):
            return self.inner(
                input_ids=torch.tensor([ids], device=device),
                use_cache=False,
                position_ids=torch.tensor([positions], device=device),
                logits_to_keep=torch.tensor(keep, device=device),
                **more,
            )

    def _prepare(self) -> int:
        """Puts our attention into the model, and shows on two sequences that packed they are what each is alone.
        Returns the bytes of keys and values a token takes. Raises UserError."""
        model, device = self.inner, self.device
        first = FIRST
        second = SECOND
        model.set_attn_implementation("eager")
        expected = torch.cat(
            [model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0] for ids in (first, second)]
        ).float()
        model.set_attn_implementation(NAME)
        kv = KV()
        segments = [Segment(kv, 0, 5), Segment(KV(), 0, 9)]
        found = self._forward(first + second, [*range(5), *range(9)], segments, [*range(14)]).logits[0].float()
        difference, spread = float((found - expected).abs().max()), float(expected.std())
        if not difference <= BOUNDS[model.dtype] * spread:
            raise UserError(
                f"{model.config.model_type}: cannot be served: two prompts computed together differ from "
                f"each alone by {difference:.2g}, where the logits' spread is {spread:.2g}"
            )
        return kv.bytes_per_token

    def _prepare_alone(self) -> int:
        """Shows that a sequence computed token by token is what it is at once. Returns the bytes that one more token
        takes. Raises UserError."""
        kind = self.inner.config.model_type
        try:
            expected = self._alone(SECOND, None, 0).logits[0].float()
            kv = self.new_kv()
            found = [self._alone(SECOND[:5], kv, 1).logits[0, -1]]
            before = kv.nbytes
            found += [self._alone([token], kv, 1).logits[0, -1] for token in SECOND[5:]]
        except Exception as error:  # whatever a model of another kind of cache raises
            raise UserError(f"{kind}: cannot be served: {first_line(error)}; `--engine vllm` may serve it") from None
        difference = float((torch.stack(found).float() - expected[4:]).abs().max() / expected.std())
        if not difference < BOUNDS[self.inner.dtype]:
            raise UserError(
                f"{kind}: cannot be served: a prompt computed token by token differs from the whole by "
                f"{difference:.2g} of the logits' spread; `--engine vllm` may serve it"
            )
        return max(1, (kv.nbytes - before) // len(SECOND[5:]))

    def _alone(self, ids: list[int], kv: States | None, keep: int, **more):
        """The model's output for the next tokens of one sequence, its logits for the last `keep` of them (0: all)."""
        if "logits_to_keep" in signature(self.inner.forward).parameters:
            more["logits_to_keep"] = keep
        cache = {"use_cache": False} if kv is None else {"use_cache": True, "past_key_values": kv.cache}
        return self.inner(input_ids=torch.tensor([ids], device=self.device), **cache, **more)
