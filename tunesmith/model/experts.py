"""Finds the parts of a mixture-of-experts (MoE) model in Transformers: stacked expert weights and routers.

The experts of a layer are one module with 3-D parameters, (expert, out, in) or (expert, in, out).
"""

import re

from torch import nn

from tunesmith.model.text import text_modules


def is_stack(module, parameter: str) -> bool:
    """Whether a module's parameter contains the stacked weights of experts."""
    return hasattr(module, "is_transposed") and getattr(module, parameter).ndim == 3


def stacks(model) -> list[str]:
    """Returns the names of the stacked expert weights relative to their layer."""
    names = (
        f"{name}.{key}"
        for name, module in text_modules(model)
        for key, _ in module.named_parameters(recurse=False)
        if is_stack(module, key)
    )
    return sorted({within_layer(name) for name in names})


def unknown_stacks(model) -> list[str]:
    """Returns the names of an MoE model's other 3-D weights relative to their layer, such as experts in a form that is
    not supported."""
    names = {
        within_layer(f"{name}.{key}")
        for name, module in text_modules(model)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and not is_stack(module, key) and not isinstance(module, nn.modules.conv._ConvNd)
    }
    return sorted(names) if routers(model) else []


def router_weights(model) -> list[str]:
    """Returns the names of the routers' weight matrices relative to their layer."""
    return sorted(
        {
            within_layer(f"{name}.{key}")
            for name, (module, _) in routers(model).items()
            for key, parameter in module.named_parameters()
            if parameter.ndim == 2
        }
    )


def within_layer(name: str) -> str:
    """Returns a name relative to its layer: the part after the layer's number."""
    return re.split(r"\.\d+\.", name)[-1]


def experts_per_token(config) -> int | None:
    """Returns how many experts process each token, or None if the configuration does not say."""
    text = config.get_text_config()
    return next(
        filter(None, (getattr(text, name, None) for name in ("num_experts_per_tok", "top_k_experts", "moe_topk"))), None
    )


def routers(model) -> dict:
    """Returns {name: (module, index of the router logits in its output)}, from Transformers' output recorders."""
    indices = {}
    for part in model.modules():
        recorder = (getattr(part, "_can_record_outputs", None) or {}).get("router_logits")
        if hasattr(recorder, "target_class"):
            indices[recorder.target_class] = recorder.index
    return {name: (module, indices[type(module)]) for name, module in text_modules(model) if type(module) in indices}
