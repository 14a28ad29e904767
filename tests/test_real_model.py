"""The main job on a real pretrained model: SmolLM2-135M-Instruct, which `make test-all` downloads as a GGUF.

Every step is the command that a user types.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.cli.test_serve import serving, start
from tunesmith.recipe import Recipe
from tunesmith.run import Run

ROOT = Path(__file__).parent.parent
MODEL = Path(os.environ.get("TUNESMITH_TEST_MODEL", ROOT / "examples" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_file(), reason="needs a real model: make example-model"),
]
KINDS = ["lora", "full"]
QUESTION = "My new kettle is broken. Order K-1234. It cannot wait."
GUESSING = 10.8  # nats, of a model that finds all 49,152 tokens equally likely


def tunesmith(*arguments, given: str = "", status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Recipe files after that of the example: a few of its rows, a few steps."""
    folder = tmp_path_factory.mktemp("real")
    for name, count in (("data", 24), ("held_out", 4)):
        lines = (ROOT / "examples" / "tickets" / f"{name}.jsonl").read_text("utf-8").splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:count]), "utf-8")

    def write(kind: str, name: str) -> Path:
        train = {"batch": 4, "max_steps": 4, "eval_every": 2, "save_every": 1}
        recipe = Recipe.load(
            ROOT / "examples" / "tickets" / "recipe.yaml",
            {
                "model": {"path": str(MODEL)},
                "data": {"train": str(folder / "data.jsonl"), "eval": str(folder / "held_out.jsonl")},
                "adapter": {"kind": kind},
                "train": train | {"learning_rate": 1e-3 if kind == "lora" else 1e-4},
                "evaluate": {"exact_match": False, "samples": 1, "max_new_tokens": 8},
                "output": str(folder / "runs"),
                "name": name,
            },
        )
        (folder / f"{name}.yaml").write_text(recipe.dump(), "utf-8")
        return folder / f"{name}.yaml"

    return write


@pytest.fixture(scope="module")
def trained(recipes):
    """The finished run of a kind of adapter."""
    made: dict[str, Run] = {}

    def run(kind: str) -> Run:
        if kind not in made:
            file = recipes(kind, kind)
            tunesmith("train", file)
            made[kind] = Run(file.parent / "runs" / kind)
        return made[kind]

    return run


def losses(run: Run) -> list[float]:
    return [event["loss"] for event in run.events("step")]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_from_where_the_base_is(trained, kind):
    run = trained(kind)
    held_out = [event["loss"] for event in run.events("eval")]
    assert held_out[0] < GUESSING / 4 and held_out[-1] < held_out[0]
    assert any("GGUF in Q4_1" in event["message"] for event in run.events("warning"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(trained, recipes, kind):
    file = recipes(kind, f"{kind}-stopped")
    run = Run(file.parent / "runs" / f"{kind}-stopped")
    process = subprocess.Popen([sys.executable, "-m", "tunesmith", "train", str(file)], stdout=subprocess.DEVNULL)
    while not list(run.checkpoints.glob("step-*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and not run.result.exists()
    tunesmith("resume", run.folder)
    assert losses(run) == losses(trained(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluated_on_other_rows(trained, recipes, kind):
    run = trained(kind)
    found = json.loads(tunesmith("eval", run.folder, "--data", run.recipe.data.eval[0].path, "--json"))
    measured = json.loads(run.eval_file.read_text("utf-8"))  # of the weights as they were saved
    assert found["after"]["loss"]["mean"] == pytest.approx(measured["after"]["loss"]["mean"], abs=1e-3)
    # Rounding to the base's bfloat16 must not take back what few small steps have taught.
    assert found["after"]["loss"]["mean"] == pytest.approx(run.events("eval")[-1]["loss"], abs=0.05)


@pytest.mark.parametrize(("kind", "form"), [("lora", "merged"), ("lora", "gguf"), ("full", "gguf")])
def test_exports_pass_the_gate(trained, kind, form):
    run = trained(kind)
    precision = ["--precision", "q8_0"] if form == "gguf" else []
    tunesmith("export", run.folder, "--to", form, *precision)
    assert json.loads((run.folder / form / "parity.json").read_text("utf-8"))["passed"]


def test_served_over_http(trained):
    process = start(trained("lora").folder, "--port", "0")
    try:
        address = serving(process)[0][1]
        asked = {"model": "lora", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
        answer = httpx.post(f"{address}/v1/chat/completions", json=asked | {"temperature": 0}, timeout=300).json()
        assert answer["choices"][0]["message"]["content"].strip() and answer["usage"]["completion_tokens"] <= 12
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_chat(trained):
    said = tunesmith("chat", trained("lora").folder, "--max-new-tokens", "12", given=f"{QUESTION}\n")
    assert said.strip()
