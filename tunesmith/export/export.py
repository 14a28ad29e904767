"""`tunesmith export`: write a form, open it in its engine, and call it done when it is the trained model."""

import os
import shutil
import time
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from tunesmith.errors import NotTheSame, UserError
from tunesmith.export.card import card
from tunesmith.export.forms import FORMS, all_settings, name_of
from tunesmith.export.parity.gate import Observation, compare, distance, measures, observe
from tunesmith.export.parity.probes import probes_of
from tunesmith.export.parity.subject import Trained
from tunesmith.export.push import check_push, push_folder
from tunesmith.export.uses import folder_of
from tunesmith.files import replaced, write_atomic, write_json
from tunesmith.finetune.prepared import Prepared
from tunesmith.finetune.result import require_result, trained_model
from tunesmith.leases import using
from tunesmith.model.load import quieten
from tunesmith.recipe import first_problem
from tunesmith.run import Run

SAID_EVERY = 10.0  # seconds


def export(
    run: Run,
    to: str,
    output: Path | None = None,
    settings: dict | None = None,
    parity: bool = True,
    push: str | None = None,
    say=lambda line: None,
) -> dict:
    """Writes the run's result as `to`; parity.json's content with `folder`. `say` shows a line of progress.
    `push`: a repository of the hub to upload it to, once it is the trained model.

    Raises UserError; NotTheSame if what was written is not the trained model: it then stays under a name that ends in
    `.failed`, with parity.json.
    """
    require_result(run)
    quieten()  # before a form imports what chatters
    form = form_of(to)
    chosen = _settings(form, to, settings or {})
    target = output or folder_of(run, to)
    if target.exists():
        raise UserError(f"{target}: exists already; name another --output")
    if push:
        check_push(push)
    with replaced(target) as draft:
        _make(draft, target)
        say(f"export  writing {to}")
        notes = form.write(run, draft, chosen) or []
        write_atomic(draft / "README.md", card(run, to))
        found = _checked(run, form, chosen, draft, say) if parity else {"passed": None, "problem": "not compared"}
        found |= {"form": to, "settings": chosen.model_dump(), "notes": notes}
        write_json(draft / "parity.json", found)
        kept = target
        if found["passed"] is False:
            kept = target.with_name(f"{target.name}.failed")
            shutil.rmtree(kept, ignore_errors=True)  # of an earlier export
            os.rename(draft, kept)
    for line in notes:
        say(f"note    {line}")
    if found["passed"] is False:
        advice = form.instead(chosen) if found.get("from_rounding") and hasattr(form, "instead") else None
        raise NotTheSame(f"{kept}: not the trained model: {found['problem']}" + (f"; try {advice}" if advice else ""))
    if hasattr(form, "finish"):
        say(f"export  {form.finish(target, run.name)}")
    if push:
        say(f"export  {push_folder(target, push)}")
    return {"folder": str(target), **found}


def form_of(to: str) -> ModuleType:
    """The form of that name, in which - and _ are one. Raises UserError."""
    return FORMS[name_of(to)]


def _settings(form, to: str, given: dict):
    if unknown := sorted(given.keys() - form.Settings.model_fields):
        takers = [name.replace("_", "-") for name, other in all_settings().items() if unknown[0] in other.model_fields]
        where = f"forms that do: {', '.join(takers)}" if takers else "no form does"
        raise UserError(f"--{unknown[0].replace('_', '-')}: --to {to} does not take it; {where}")
    try:
        return form.Settings.model_validate(given)
    except ValidationError as error:
        raise UserError(f"--to {to}: {first_problem(error)}") from None


def _checked(run: Run, form, settings, folder: Path, say) -> dict:
    """The content of parity.json. `elsewhere` has the same for other engines, and for a run over a quantised base
    `over_quantized` compares the export with the quantised model that was trained."""
    probes, tokenizer = probes_of(run), Prepared.open(run).tokenizer
    stop_ids = set(run.plan.stop_ids)

    def asked(engine, who: str) -> Observation:
        say(f"parity  asking the {who}")
        try:
            with using(engine.device_bytes, "export", run.folder):
                return observe(engine, probes, lambda ids: tokenizer.decode(ids, skip_special_tokens=True), _heard(say))
        finally:
            engine.close()

    def compared(opener) -> tuple[Observation, dict]:
        engine = opener()
        exported = asked(engine, f"exported model in {engine.name}")
        return exported, {"engine": engine.name} | compare(trained, exported, probes, form.precision(run, settings))

    as_trained = getattr(settings, "into", "full") == "dequantised"
    trained = asked(Trained(trained_model(run, None if as_trained else "none"), tokenizer, stop_ids), "trained model")
    exported, found = compared(lambda: form.opened(run, folder, settings))
    found["elsewhere"] = {}
    others = form.elsewhere(run, folder, settings, say) if found["passed"] and hasattr(form, "elsewhere") else {}
    for name, opener in others.items():
        try:
            _, there = compared(opener)
        except UserError as error:  # of the engine, not of what was exported
            there = {"passed": None, "problem": str(error)}
        found["elsewhere"][name] = there
        if found["passed"] and there["passed"] is False:
            found |= {"passed": False, "problem": f"in {name}, {there['problem']}"}
    if as_trained or run.recipe.model.quantize == "none":
        return found
    kind = run.recipe.model.quantize
    seen = asked(Trained(trained_model(run), tokenizer, stop_ids), f"trained {kind} model")
    return found | {
        "over_quantized": {
            "base": kind,
            "logits": distance(seen.log_probs, exported.log_probs),
            "measure": measures(seen, exported),
        }
    }


def _heard(say):
    """Says now and then how far it is, and how many seconds are left."""
    began = said = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said > SAID_EVERY:
            said = now
            say(f"parity  {done} of {of}, about {(now - began) / done * (of - done):.0f} s left")

    return progress


def _make(draft: Path, target: Path) -> None:
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{target}: cannot be made: {error.strerror}") from None
