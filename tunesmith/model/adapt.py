"""What is trained: a LoRA adapter through PEFT, or every weight."""

import torch

from tunesmith.errors import UserError
from tunesmith.model import experts, lora
from tunesmith.recipe import Adapter

# Linear modules of experts in transformers 4. PEFT moves adapters of these names to the stacked experts of 5.
V4_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def adapt(model, adapter: Adapter, new_token_ids: list[int], vocabulary: int):
    """Makes an adapter's (in float32) or all parameters trainable and returns the model that trains.

    New tokens: the embedding is grown to `vocabulary` rows where it has fewer. With LoRA only the new rows train.
    """
    if vocabulary > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary)
    if adapter.kind == "full":
        return model
    from peft import get_peft_model

    _check_saved_whole(model, adapter.modules_to_save)
    try:
        adapted = get_peft_model(model, lora_config(model, adapter, new_token_ids))
    except ValueError as error:
        raise UserError(f"adapter.targets: {str(error).splitlines()[0]}; linear modules of this model: "
                        f"{', '.join(_linear_names(model))}") from None
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    lora.fuse(adapted)
    return adapted


def lora_config(model, adapter: Adapter, new_token_ids: list[int]):
    from peft import LoraConfig

    modules, parameters = _targets(model, adapter)
    return LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, use_rslora=adapter.rslora,
        use_dora=adapter.dora, target_modules=modules, target_parameters=parameters or None,
        modules_to_save=adapter.modules_to_save or None, trainable_token_indices=new_token_ids or None,
        task_type="CAUSAL_LM")


def _targets(model, adapter: Adapter) -> tuple[str | list[str], list[str]]:
    """Names of modules and of parameters that get an adapter. all-linear is spelt out for a mixture of experts, as PEFT
    takes it to mean the routers too, and the experts with twice the rank."""
    routers = experts.router_weights(model)
    if adapter.targets != "all-linear" or not routers:
        return adapter.targets, []
    stacks = experts.stacks(model) if adapter.experts else []
    if stacks and (adapter.dropout or adapter.dora):
        raise UserError(f"adapter.{'dora' if adapter.dora else 'dropout'}: PEFT has it for linear modules, not for "
                        "stacked experts; leave it out, or say adapter.experts: false")
    head = model.get_output_embeddings()
    modules = {experts.within_layer(name) for name, module in model.named_modules()
               if isinstance(module, torch.nn.Linear) and module is not head}
    modules -= {name.removesuffix(".weight") for name in routers}
    unreached = sorted(name for name in modules if name.rpartition(".")[2] in V4_EXPERTS)
    if unreached:
        raise UserError(f"adapter.targets: PEFT takes {', '.join(unreached)} of this model for its experts; name the "
                        "modules to adapt, e.g. [q_proj, k_proj, v_proj, o_proj]")
    return sorted(modules), stacks + (routers if adapter.router else [])


def parameter_counts(model) -> tuple[int, int]:
    """(trained, all). bitsandbytes keeps two 4-bit weights in a byte."""
    sizes = [(p.numel() * (1 + (p.dtype == torch.uint8)), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def base_of(model):
    """The causal language model under its adapter, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _check_saved_whole(model, names: list[str]) -> None:
    """Quantised weights cannot be trained. Raises UserError."""
    for name, parameter in model.named_parameters():
        module = name.removesuffix(".weight")
        if parameter.dtype in (torch.uint8, torch.int8) and any(module.endswith(part) for part in names):
            raise UserError(f"adapter.modules_to_save: {module} is quantised, so it cannot be trained whole")


def _linear_names(model) -> list[str]:
    return sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
