"""Attention over packed documents, registered through transformers' own attention interface.

`documents` computes causal attention within each document; `attention_kernels` has the ways to do it. Shapes: B batch
(1), H heads, T tokens, D head size.
"""

from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from tunesmith.errors import UserError, first_line
from tunesmith.model.load import opener_of
from tunesmith.model.memory import is_out_of_memory
from tunesmith.model.text import base_of
from tunesmith.training.attention_kernels import by_document, flexible, variable_length
from tunesmith.training.batch import collate
from tunesmith.training.loss import forward
from tunesmith.training.planned_device import capability_of

NAME = "documents"
FLASH_3 = "flash_attn_interface"  # the module of its package
UNKNOWN = ("position_bias", "indices", "block_indices", "sinks")  # other things that models ask of an attention


@torch.compiler.disable  # its shapes depend on the documents' lengths
def documents(
    module,
    query_BHTD,
    key_BHTD,
    value_BHTD,
    attention_mask,
    dropout=0.0,
    scaling=None,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    cu_seq_lens_q=None,
    max_length_q=None,
    document_lengths=None,
    **others,
) -> tuple[torch.Tensor, None]:
    """Returns (B, T, H, D) in the precision of autocast. Needs `cu_seq_lens_q`, the documents' boundaries, and
    `document_lengths`; `s_aux` are sinks. Raises ValueError for a model whose attention has more to it."""
    unknown = [name for name in UNKNOWN if others.get(name) is not None]
    if unknown or document_lengths is None or key_BHTD.shape[2] != query_BHTD.shape[2]:
        raise ValueError(f"attention over documents does not do {unknown or 'without boundaries of all keys'}")
    device = query_BHTD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query_BHTD.dtype
    query, key, value = (x.to(dtype) for x in (query_BHTD, key_BHTD, value_BHTD))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    fused = dtype in (torch.bfloat16, torch.float16) and not dropout and _has_fused(query.device)
    with torch.autocast(device, enabled=False):
        if not fused:
            groups = getattr(module, "num_key_value_groups", 1)
            out_HTD = by_document(
                query[0],
                repeat_kv(key, groups)[0],
                repeat_kv(value, groups)[0],
                document_lengths,
                scaling,
                sliding_window,
                softcap,
                s_aux,
                dropout,
            )
        elif softcap or s_aux is not None:
            out_HTD = flexible(query[0], key[0], value[0], cu_seq_lens_q, scaling, sliding_window, softcap, s_aux)
        else:
            out_HTD = variable_length(query[0], key[0], value[0], cu_seq_lens_q, max_length_q, scaling, sliding_window)
    return out_HTD.transpose(0, 1)[None], None


AttentionInterface.register(NAME, documents)


def _has_fused(device: torch.device) -> bool:
    """Whether it is a GPU that flash attention and Triton, which FlexAttention needs, support."""
    return capability_of(device) >= (8, 0)


def choose(config, packing: bool) -> str | None:
    """The attention to load this model with; None lets transformers choose."""
    known = opener_of(config)._model_mapping[type(config)]
    if packing and getattr(known, "_supports_attention_backend", False):
        return NAME
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if capped else None  # sdpa has no capped scores


def use_flash_attention_3(device: torch.device) -> str | None:
    """Has torch compute attention with FlashAttention 3, where that is installed and the GPU is one it is made for
    (Hopper); torch's own is FlashAttention 2. Returns why it cannot."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9 or not find_spec(FLASH_3):
        return None
    try:
        torch.nn.attention.activate_flash_attention_impl("FA3")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"FlashAttention 3 is installed but not used: {error}"
    return None


def why_not_packed(model, backward: bool = True) -> str | None:
    """Returns the reason why examples of this model cannot be packed, or None if they can: if packed documents do not
    see each other, and no token sees later ones. Raises RuntimeError if there is too little memory for the check.
    `backward`: whether to try a backward pass as well, which layers in host memory do not allow here.

    The check runs the model itself. The logits of a document must not change when the document before it changes, nor
    when its own last token changes. They must also be close to those of the document alone under the model's own
    attention, which shows that positions restart.
    """
    ids = torch.arange(1, 13)
    first, second = ids[:6], ids[6:]
    other_first, other_second = first.flip(0), torch.cat([second[:-1], ids[:1]])
    training = model.training
    model.eval()
    try:
        if backward and model.device.type == "cuda":  # whose kernels may lack a backward pass alone
            _packed_logits(model, first, second).sum().backward()
        with torch.inference_mode():
            packed, changed = (
                _packed_logits(model, a, b)[6:-1] for a, b in ((first, second), (other_first, other_second))
            )
            alone = _logits_alone(model, second)[:-1]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return f"this model's attention does not take packed documents ({first_line(error)})"
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
    scale = alone.std()
    exact = model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    rounding = 1e-3 if exact else 2e-2  # experts see other batches, so not bit for bit
    otherwise = (packed - alone).abs().max() if exact else (packed - alone).std()  # rounded, a few of many are far off
    apart = (packed - changed).abs().max() < rounding * scale and otherwise < 0.2 * scale
    return None if apart else "this model does not keep packed documents apart"


def check_causal(model) -> None:
    """Raises UserError for a model whose tokens see later ones, such as an encoder: it would learn to copy them. Shown
    on the model itself: the last token must not change the logits before it. LLM.int8 rounds all tokens' activations
    together, so a base in 8 bits does not show it."""
    if getattr(base_of(model), "is_loaded_in_8bit", False):
        return
    ids = torch.arange(1, 13)
    others = torch.cat([ids[:-1], ids[:1]])
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            first, second = (_logits_alone(model, row)[:-1] for row in (ids, others))
    finally:
        model.train(training)
    exact = model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    if (first - second).abs().max() > (1e-3 if exact else 5e-2) * first.std():
        raise UserError(
            f"model.path: {type(base_of(model)).__name__} is not a causal language model: its tokens see later ones"
        )


def _packed_logits(model, *documents: torch.Tensor) -> torch.Tensor:
    """(tokens, V) of documents laid end to end."""
    rows = [(ids.numpy(), np.zeros(len(ids), bool)) for ids in documents]
    batch = collate(rows, np.arange(len(rows)), packed=True).to(model.device)
    return forward(model, batch).logits[0].float()


def _logits_alone(model, ids: torch.Tensor) -> torch.Tensor:
    """(tokens, V) of one document, by transformers' own attention."""
    batch = collate([(ids.numpy(), np.zeros(len(ids), bool))], np.array([0]), packed=False).to(model.device)
    with default_attention(model):
        return forward(model, batch).logits[0].float()


@contextmanager
def default_attention(model):
    """Within it the model attends by transformers' own attention, over masks."""
    training = model.config._attn_implementation
    use_default(model)
    try:
        yield
    finally:
        model.set_attn_implementation(training)


def use_default(model) -> None:
    """Puts transformers' own attention in the place of `documents`, which only Tunesmith has."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
