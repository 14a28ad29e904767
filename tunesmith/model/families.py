"""Plain facts about model families that the library does not say."""

# gpt-oss has attention sinks, and its transformers code builds masks without positions: packed documents would see
# each other. It is padded instead.
WITHOUT_PACKING = {"gpt_oss"}


def can_pack(config) -> bool:
    """Whether documents laid end to end are kept apart in this model, capped attention scores included."""
    return config.model_type not in WITHOUT_PACKING and not getattr(config, "attn_logit_softcapping", None)
