"""The settings of our own export forms. The flags of `tunesmith export` follow from them. They are apart from the forms
so that its help does not import torch."""

from typing import Literal

from tunesmith.recipe import Section


class NoSettings(Section):
    """Nothing to choose."""


class MergeSettings(Section):
    """How the adapter is merged."""

    into: Literal["full", "dequantised"] = "full"
    """For a base trained in 4 or 8 bits: merge into its weights in full precision, or into the rounded ones."""


class GgufSettings(MergeSettings):
    """How the model is written."""

    precision: Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"] = "bf16"
    """Precision of the matrices; vectors stay in float32."""
    importance: bool = False
    """For K-quants: lose the least where the inputs of the training rows are large."""


OF_FORMS: dict[str, type[Section]] = {
    "adapter": NoSettings,
    "fp8": NoSettings,
    "gguf": GgufSettings,
    "gguf_adapter": NoSettings,
    "int4": NoSettings,
    "merged": MergeSettings,
    "ollama": GgufSettings,
}
