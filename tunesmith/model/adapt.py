"""What is trained: a LoRA adapter through PEFT, or every weight."""

import torch

from tunesmith.errors import UserError
from tunesmith.recipe import Adapter


def adapt(model, adapter: Adapter, new_token_ids: list[int], vocabulary: int):
    """Makes the adapter's or all parameters trainable (in float32) and returns the model that trains.

    New tokens: the embedding is grown to `vocabulary` rows where it has fewer. With LoRA only the new rows train.
    """
    if vocabulary > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary)
    if adapter.kind == "full":
        return model.float()
    from peft import get_peft_model

    try:
        adapted = get_peft_model(model, lora_config(model, adapter, new_token_ids))
    except ValueError as error:
        raise UserError(f"adapter.targets: {str(error).splitlines()[0]}; linear modules of this model: "
                        f"{', '.join(_linear_names(model))}") from None
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def lora_config(model, adapter: Adapter, new_token_ids: list[int]):
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, use_rslora=adapter.rslora,
        use_dora=adapter.dora, target_modules=adapter.targets, modules_to_save=adapter.modules_to_save or None,
        trainable_token_indices=new_token_ids or None, task_type="CAUSAL_LM")


def parameter_counts(model) -> tuple[int, int]:
    """(trained, all). bitsandbytes keeps two 4-bit weights in a byte."""
    sizes = [(p.numel() * (1 + (p.dtype == torch.uint8)), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def _linear_names(model) -> list[str]:
    return sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
