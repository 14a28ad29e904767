"""Models computed by transformers' code in this process: sequences packed without padding (kv_attention.py) or, where
that does not work, over transformers' own cache (states.py)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path

import torch
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from tunesmith.errors import UserError
from tunesmith.inference.kv_attention import KV, NAME, Segment, packed
from tunesmith.inference.kv_slab import Row, Slab
from tunesmith.inference.loaded_model import Part
from tunesmith.inference.states import States, StatesRow
from tunesmith.model import spread
from tunesmith.model.memory import is_out_of_memory
from tunesmith.model.text import base_of

# Largest difference of logits over their spread between two ways to compute them. Where tokens or positions are mixed
# up, the difference is as large as the spread. In lower precisions rounding takes a few logits far off, so there the
# bound is on the root mean square.
BOUND, ROUNDED_BOUND = 1e-3, 0.2

# Prompts to try a model with: above the special tokens, which stand first or last, whatever the vocabulary.
FIRST = [100 + 3 * i for i in range(5)]
SECOND = [90 + 5 * i for i in range(9)]
SCORED = 128  # logits of so many tokens of a prompt are computed at once


def _keeps_more(config) -> bool:
    """Whether layers keep anything but keys and values of all tokens or a window of them."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or [])
    layers = DynamicCache(config=config).layers
    return bool(kinds - {"full_attention", "sliding_attention"}) or any(
        isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers
    )


@contextmanager
def borrowed(model) -> Iterator["TorchWeights"]:
    """The weights of a model that is in use elsewhere, such as one in training, with the adapter that is active now.
    They stay on their device. Afterwards the model's modes and attention are what they were."""
    inner = base_of(model)
    training = [module for module in inner.modules() if module.training]
    attention = _attention_of(inner.config)
    inner.eval()
    try:
        yield TorchWeights(inner)
    finally:
        inner.set_attn_implementation(attention)
        for module in training:
            module.training = True


def _attention_of(config) -> dict:
    """The attention of a model and of each of its parts, as `set_attn_implementation` takes it."""
    parts = {name: part for name in config.sub_configs if (part := getattr(config, name, None)) is not None}
    return {"": config._attn_implementation} | {name: _attention_of(part) for name, part in parts.items()}


class TorchWeights:
    """See loaded_model.Weights. `inner` is the model without PEFT around it; its layers still hold the adapters."""

    def __init__(self, model):
        """`model`: in eval mode, on its device."""
        self.inner = self._adapted = model
        self.device = model.device
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.bytes_per_token = 0
        self._adapters = 0
        self._active: str | None = None
        with torch.inference_mode():
            self._choose_way()

    @classmethod
    def opened(cls, model) -> "TorchWeights":
        """On the best device that has room, or spread over several."""
        return cls(spread.on_best(model).eval())

    def add(self, folder: Path) -> str:
        """Loads one more adapter; returns its name."""
        from peft import PeftModel

        name = f"adapter{self._adapters}"  # PEFT takes no dots, which names of runs may have
        if not self._adapters:
            self._adapted = PeftModel.from_pretrained(
                self.inner, folder, name, torch_device="cpu", autocast_adapter_dtype=False
            )
            self._active = name
        else:
            self._adapted.load_adapter(folder, name, torch_device="cpu", autocast_adapter_dtype=False)
        spread.settle(self._adapted)
        self._adapted.eval()
        self._adapters += 1
        return name

    def switch(self, adapter: str | None) -> None:
        """Switches the model to an adapter, or with None to its base."""
        if adapter == self._active:
            return
        if adapter is None:
            self._adapted.base_model.disable_adapter_layers()
        else:
            self._adapted.base_model.enable_adapter_layers()
            self._adapted.set_adapter(adapter, inference_mode=True)
        self._active = adapter

    def free_bytes(self) -> int:
        return spread.free_bytes(self.inner)

    def device_bytes(self, kv_bytes: int) -> dict[str, int | None]:
        return {**spread.device_bytes(self._adapted, kv_bytes)}

    def reserve(self, limit_bytes: int, context: int, sequences: int, step: int) -> tuple[int, str]:
        if not self._caches:
            raise UserError(
                f"{self.inner.config.model_type}: cannot answer here: a prompt computed token by token differs from "
                "the whole prompt; `tunesmith serve --engine vllm` may serve it"
            )
        precision = str(self.inner.dtype).removeprefix("torch.")
        computes = f"transformers in this process, {spread.describe(self.inner)}, {precision}"
        return limit_bytes // self.bytes_per_token, computes + ("" if self.divides else ", one sequence at a time")

    def new_kv(self) -> KV | StatesRow:
        return KV() if self.divides else States(self.inner, self._caches).new()

    def kv_maker(self, sequences: int, tokens: int) -> Callable[[], KV | Row | StatesRow]:
        if self.divides:
            return Slab(sequences, tokens).new
        return States(self.inner, self._caches).new if self._pads else self.new_kv

    def logits(self, adapter: str | None, parts: list[Part]) -> torch.Tensor:
        self.switch(adapter)
        if not self.divides:
            return self._advance(parts)
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
            out = self._whole(ids, 1, **more)
        mean = out.hidden_states[-1][0].float().mean(0)
        return torch.nn.functional.normalize(mean, dim=0).tolist()

    def prompt_logits(self, adapter: str | None, ids: list[int]) -> Iterator[torch.Tensor]:
        self.switch(adapter)
        if not self.divides:
            yield self._whole(ids).logits[0]
            return
        kv = KV()
        for at in range(0, len(ids), SCORED):
            part = ids[at : at + SCORED]
            segments = [Segment(kv, at, len(part))]
            yield self._forward(part, [*range(at, at + len(part))], segments, [*range(len(part))]).logits[0]

    def close(self) -> None:
        self.inner = self._adapted = None

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

    def _advance(self, parts: list[Part]) -> torch.Tensor:
        """The logits [N, V] of parts over transformers' own cache: those of a batch together."""
        batches: dict[int, list[Part]] = {}
        for part in parts:
            batches.setdefault(id(part.kv.states), []).append(part)
        logits = [
            batch[0].kv.states.logits([p.kv for p in batch], [p.ids for p in batch]) for batch in batches.values()
        ]
        return torch.cat(logits)

    def _whole(self, ids: list[int], keep: int = 0, **more):
        """The model's output for tokens given at once, its logits for the last `keep` of them (0: all)."""
        if "logits_to_keep" in signature(self.inner.forward).parameters:
            more["logits_to_keep"] = keep
        return self.inner(input_ids=torch.tensor([ids], device=self.device), use_cache=False, **more)

    def _choose_way(self) -> None:
        """Chooses the fastest way to compute sequences whose logits are those of transformers' eager attention on each
        sequence alone, as shown on two short ones."""
        self.inner.set_attn_implementation("eager")
        vocabulary = self.inner.config.get_text_config().vocab_size
        tried = [[token % vocabulary for token in ids] for ids in (FIRST, SECOND)]
        expected = [self._whole(ids).logits[0] for ids in tried]
        self._pads = self._caches = True
        self.divides = not _keeps_more(self.inner.config) and self._shows(NAME, lambda: self._packed(tried), expected)
        if self.divides:
            return
        for self._pads, self._caches in ((True, True), (False, True), (False, False)):
            for attention in ("sdpa", "eager"):
                if self._shows(attention, lambda: self._continued(tried), expected):
                    return

    def _shows(self, attention: str, compute: Callable[[], list[torch.Tensor]], expected: list[torch.Tensor]) -> bool:
        """Whether `compute` gives the last of the expected logits of each sequence, with this attention."""
        try:
            self.inner.set_attn_implementation(attention)
            logits = compute()
        except Exception as error:  # whatever a model of another kind raises
            if is_out_of_memory(error):
                raise
            return False
        right = torch.cat([rows[-len(own) :] for rows, own in zip(expected, logits)]).float()
        difference = (torch.cat(logits).float() - right).abs() / right.std()
        exact = self.inner.dtype == torch.float32 and not torch.is_autocast_enabled(self.device.type)
        return bool(difference.max() <= BOUND if exact else difference.square().mean().sqrt() <= ROUNDED_BOUND)

    def _packed(self, tried: list[list[int]]) -> list[torch.Tensor]:
        """The logits of two sequences packed together: all tokens but the last, then the last. One keeps its own keys
        and values, one is in a slab."""
        own = KV()
        kvs, heads = [own, Slab(1, len(tried[1])).new()], [ids[:-1] for ids in tried]
        together = [token for ids in heads for token in ids]
        positions = [place for ids in heads for place in range(len(ids))]
        segments = [Segment(kv, 0, len(ids)) for kv, ids in zip(kvs, heads)]
        first = self._forward(together, positions, segments, [*range(len(together))]).logits[0]
        segments = [Segment(kv, len(ids), 1) for kv, ids in zip(kvs, heads)]
        last = self._forward([ids[-1] for ids in tried], [*map(len, heads)], segments, [0, 1]).logits[0]
        self.bytes_per_token = own.bytes_per_token
        for kv in kvs:  # rows and their slab refer to each other
            kv.free()
        return [torch.cat(rows) for rows in zip(first.split([*map(len, heads)]), last.split(1))]

    def _continued(self, tried: list[list[int]]) -> list[torch.Tensor]:
        """The logits of two sequences over transformers' own cache, the last tokens one by one in another order."""
        new_kv = self.kv_maker(2, len(tried[1]))
        kvs = [new_kv() for _ in tried]
        passes = [self._advance([Part(kv, 0, ids[:-3], True) for kv, ids in zip(kvs, tried)])]
        before = kvs[0].nbytes
        for at in (-3, -2, -1):
            parts = [Part(kv, len(ids) + at, [ids[at]], True) for kv, ids in zip(kvs, tried)]
            passes.append(self._advance(parts[::-1]).flip(0))
        self.bytes_per_token = max(1, (kvs[0].nbytes - before) // 3)
        return list(torch.stack(passes, 1))
