"""Models computed by transformers' code in this process, sequences packed without padding (attention.py)."""

from pathlib import Path

import torch

from tunesmith.errors import UserError
from tunesmith.machine import memory
from tunesmith.model.load import on_best
from tunesmith.serve.engines.attention import KV, NAME, Segment, packed
from tunesmith.serve.engines.weights import Part

# Largest difference of logits over their spread between one packed pass and transformers' own attention. A model that
# mixes sequences or positions differs by the spread itself.
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}


class TorchWeights:
    """See weights.Weights. `inner` is the model without PEFT around it; its layers still hold the adapters. `module` is
    what to call `generate` of."""

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
        """What the model computes from now on: with an adapter, or with None as its base."""
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
        with torch.inference_mode():
            self.bytes_per_token = self._prepare()
        return limit_bytes // self.bytes_per_token, f"transformers in this process, {self.device.type}, {precision}"

    def new_kv(self) -> KV:
        return KV()

    def logits(self, adapter: str | None, parts: list[Part]) -> torch.Tensor:
        self.switch(adapter)
        ids, positions, last = [], [], []
        for part in parts:
            ids += part.ids
            positions += range(part.at, part.at + len(part.ids))
            last += [len(ids) - 1] if part.last else []
        segments = [Segment(part.kv, part.at, len(part.ids)) for part in parts]
        return self._forward(ids, positions, segments, last or [0]).logits[0][:len(last)]

    def embedding(self, adapter: str | None, ids: list[int]) -> list[float]:
        self.switch(adapter)
        out = self._forward(ids, [*range(len(ids))], [Segment(KV(), 0, len(ids))], [0], output_hidden_states=True)
        mean = out.hidden_states[-1][0].float().mean(0)
        return torch.nn.functional.normalize(mean, dim=0).tolist()

    def close(self) -> None:
        self.inner = self.module = None

    def _forward(self, ids: list[int], positions: list[int], segments: list[Segment], keep: list[int], **more):
        """The model's output, its logits at the places `keep`."""
        device = self.device
        with packed(segments):
            return self.inner(input_ids=torch.tensor([ids], device=device), use_cache=False,
                              position_ids=torch.tensor([positions], device=device),
                              logits_to_keep=torch.tensor(keep, device=device), **more)

    def _prepare(self) -> int:
        """Puts our attention into the model, and shows on two sequences that packed they are what each is alone.
        Returns the bytes of keys and values a token takes. Raises UserError for a model that keeps anything else."""
        model, device = self.inner, self.device
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
        if other := kinds - {"full_attention", "sliding_attention"}:
            raise UserError(f"{model.config.model_type}: cannot be served: its layers are {', '.join(sorted(other))}; "
                            "only models of attention over keys and values can")
        # Above the special tokens, which stand first or last, whatever the vocabulary.
        first = [100 + 3 * i for i in range(5)]
        second = [90 + 5 * i for i in range(9)]
        model.set_attn_implementation("eager")
        expected = torch.cat([model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
                              for ids in (first, second)]).float()
        model.set_attn_implementation(NAME)
        kv = KV()
        segments = [Segment(kv, 0, 5), Segment(KV(), 0, 9)]
        found = self._forward(first + second, [*range(5), *range(9)], segments, [*range(14)]).logits[0].float()
        difference, spread = float((found - expected).abs().max()), float(expected.std())
        if not difference <= BOUNDS[model.dtype] * spread:
            raise UserError(f"{model.config.model_type}: cannot be served: two prompts computed together differ from "
                            f"each alone by {difference:.2g}, where the logits' spread is {spread:.2g}")
        return kv.bytes_per_token
