"""Selects the trainable parameters: a LoRA adapter through PEFT, or every weight."""

import difflib

import torch

from tunesmith.errors import UserError, first_line
from tunesmith.model import experts, experts_lora, lora
from tunesmith.model.text import freeze_the_rest, is_multimodal, text_modules
from tunesmith.recipe import Adapter

# Names of the experts' linear modules in Transformers 4. PEFT moves adapters of these names to the stacked experts of
# Transformers 5.
V4_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def adapt(model, adapter: Adapter, new_token_ids: list[int], vocabulary: int):
    """Makes the parameters of an adapter (in float32), or all parameters, trainable. Returns the model to train.

    For new tokens, the embedding grows to `vocabulary` rows. With LoRA only the new rows of the embedding train, and
    those of an untied output head. Raises UserError if growing would add a row for a token that is not in
    `new_token_ids`, because that row would stay at its random initial value.
    """
    rows = model.get_input_embeddings().num_embeddings
    if unnamed := set(range(rows, vocabulary)) - set(new_token_ids):
        raise UserError(
            f"model.new_tokens: the tokenizer has {len(unnamed)} further tokens without an embedding, e.g. "
            f"id {min(unnamed)}; name them too"
        )
    grow(model, vocabulary)
    if adapter.kind == "full":
        freeze_the_rest(model)
        return model
    from peft import get_peft_model

    _check_names(model, adapter)
    _check_saved_whole(model, adapter.modules_to_save)
    try:
        adapted = get_peft_model(model, lora_config(model, adapter, new_token_ids))
    except ValueError as error:
        raise UserError(
            f"adapter.targets: {first_line(error).partition('. Please')[0]}; linear modules of this model: "
            f"{', '.join(_linear_names(model))}"
        ) from None
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    lora.fuse(adapted)
    experts_lora.fuse(adapted)
    return adapted


def new_token_ids(tokenizer, tokens: list[str]) -> list[int]:
    return [tokenizer.encode(token)[0][0] for token in tokens]


def grow(model, vocabulary: int) -> None:
    """Resizes the embedding to `vocabulary` rows if it has fewer."""
    if vocabulary > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(vocabulary)


def lora_config(model, adapter: Adapter, new_token_ids: list[int]):
    from peft import LoraConfig

    modules, parameters = _targets(model, adapter)
    rows, whole = _new_token_targets(model, adapter, new_token_ids)
    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        target_modules=modules,
        target_parameters=parameters or None,
        modules_to_save=[*_in_text(model, adapter.modules_to_save, str.endswith), *whole] or None,
        trainable_token_indices=rows or None,
        task_type="CAUSAL_LM",
    )


def _new_token_targets(model, adapter: Adapter, ids: list[int]) -> tuple[dict[str, list[int]], list[str]]:
    """Returns ({module: rows to train}, modules to train whole) for the embedding and an untied output head. A head
    with a bias trains whole, because PEFT drops the bias of a head whose rows it trains."""
    if not ids:
        return {}, []
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    names = {module: name for name, module in model.named_modules() if module in tables}
    for name in names.values():
        if isinstance(adapter.targets, list) and any(_has_name(name, target) for target in adapter.targets):
            raise UserError(
                f"adapter.targets: {name} cannot have LoRA beside the rows of model.new_tokens; leave it "
                "out, or name it in adapter.modules_to_save"
            )
    unsaved = [module for module in tables if not any(names[module].endswith(part) for part in adapter.modules_to_save)]
    rows = {names[module]: ids for module in unsaved if getattr(module, "bias", None) is None}
    return rows, [names[module] for module in unsaved if names[module] not in rows]


def _targets(model, adapter: Adapter) -> tuple[str | list[str], list[str]]:
    """Returns the names of the modules and of the parameters that get an adapter. For some models all-linear is
    expanded to names here, because PEFT would also adapt the vision tower of a multimodal model, or the routers of an
    MoE model, and would give its experts twice the rank."""
    if isinstance(adapter.targets, list):
        return _in_text(model, adapter.targets, _has_name), []
    routers = experts.router_weights(model)
    if adapter.targets != "all-linear" or not (routers or is_multimodal(model)):
        return adapter.targets, []
    stacks = experts.stacks(model) if adapter.experts else []
    if stacks and (adapter.dropout or adapter.dora):
        raise UserError(
            f"adapter.{'dora' if adapter.dora else 'dropout'}: PEFT supports it for linear modules, not for "
            "stacked experts; remove it, or set adapter.experts: false"
        )
    modules = sorted(_linear_beside_experts(model) - set(left_out(model, adapter)))
    return _in_text(model, modules, _has_name), stacks + (routers if adapter.router else [])


def _in_text(model, names: list[str], matches) -> list[str]:
    """Expands names to the full names of the text part's modules, because in a multimodal model PEFT would match the
    vision tower as well."""
    if not is_multimodal(model):
        return names
    return [module for module, _ in text_modules(model) if any(matches(module, name) for name in names)]


def left_out(model, adapter: Adapter) -> list[str]:
    """Returns the linear modules that all-linear skips: PEFT mistakes names such as those of shared experts for the
    routed experts."""
    if adapter.targets != "all-linear" or not experts.router_weights(model):
        return []
    return sorted(name for name in _linear_beside_experts(model) if name.rpartition(".")[2] in V4_EXPERTS)


def _linear_beside_experts(model) -> set[str]:
    """Returns the names, relative to their layer, of linear modules other than routers and the output head."""
    head = model.get_output_embeddings()
    modules = {
        experts.within_layer(name)
        for name, module in text_modules(model)
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return modules - {name.removesuffix(".weight") for name in experts.router_weights(model)}


def parameter_counts(model) -> tuple[int, int]:
    """Returns (trainable, all) counts of parameters. bitsandbytes keeps two 4-bit weights in a byte."""
    sizes = [(p.numel() * (1 + (p.dtype == torch.uint8)), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)


def _check_names(model, adapter: Adapter) -> None:
    """Raises UserError for a name in targets or modules_to_save that matches no module, since PEFT would ignore it. The
    experts' names of Transformers 4 are allowed, because PEFT moves them to the stacked experts."""
    modules = [name for name, _ in text_modules(model)]
    moved = V4_EXPERTS if experts.stacks(model) else set()
    targets = [] if isinstance(adapter.targets, str) else adapter.targets
    for key, names, matches in (
        ("targets", targets, _has_name),
        ("modules_to_save", adapter.modules_to_save, str.endswith),
    ):
        for name in names:
            if name.rpartition(".")[2] in moved or any(matches(module, name) for module in modules):
                continue
            near = difflib.get_close_matches(name, {module.rpartition(".")[2] for module in modules}, 1)
            hint = f"did you mean {near[0]}?" if near else f"its linear modules: {', '.join(_linear_names(model))}"
            raise UserError(f"adapter.{key}: this model has no module named {name}; {hint}")


def _has_name(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _check_saved_whole(model, names: list[str]) -> None:
    """Raises UserError for a module to save whose weights are quantised, because those cannot be trained."""
    for name, parameter in model.named_parameters():
        module = name.removesuffix(".weight")
        if parameter.dtype in (torch.uint8, torch.int8) and any(module.endswith(part) for part in names):
            raise UserError(f"adapter.modules_to_save: {module} is quantised, so it cannot be trained whole")


def _linear_names(model) -> list[str]:
    return sorted({n.rpartition(".")[2] for n, m in text_modules(model) if isinstance(m, torch.nn.Linear)})
