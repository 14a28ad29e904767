"""Packing is only used where it is shown to keep documents apart; elsewhere rows are padded, and that is said.
Attention over documents is that of each document alone."""

import json
import shutil
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention
from transformers import BloomConfig, BloomForCausalLM, FalconConfig, FalconForCausalLM, MambaConfig, MambaForCausalLM

from tests import tiny
from tunesmith import train
from tunesmith.model.load import load
from tunesmith.recipe import Model
from tunesmith.training import attention_kernels as kernels
from tunesmith.training.batch import collate
from tunesmith.training.loss import forward
from tunesmith.training.packed_attention import NAME, documents, why_not_packed

OTHERS = {
    "bloom": (BloomForCausalLM, BloomConfig(vocab_size=800, hidden_size=32, n_layer=2, n_head=4)),
    "falcon": (
        FalconForCausalLM,
        FalconConfig(vocab_size=800, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    ),
    "mamba": (MambaForCausalLM, MambaConfig(vocab_size=800, hidden_size=32, num_hidden_layers=2, state_size=4)),
}


@pytest.fixture
def other(tmp_path):
    """Gives the folder of a model that no packing suits."""

    def save(name: str):
        folder = tmp_path / name
        tiny.save_tokenizer("qwen2", folder)
        kind, config = OTHERS[name]
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
        model.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_families_keep_documents_apart(family, name):
    assert why_not_packed(load(Model(path="m"), family(name), torch.float32, NAME, 0)) is None


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_padded_and_learn_the_same(recipe, other, name):
    folder = str(other(name))
    runs = [
        train(
            recipe(
                name=f"{packing}",
                model={"path": folder},
                adapter={"kind": "full"},
                data={"packing": packing},
                train={"max_steps": 3},
            )
        )
        for packing in (True, False)
    ]
    first, second = ([e["loss"] for e in run.events("step")] for run in runs)
    assert first == second
    warnings = [[e["message"] for e in run.events("warning")] for run in runs]
    assert len(warnings[0]) == 1 and "padded" in warnings[0][0] and warnings[1] == []


def test_a_base_with_a_temperature_but_no_sampling_can_be_saved(recipe, family, tmp_path):
    folder = tmp_path / "loose"
    shutil.copytree(family("llama3"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9}))
    run = train(recipe(model={"path": str(folder)}, train={"max_steps": 1}))
    saved = json.loads((run.result / "generation_config.json").read_text())
    assert saved["eos_token_id"] and saved.items() >= {"temperature": 0.6, "top_p": 0.9}.items()
    assert "do_sample" not in saved  # as in the base: transformers answers both greedily


def inputs(lengths, dtype=torch.float64, device="cpu", width=8):
    """Query, key, value, sinks, all with gradients, and the documents' boundaries."""
    torch.manual_seed(0)
    shapes = [(1, heads, sum(lengths), width) for heads in (4, 2, 2)] + [(4,)]
    tensors = [torch.randn(shape, dtype=dtype, device=device).requires_grad_() for shape in shapes]
    return tensors, torch.tensor((0, *lengths), device=device).cumsum(0).int()


def attend(query, key, value, sinks, ends, window, cap):
    """(B, T, H, D) by what is tested."""
    lengths = ends.diff().tolist()
    return documents(
        SimpleNamespace(num_key_value_groups=2),
        query,
        key,
        value,
        None,
        scaling=0.7,
        s_aux=sinks,
        sliding_window=window,
        softcap=cap,
        cu_seq_lens_q=ends,
        max_length_q=max(lengths),
        document_lengths=lengths,
    )[0]


def plainly(query, key, value, sinks, ends, window, cap):
    """(B, T, H, D) with all scores there are, in the precision of the arguments."""
    key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
    scores = query @ key.mT * 0.7
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    at = torch.arange(query.shape[2], device=query.device)
    document = torch.bucketize(at, ends[1:], right=True)
    behind = at[:, None] - at
    seen = (document[:, None] == document) & (behind >= 0) & (behind < (window or len(at)))
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:3], 1)], dim=-1)
    return (scores.softmax(-1)[..., : len(at)] @ value).transpose(1, 2)


def with_gradients(attention, tensors, ends, window, cap):
    """The output, and the gradients of a function of it."""
    out = attention(*tensors, ends, window, cap)
    return out, *torch.autograd.grad(out.square().sum() + out.sum(), [x for x in tensors if x is not None])


def largest_error(found, expected) -> float:
    """The largest difference, relative to the largest value of its tensor. Where that is far below the largest of all
    tensors, or 0 as the gradient of a lone token's query is, rounding of the others decides it: hence the floor."""
    floor = 1e-3 * max(b.abs().max().item() for b in expected)
    return max(
        (a - b).abs().max().item() / max(b.abs().max().item(), floor) for a, b in zip(found, expected, strict=True)
    )


ASKED = dict(window=st.none() | st.integers(1, 12), cap=st.none() | st.floats(0.5, 5), sinks=st.booleans())


@settings(max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 9) | st.integers(10, 30), min_size=1, max_size=5),
    **ASKED,
    kept=st.sampled_from([0, 256]),
    queries=st.integers(3, 12),
    scores=st.sampled_from([300, 2**21]),
)
@example(lengths=[1], window=None, cap=None, sinks=False, kept=0, queries=3, scores=300)  # gradients are exactly 0
@example(lengths=[1, 1, 1], window=1, cap=0.5, sinks=True, kept=256, queries=3, scores=300)
def test_attention_is_that_of_each_document(lengths, window, cap, sinks, kept, queries, scores):
    (*tensors, logits), ends = inputs(lengths)
    tensors.append(logits if sinks else None)
    with patch.multiple(kernels, KEPT_LENGTH=kept, CHUNK_QUERIES=queries, CHUNK_SCORES=scores):
        found = with_gradients(attend, tensors, ends, window, cap)
    assert largest_error(found, with_gradients(plainly, tensors, ends, window, cap)) < 1e-10


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("cap", [None, 3.0])
def test_attention_in_bfloat16_is_as_exact_as_its_scores(window, cap):
    tensors, ends = inputs([300, 7, 7, 40])
    rounded = [x.detach().bfloat16().requires_grad_() for x in tensors]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    found, expected = (with_gradients(f, x, ends, window, cap) for f, x in ((attend, rounded), (plainly, exact)))
    assert all(x.dtype == torch.bfloat16 for x in found)
    assert largest_error(found, expected) < 0.05


@pytest.mark.parametrize("name", ["gpt_oss", "gemma2"])
def test_sinks_and_caps_are_those_of_transformers(family, name):
    """Logits and gradients, also the sinks', against each document alone under its eager attention."""
    rows = [(np.random.default_rng(n).integers(5, 300, n), np.ones(n, bool)) for n in (40, 7, 40)]
    found = []
    for how, batches in ((NAME, [[0, 1, 2]]), ("eager", [[0], [1], [2]])):
        model = load(Model(path="m"), family(name), torch.float32, how, 0)
        logits = torch.cat(
            [forward(model, collate(rows, np.array(batch), packed=how == NAME)).logits[0] for batch in batches]
        )
        logits.square().mean().backward()
        found.append((logits, *(p.grad for p in model.parameters())))
    assert largest_error(*found) < 1e-4


@pytest.mark.parametrize("window", [None, 5, 150])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_flex_attention_is_the_same(monkeypatch, window, cap, sinks):
    """The function for GPUs, on a CPU: without compiling, where torch has gradients though it refuses them."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)

    def flexibly(query, key, value, sinks, ends, window, cap):
        return kernels.flexible(query[0], key[0], value[0], ends, 0.7, window, cap, sinks).transpose(0, 1)[None]

    (*tensors, logits), ends = inputs([100, 30, 260, 1, 9])
    tensors.append(logits if sinks else None)
    found, expected = (with_gradients(f, tensors, ends, window, cap) for f in (flexibly, plainly))
    assert largest_error(found, expected) < 1e-10


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=5), window=st.none() | st.integers(1, 200))
@settings(max_examples=20)
def test_block_masks_are_those_of_torch(lengths, window):
    total, ends = sum(lengths), torch.tensor((0, *lengths)).cumsum(0).int()
    found = kernels.block_mask(ends, total, window)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    expected = flex_attention.create_block_mask(
        lambda b, h, q, k: (document[q] == document[k]) & (k <= q) & (q - k < (window or total)),
        None,
        None,
        total,
        total,
        device="cpu",
    )
    for kind in ("", "full_"):
        counts, places = (getattr(found, f"{kind}kv_{what}") for what in ("num_blocks", "indices"))
        assert torch.equal(counts, getattr(expected, f"{kind}kv_num_blocks"))
        used = torch.arange(places.shape[-1]) < counts[..., None]
        assert torch.equal(places[used], getattr(expected, f"{kind}kv_indices")[used])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 5, 150])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_attention_on_a_gpu_is_that_of_each_document(window, cap, sinks):
    """Flash or FlexAttention in bfloat16."""
    for lengths in ([9, 1, 14], [300, 100, 77], [128, 128]):  # of other sizes, as FlexAttention is compiled
        (*tensors, logits), ends = inputs(lengths, torch.float32, "cuda", width=64)
        tensors.append(logits if sinks else None)
        with torch.autocast("cuda", torch.bfloat16):
            found = with_gradients(attend, tensors, ends, window, cap)
        assert largest_error(found, with_gradients(plainly, tensors, ends, window, cap)) < 0.05
