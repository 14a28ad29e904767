"""What shapes.py measures: true shapes of published models, and the points."""

from dataclasses import dataclass

# As in each model's config.json.
SHAPES = {
    "Llama-3.1-8B": dict(
        model_type="llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "Qwen3-8B": dict(
        model_type="qwen3",
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
    "Qwen3-30B-A3B": dict(
        model_type="qwen3_moe",
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
        norm_topk_prob=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
}
PLAIN = dict(tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None)
TINY = dict(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=4096,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)
TINY_EXPERTS = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64)


@dataclass(frozen=True)
class Point:
    """`kind`: full, lora or qlora, at rows of `length` tokens; context: the longest row within `cap_bytes`.
    `variant`: how, else as the planner decides."""

    shape: str
    kind: str
    length: int = 0
    cap_bytes: int = 0
    tool: str = "tunesmith"
    device: str = "cuda"
    tiny: bool = False
    variant: str = ""

    def config(self):
        """The model's configuration in transformers."""
        from transformers import AutoConfig

        values = SHAPES[self.shape] | PLAIN
        if self.tiny:
            values |= TINY | (TINY_EXPERTS if "num_experts" in values else {})
        return AutoConfig.for_model(**values)


def points(device: str, tiny: bool) -> list[Point]:
    """All of them, the most telling first. Tiny ones have rows and memory of a few hundredths."""
    lengths = [n // 32 if tiny else n for n in (2048, 8192, 32768)]
    caps = [int(gigabytes * 1e9 / (16 if tiny else 1)) for gigabytes in (24, 20, 16)]
    llama, qwen, mixture = SHAPES
    at = dict(device=device, tiny=tiny)

    def grid(shape: str, kinds: tuple[str, ...]) -> list[Point]:
        return [Point(shape, kind, n, **at) for kind in kinds for n in lengths]

    return [
        *grid(llama, ("full", "lora")),
        *(
            Point(llama, "lora", lengths[0], tool=tool, variant=variant, **at)
            for tool in ("unsloth", "trl")
            for variant in ("kept", "recomputed")
        ),
        *(Point(llama, kind, lengths[0], variant="compiled", **at) for kind in ("lora", "full")),
        *grid(llama, ("qlora",)),
        *(Point(llama, "context", cap_bytes=cap, **at) for cap in caps),
        *grid(mixture, ("qlora", "lora", "full")),
        *grid(qwen, ("full", "lora", "qlora")),
    ]
