"""The adapter alone, as PEFT opens it over the base model."""

from pathlib import Path

from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from tunesmith.errors import UserError
from tunesmith.export.forms.merged import BY_DTYPE
from tunesmith.export.model_folder import copy_settings
from tunesmith.export.parity.subject import Transformers
from tunesmith.export.settings import NoSettings as Settings
from tunesmith.finetune.prepared import Prepared
from tunesmith.inference.vllm_process import adapter_hindrances
from tunesmith.model.adapt import grow
from tunesmith.model.load import config_of, dequantising, eos_ids, opener_of, quieten
from tunesmith.run import Run


def write(run: Run, folder: Path, settings: Settings) -> list[str]:
    """Copies it; returns a note where vLLM will not load it. Raises UserError where the run trained every weight."""
    if run.recipe.adapter.kind == "full":
        raise UserError("--to adapter: this run trained every weight, so there is no adapter; --to merged")
    copy_settings(run, folder, without=())
    more = adapter_hindrances(run.recipe)
    return [f"vLLM does not load an adapter with {' and '.join(more)}; for vLLM export merged"] if more else []


def opened(run: Run, folder: Path, settings: Settings) -> Transformers:
    """As PEFT opens it: by itself, or over a multimodal base that others open."""
    config = config_of(run.base)
    if opener_of(config) is AutoModelForCausalLM:
        return Transformers.load(folder, AutoPeftModelForCausalLM, **dequantising(config))
    quieten()
    base = opener_of(config).from_pretrained(run.base, dtype="auto", use_safetensors=True, **dequantising(config))
    grow(base, Prepared.open(run).tokenizer.vocab_size if run.recipe.model.new_tokens else 0)
    return Transformers(PeftModel.from_pretrained(base, folder), folder, set(eos_ids(folder)))


def precision(run: Run, settings: Settings) -> str:
    return BY_DTYPE[run.plan.weights]
