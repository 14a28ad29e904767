"""Opens models for vLLM: one base, and the adapters of runs on it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.files import read_json
from tunesmith.finetune.prepared import Prepared
from tunesmith.finetune.result import require_result
from tunesmith.inference.interface import Served
from tunesmith.inference.vllm_engine import VllmEngine
from tunesmith.inference.vllm_process import adapter_hindrances, precision_of, serve_arguments
from tunesmith.model.load import config_of, resolve
from tunesmith.recipe import Model
from tunesmith.run import Run
from tunesmith.serve.open_models import by_name, context_of, defaults_of, describe_folder

ALWAYS = (
    "--generation-config",
    "vllm",
    "--structured-outputs-config",
    '{"backend": "guidance"}',
    "--enable-prompt-tokens-details",
)

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values that --max-lora-rank accepts


def open_vllm(
    paths: Sequence[Path | str], context: int | None, batch: int, queue: int, say: Callable[[str], None]
) -> VllmEngine:
    """Starts vLLM for runs of one base, or for one model. Reports progress by `say`. Raises UserError."""
    models, arguments = described(paths, context)
    return VllmEngine(models, [*arguments, "--max-num-seqs", str(batch), *ALWAYS], batch, queue, say)


def described(paths: Sequence[Path | str], context: int | None) -> tuple[dict[str, Served], list[str]]:
    """Returns {name: model}, tuned models before their base, and vLLM's arguments. Raises UserError for more than one
    base, and for adapters that vLLM does not support."""
    if files := [str(path) for path in paths if Path(path).suffix == ".gguf"]:
        raise UserError(f"--engine vllm: {files[0]}: vLLM does not serve GGUF files; leave --engine out")
    runs = [Run(path) for path in paths if Run(path).exists]
    folders = [resolve(Model(path=str(path))) for path in paths if not Run(path).exists]
    for run in runs:
        require_result(run)
    tuned = [run for run in runs if run.recipe.adapter.kind == "lora"]
    full = [run for run in runs if run not in tuned]
    bases = {(run.base.resolve(), run.plan.weights) for run in tuned}
    bases |= {(run.result.resolve(), precision_of(run.result)) for run in full}
    covered = {folder for folder, _ in bases}
    bases |= {(folder.resolve(), precision_of(folder)) for folder in folders if folder.resolve() not in covered}
    if len(bases) > 1:
        raise UserError(
            "--engine vllm: a server has one base model in one precision, with its adapters; these are "
            f"{', '.join(sorted(f'{folder.name} in {precision}' for folder, precision in bases))}: "
            "start a server for each"
        )
    ((base, precision),) = bases
    own = getattr(config_of(base).get_text_config(), "max_position_embeddings", None)
    if full:
        served = [_of_run(run, run.base.name, own, context) for run in full]
    elif tuned:
        name = folders[0].name if folders else "base"
        served = [_of_run(run, name, own, context) for run in tuned]
        served.append(
            Served(name, "base", name, served[0].tokenizer, served[0].stop_ids, defaults_of(base), served[0].context)
        )
    else:
        served = [describe_folder(folders[0], own, context)]
    arguments = serve_arguments(base, served[-1].name, precision, served[-1].context)
    return by_name(served), arguments + _adapters(tuned)


def _of_run(run: Run, base: str, own: int | None, context: int | None) -> Served:
    return Served(
        run.name,
        "tuned",
        base,
        Prepared.open(run).tokenizer,
        frozenset(run.plan.stop_ids),
        defaults_of(run.result),
        context_of(run.name, own, context),
    )


def _adapters(runs: Sequence[Run]) -> list[str]:
    """Returns vLLM's arguments for LoRA. Raises UserError for a run whose adapter vLLM does not support."""
    ranks = [1]
    for run in runs:
        recipe, settings = run.recipe, read_json(run.result / "adapter_config.json")
        bases = {
            "a base with random weights": recipe.model.initialize == "random",
            "a quantised base": recipe.model.quantize != "none",
        }
        if hindrances := adapter_hindrances(recipe) + [name for name, present in bases.items() if present]:
            raise UserError(
                f"--engine vllm: {run.folder}: vLLM does not support an adapter with {' and '.join(hindrances)}; "
                f"run `tunesmith export {run.folder} --to merged`, and serve that folder"
            )
        ranks += [settings["r"], *(settings.get("rank_pattern") or {}).values()]
    if not runs:
        return []
    if max(ranks) > RANKS[-1]:
        raise UserError(f"--engine vllm: vLLM supports adapters up to rank {RANKS[-1]}, not {max(ranks)}")
    modules = [json.dumps({"name": run.name, "path": str(run.result.resolve())}) for run in runs]
    rank = next(rank for rank in RANKS if rank >= max(ranks))
    limits = ["--max-lora-rank", str(rank), "--max-loras", str(len(runs))]
    return ["--enable-lora", *limits, "--lora-modules", *modules]
