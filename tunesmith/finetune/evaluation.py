"""A finished run measured on data that it was not trained with: `tunesmith eval RUN --data FILE`."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tunesmith.answer_formats.format import find
from tunesmith.data.dataset import TokenStore, measured_only
from tunesmith.data.encode import Progress
from tunesmith.data.source import ResolvedSource
from tunesmith.evaluate import generate, heldout
from tunesmith.finetune.prepared import Prepared, token_cache
from tunesmith.finetune.result import base_model, require_result, trained_model
from tunesmith.leases import using
from tunesmith.methods import Method
from tunesmith.model.load import quieten
from tunesmith.model.spread import device_bytes, on_best
from tunesmith.run import Run
from tunesmith.training.loss import autocast, find_head


def evaluate(run: Run, source: ResolvedSource, progress: Progress = lambda rows, examples: None) -> dict:
    """The numbers of eval.json for the rows of `source`, before and after training, with `ledger`, `path` and the
    `samples`. Raises UserError for a run without a result and for data without a usable row."""
    require_result(run)
    quieten()
    tokens, ledger = _tokens(run, source, progress)
    after, before = _measured(run, tokens)
    tokenizer = Prepared.open(run).tokenizer
    plain = partial(find(tokenizer).plain, tokenizer)
    samples = [
        {
            "prompt": tokens.asked(row),
            "reference": plain(tokens.prompt_and_answer(row)[1].tolist()),
            "before": before["answers"][row],
            "after": after["answers"][row],
        }
        for row in _sampled(run, tokens)
    ]
    return heldout.compare(before, after) | {
        "path": source.path,
        "held_out": tokens.fingerprint,
        "ledger": ledger,
        "samples": samples,
    }


def _tokens(run: Run, source: ResolvedSource, progress: Progress) -> tuple[TokenStore, dict]:
    settings = Prepared.open(run).encode_settings
    return measured_only(run.recipe.data, [source], settings, token_cache(), progress)


def _measured(run: Run, tokens: TokenStore) -> tuple[dict, dict]:
    """(after, before): an adapter is switched off for the second, a full fine-tune's base is loaded."""
    tuned = on_best(trained_model(run))
    after = _measure(run, tuned, tokens)
    if run.recipe.adapter.kind == "lora":
        with tuned.disable_adapter():
            return after, _measure(run, tuned, tokens)
    del tuned
    return after, _measure(run, on_best(base_model(run)), tokens)


def _measure(run: Run, model: Any, tokens: TokenStore) -> dict:
    with using(device_bytes(model), "evaluation", run.folder):
        return _numbers(run, model, tokens)


def _numbers(run: Run, model: Any, tokens: TokenStore) -> dict:
    """`losses`, `answers` by row and, where the recipe asks for exact match, `right`, as heldout.compare takes them."""
    settings, device = run.recipe.evaluate, model.device
    plan = replace(run.plan, packing=False, device=device.type)
    found: dict[str, Any] = {
        "losses": heldout.row_losses(Method(run.recipe.method), model, find_head(model, False), tokens, plan, device)
    }
    rows = range(len(tokens)) if settings.exact_match else _sampled(run, tokens)
    tokenizer = Prepared.open(run).tokenizer
    plain = partial(find(tokenizer).plain, tokenizer)
    with autocast(plan):
        answers = generate.answers(
            model,
            [tokens.prompt_and_answer(row)[0].tolist() for row in rows],
            settings.max_new_tokens,
            run.plan.stop_ids,
        )
    found["answers"] = {row: plain(answer.text_ids) for row, answer in zip(rows, answers)}
    if settings.exact_match:
        found["right"] = [
            int(found["answers"][row].strip() == plain(tokens.prompt_and_answer(row)[1].tolist()).strip())
            for row in rows
        ]
    return found


def _sampled(run: Run, tokens: TokenStore) -> list[int]:
    """Rows whose answers are shown, spread over all."""
    if not run.recipe.method.has_answers:
        return []
    count = min(run.recipe.evaluate.samples, len(tokens))
    return np.linspace(0, len(tokens) - 1, count).astype(int).tolist()
