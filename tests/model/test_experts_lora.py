"""LoRA over stacked experts gives PEFT's results, and makes and keeps nothing as large as the experts' weights.

The reference for one layer is PEFT over Transformers' eager experts, a loop over the experts. T tokens, E experts.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers.integrations.moe
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from tests import other, tiny
from tests.conftest import slow_but
from tests.model.test_lora import both
from tunesmith.model import experts_lora
from tunesmith.model.adapt import adapt
from tunesmith.model.load import load
from tunesmith.model.quantize import Stack4bit
from tunesmith.plan import Plan
from tunesmith.recipe import Adapter, Model
from tunesmith.training.build import inspect

EXPERTS, HIDDEN, INNER, TOKENS = 6, 64, 32, 40
CONFIG = dict(
    num_local_experts=EXPERTS,
    moe_num_experts=EXPERTS,
    n_routed_experts=EXPERTS,
    hidden_size=HIDDEN,
    moe_hidden_size=HIDDEN,
    intermediate_size=INNER,
    moe_intermediate_size=INNER,
    moe_latent_size=None,
    hidden_act="silu",
    mlp_hidden_act="relu2",
    swiglu_alpha=1.702,
    swiglu_limit=7.0,
    post_norm_eps=1e-5,
)
FORMS = {
    "gated": DeepseekV3Experts,
    "interleaved, transposed, with biases": GptOssExperts,
    "transposed": AriaExperts,
    "without a gate": NemotronHExperts,
    "with a norm of each expert": MuseSparkExperts,
}


class Layer(nn.Module):
    def __init__(self, kind: type, computed_by: str):
        super().__init__()
        self.experts = kind(SimpleNamespace(**CONFIG, _experts_implementation=computed_by))

    def forward(self, *args):
        return self.experts(*args)


def layer(form: str = "gated", computed_by: str = "grouped_mm", rank: int = 4, names: tuple = ()) -> Layer:
    """A layer of experts with PEFT's adapters, the same numbers each time. `names`: the parameters to adapt, if not
    all."""
    made = Layer(FORMS[form], computed_by)
    stacks = [name for name, p in made.experts.named_parameters() if p.ndim == 3 and (not names or name in names)]
    config = LoraConfig(r=rank, lora_alpha=12, target_parameters=[f"experts.{name}" for name in stacks])
    inject_adapter_in_model(config, made)
    torch.manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


def fused(made: nn.Module) -> nn.Module:
    experts_lora.fuse(made)
    return made


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, their experts and the weights of these. The last expert has no token."""
    torch.manual_seed(1)
    experts_T2 = torch.stack([torch.randperm(EXPERTS - 1)[:2] for _ in range(TOKENS)])
    return torch.randn(TOKENS, HIDDEN, requires_grad=True), experts_T2, torch.rand(TOKENS, 2, requires_grad=True)


def results(made: Layer, compute=None) -> dict[str, torch.Tensor]:
    """The output, and the gradients of all that has any."""
    tokens, experts_T2, weights = inputs()
    out = (compute or made)(tokens, experts_T2, weights)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
    gradients = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    return {"output": out.detach(), "tokens": tokens.grad, "weights": weights.grad} | gradients


def assert_alike(found: dict, expected: dict, bound: float = 1e-5) -> None:
    assert found.keys() == expected.keys() and len(found) > 3
    for key in expected:
        assert (found[key] - expected[key]).abs().max() <= bound * max(1, expected[key].abs().max()), key


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_experts_gives_the_results_of_peft(form, rank):
    ours = fused(layer(form, rank=rank))
    assert_alike(results(ours), results(layer(form, "eager", rank)))
    assert not experts_lora.left_to_peft(ours)


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_one_of_two_stacks_may_have_an_adapter(name):
    ours = fused(layer(names=(name,)))
    assert_alike(results(ours), results(layer(computed_by="eager", names=(name,))))
    assert not experts_lora.left_to_peft(ours)


def test_gpus_without_grouped_products_compute_the_same(monkeypatch):
    monkeypatch.setattr(transformers.integrations.moe, "_can_use_grouped_mm", lambda *_: False)
    ours = fused(layer())
    assert_alike(results(ours), results(layer(computed_by="eager")))
    assert not experts_lora.left_to_peft(ours)


@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16_as_near_to_float32_as_peft(form):
    exact = results(layer(form, "eager"))
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = (results(made.bfloat16()) for made in (layer(form), fused(layer(form))))
    for key in exact:
        error = [(found[key].float() - exact[key]).norm() for found in (ours, theirs)]
        assert error[0] < 1.2 * error[1] + 1e-3 * exact[key].norm(), key


@pytest.mark.parametrize("computed_by", ["eager", "batched_mm"])
def test_experts_that_are_computed_otherwise_are_left_to_peft(computed_by):
    ours = fused(layer(computed_by=computed_by))
    assert not experts_lora.left_to_peft(ours)  # not known before it has run
    assert_alike(results(ours), results(layer(computed_by=computed_by)), bound=1e-6)
    assert experts_lora.left_to_peft(ours)


@pytest.mark.parametrize("name", ["qwen3_moe", "llama3"])
def test_a_model_left_to_peft_is_told_once(family, name):
    base = load(Model(path="m"), family(name), torch.float32, "sdpa", 0)
    model = adapt(base, Adapter(rank=4), [], 0)
    model.set_experts_implementation("eager")
    plan = Plan("cpu", 1, "float32", "float32", 64, 64, "off", False, False, False, packing=False, threads=1)
    told = []
    inspect(model, plan, lambda event, message: told.append(message))
    assert sum("adapters of the experts" in message for message in told) == (name == "qwen3_moe")


class Sizes(TorchDispatchMode):
    """Records the largest tensor that operations make, other than views of parameters."""

    def __init__(self, made: nn.Module):
        super().__init__()
        self.largest, self._known = 0, {p.untyped_storage().data_ptr() for p in made.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("form", FORMS)
def test_no_tensor_is_as_large_as_the_experts(form):
    theirs, ours = layer(form), fused(layer(form))
    stack = max(p.numel() for p in ours.parameters())
    for made, as_large in ((theirs, True), (ours, False)):
        with Sizes(made) as sizes:
            results(made)
        assert (sizes.largest >= stack) == as_large


def test_autograd_keeps_experts_in_4_bits(family):
    """PEFT's sum of weights and update is kept in full precision."""
    kept = []
    for model in both(family, "mixtral", "nf4"):
        full = [p for p in model.parameters() if not isinstance(p, Stack4bit)]
        sizes, weights = [], {p.untyped_storage().data_ptr() for p in full}

        def note(tensor, sizes=sizes, weights=weights):
            if not isinstance(tensor, Stack4bit) and tensor.untyped_storage().data_ptr() not in weights:
                sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(input_ids=torch.arange(5, 9)[None])
        kept.append(max(sizes))
    stack_bytes = 4 * 64 * 128 * 4  # experts, inputs, outputs, bytes
    assert kept[0] >= stack_bytes > kept[1]


def test_weights_may_change_between_calls():
    ours = fused(layer())
    before = results(ours)
    ours.zero_grad()
    expected = layer(computed_by="eager")
    for made in (ours, expected):
        for _, p in made.named_parameters():
            p.data = p.data.flip(-1).contiguous() if p.ndim == 3 else p.data
    found = results(ours)
    assert_alike(found, results(expected))
    assert not torch.allclose(found["output"], before["output"], atol=0.1)


def test_two_threads_may_run_one_layer():
    """The layer's activation function runs the layer once more, in another thread."""
    ours, nested = fused(layer()), []

    def run_again(*_):
        if not nested:
            nested.append(None)
            with ThreadPoolExecutor(1) as pool:
                nested[0] = pool.submit(results, ours).result()["output"]

    ours.get_submodule("experts").get_base_layer().act_fn.register_forward_hook(run_again)
    alone = results(fused(layer()))["output"]
    assert torch.equal(results(ours)["output"], alone) and torch.equal(nested[0], alone)


def test_recomputed_in_the_backward_pass():
    ours = fused(layer())
    assert_alike(results(ours, partial(checkpoint, ours, use_reentrant=False)), results(fused(layer())), bound=0)


def test_a_copy_is_its_own():
    ours = fused(layer())
    copied = copy.deepcopy(ours)
    for parameter in ours.parameters():
        parameter.data.zero_()
    assert_alike(results(copied), results(layer(computed_by="eager")))


def test_an_adapter_switched_off_or_merged():
    ours, base = fused(layer()), Layer(FORMS["gated"], "grouped_mm")
    base.load_state_dict({n.replace("base_layer.", ""): p for n, p in ours.state_dict().items() if "lora" not in n})
    adapted, plain = results(ours), results(base)
    wrappers = [module for module in ours.modules() if isinstance(module, ParamWrapper)]
    for wrapper in wrappers:
        wrapper.enable_adapters(False)
    assert torch.equal(results(ours)["output"], plain["output"])
    for wrapper in wrappers:
        wrapper.enable_adapters(True)
        wrapper.merge()
    assert torch.allclose(results(ours)["output"], adapted["output"], atol=1e-4)
    assert not torch.allclose(adapted["output"], plain["output"], atol=0.1)


FAMILIES = [*tiny.MOE_FAMILIES, "gemma4_moe", "DeepseekV3", "Glm4Moe", "Qwen2Moe", "Ernie4_5_Moe"]
TOO_NARROW = [("DeepseekV3", "nf4"), ("Glm4Moe", "nf4")]  # for 4 bits on a CPU
ROUTER_HAS_NO_WEIGHT_OF_ITS_OWN = ("Ernie4_5_Moe",)  # for PEFT


@pytest.mark.parametrize(
    ("name", "quantize"),
    slow_but(
        [("gpt_oss", "none"), ("qwen3_moe", "nf4")],
        [(n, q) for n in FAMILIES for q in ("none", "nf4") if (n, q) not in TOO_NARROW],
    ),
)
def test_models_give_the_results_of_peft(family, tmp_path, name, quantize):
    """On packed and on padded examples."""
    folder = family(name) if name in tiny.FAMILIES | tiny.OTHERS else other.save_text(name, tmp_path)
    theirs, ours = both(lambda _: folder, name, quantize, router=name not in ROUTER_HAS_NO_WEIGHT_OF_ITS_OWN)
    ids, lengths = torch.arange(5, 45).view(2, 20), torch.tensor([20, 12])
    mask = torch.arange(20) < lengths[:, None]
    packed = {"input_ids": ids[mask][None], "position_ids": torch.arange(20).expand(2, 20)[mask][None]}
    for batch in (packed, {"input_ids": ids, "attention_mask": mask.long()}):
        found = []
        for model in (theirs, ours):
            model.zero_grad()
            embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
            logits = model(
                inputs_embeds=embedded, use_cache=False, **{k: v for k, v in batch.items() if k != "input_ids"}
            ).logits
            logits.logsumexp(-1).sum().backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            found.append({"logits": logits.detach(), "embedded": embedded.grad} | gradients)
        assert_alike(found[1], found[0], 2e-5)
    assert any("experts" in name for name in found[0]) and not experts_lora.left_to_peft(ours)
