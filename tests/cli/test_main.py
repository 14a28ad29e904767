"""The command line: init, train, show and export, with valid and invalid input."""

import functools
import json
import os
import re
import subprocess
import sys

import pytest
import rich
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import slow_but, sums, write_rows
from tunesmith import train
from tunesmith.cli.main import app, main
from tunesmith.cli.runs import compare
from tunesmith.data.source import resolve
from tunesmith.finetune.evaluation import evaluate
from tunesmith.recipe import Recipe, Source
from tunesmith.run import Run

SPACED = ["question=Frage", "answer=Antwort"]


def tunesmith(*arguments, cwd, said: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tunesmith", *map(str, arguments)],
        cwd=cwd,
        input=said,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def here(monkeypatch):
    """Runs the command line in this process, which has already imported torch."""

    def call(*arguments, cwd) -> None:
        monkeypatch.chdir(cwd)
        with pytest.raises(SystemExit, check=lambda end: end.code == 0):
            main([*map(str, arguments)])

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """A folder in which `init` and `train` have run."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("work")
    tiny.save("qwen3", folder / "model")
    write_rows(folder / "rows.jsonl", sums(60))
    made = tunesmith("init", "--model", "model", "--data", "rows.jsonl", cwd=folder)
    assert made.returncode == 0, made.stderr
    done = tunesmith(
        "train",
        "recipe.yaml",
        "--name",
        "first",
        "--adapter.kind",
        "lora",
        "--train.max-steps",
        "3",
        "--model.dtype",
        "float32",
        "--evaluate.max-new-tokens",
        "4",
        "--json",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "plan    on      CPU" in done.stderr
    assert not {"kernels", "GiB"} & set(re.findall(r"\w+", done.stderr))
    return folder, json.loads(done.stdout)


def test_the_run_folder_is_complete(trained):
    folder, summary = trained
    run = folder / "runs" / "first"
    for name in (
        "recipe.yaml",
        "plan.json",
        "provenance.json",
        "ledger.jsonl",
        "events.jsonl",
        "eval.json",
        "report.html",
        "adapter/adapter_model.safetensors",
        "adapter/tokenizer.json",
        "adapter/chat_template.jinja",
        "adapter/generation_config.json",
    ):
        assert (run / name).is_file(), name
    assert summary["status"] == "done"


def test_the_result_opens_in_plain_libraries_and_merged_is_the_same_model(trained, here):
    folder, _ = trained
    run = folder / "runs" / "first"
    here("export", "runs/first", "--to", "merged", cwd=folder)
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 1 plus 2?"}],
        return_tensors="pt",
        add_generation_prompt=True,
        return_dict=False,
    )
    adapter = AutoPeftModelForCausalLM.from_pretrained(run / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(run / "merged")
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    with torch.inference_mode():
        expected, found, before = (m.eval()(ids).logits for m in (adapter, merged, base))
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-4)


def test_flags_alone_are_a_recipe(trained, tmp_path, here):
    folder, _ = trained
    here(
        "train",
        "--model",
        folder / "model",
        "--data",
        folder / "rows.jsonl",
        "--train.max-steps",
        "1",
        "--evaluate.max-new-tokens",
        "1",
        "--name",
        "bare",
        cwd=tmp_path,
    )
    assert (tmp_path / "runs/bare/adapter/adapter_model.safetensors").is_file()


def test_chat_answers_from_both_models(trained):
    folder, _ = trained
    done = tunesmith(
        "chat",
        "runs/first",
        "--max-new-tokens",
        "4",
        cwd=folder,
        said="What is 1 plus 2?\n/base\nWhat is 1 plus 2?\n/nonsense\n/quit\n",
    )
    assert done.returncode == 0, done.stderr
    assert "tuned >" in done.stdout and "base >" in done.stdout and "/quit ends" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "check", "rows.jsonl", "--model", "model"),
        ("data", "show", "rows.jsonl", "--model", "model"),
        ("runs",),
        ("runs", "show", "runs/first"),
        ("eval", "runs/first"),
        ("recipe", "schema"),
        ("--help",),
        ("train", "--help"),
    ],
)
def test_commands_that_only_show_succeed(trained, arguments):
    done = tunesmith(*arguments, cwd=trained[0])
    assert done.returncode == 0 and done.stdout.strip() and not done.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("trian",), "train"),
        (("train",), "no recipe. `tunesmith init"),
        (("train", "rows.jsonl"), "data, not a recipe; `tunesmith init --model MODEL --data rows.jsonl`"),
        (("train", "--data.packing", "false"), "--data.packing=false"),
        (("train", "model"), "a folder, not a recipe"),
        (("train", "runs/first"), "a run, not a recipe; `tunesmith resume runs/first`"),
        (("train", "recipe.yaml", "--adapter.kind", "qlora"), "model.quantize: nf4"),
        (("train", "--model", "weights.gguf", "--data", "rows.jsonl"), "no file weights.gguf"),
        (("merge", "first"), 'Did you mean "export"?'),
        (("init",), "MODEL is missing: tunesmith init MODEL DATA"),
        (("chat",), "RUN is missing: tunesmith chat RUN"),
        (("connect",), "CLIENT is openclaw, opencode, codex"),
        (("export", "first", "second", "--to", "gguf"), "second is one argument too many"),
        (("runs", "show", "frist"), "frist: no such run; did you mean first?"),
        (("serve", "runs/typo"), "no folder runs/typo, and no such run: runs has first"),
        (("data", "check", "rows.jsonl", "--columns", "question"), "write name=column"),
        (("data", "show", "rows.jsonl"), "pass --model"),
        (("train", "--train.learning-rat", "1"), "--train.learning-rate"),
        (("train", "recipe.yaml", "--train.max-steps", "many"), "train.max_steps"),
        (("train", "absent.yaml"), "absent.yaml: no such recipe"),
        (("train", "recipe.yaml", "--data.train", "absent.jsonl"), "absent.jsonl: no such file"),
        (("train", "recipe.yaml", "--model.path", "nowhere"), "model.path"),
        (("train", "recipe.yaml", "--name", "first"), "exists already"),
        (("train", "recipe.yaml", "--train.processes", "999"), "train.processes"),
        (("resume", "runs/first"), "finished"),
        (("resume", "."), "not a run folder"),
        (("init", "--model", "model", "--data", "rows.jsonl"), "--force"),
        (("runs", "compare", "runs/first"), "two runs"),
        (("export", "runs/first", "--to", "merged", "--output", "model"), "exists already"),
        (
            ("export", "first", "--to", "fp8", "--into", "full"),
            "--into: --to fp8 does not take it; forms that do: gguf, merged, ollama",
        ),
        (("export", "first", "--to", "gguf", "--precision", "q9"), "`precision` must be f32, f16"),
        (("export", "first", "--to", "gguf", "--precison", "f32"), "Did you mean --precision?"),
        (
            ("init", "--model", "model", "--data", "rows.jsonl", "--output", "none/recipe.yaml"),
            "there is no folder none",
        ),
        (("train", "recipe.yaml", "--model.path", "models/my model"), "model.path: cannot get models/my model"),
        (("data", "check", "rows.jsonl", "--split", "test"), "leave them out for a single file"),
        (("data", "show", "rows.jsonl", "--model", "model", "--mask", "bogus"), "mask"),
    ],
)
def test_a_mistake_gets_one_line_and_changes_nothing(trained, arguments, said):
    folder, _ = trained
    before = sorted(folder.rglob("*"))
    done = tunesmith(*arguments, cwd=folder)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("tunesmith: ") and said in lines[0]
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "resume",
        "eval",
        "export",
        "chat",
        "serve",
        "connect",
        "runs",
        "demo",
        "doctor",
        "init",
        "data check",
        "data show",
    ],
)
def test_help_says_what_every_flag_is(command):
    parts = command.split()
    shown = subprocess.run(
        [sys.executable, "-m", "tunesmith", *parts, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "400"},
    ).stdout
    function = functools.reduce(lambda app, part: app[part], parts, app).default_command
    said = re.findall(r"^        (\w+): (\S.{10})", function.__doc__, re.MULTILINE)
    assert said and [name for name, text in said if text not in shown] == []


def test_help_of_train_has_sections_and_defaults():
    shown = subprocess.run(
        [sys.executable, "-m", "tunesmith", "train", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout
    sections = re.findall(r"─ (\w+): ", shown)
    assert sections == ["model", "data", "method", "adapter", "train", "evaluate", "power"]
    flags = {entry.split()[0]: entry for entry in shown.split("│ --")[1:]}
    assert "[default: 32]" in flags["train.batch"] and "[default: 0]" in flags["seed"]
    assert "default" not in flags["model.path"]
    assert "--model.path --model " in shown and "empty-" not in shown


@pytest.mark.parametrize("columns", slow_but([SPACED], [SPACED, ["question=Frage,answer=Antwort"]]))
def test_the_users_own_columns_are_checked_and_written(trained, tmp_path, columns):
    rows = "".join(f"Was ist {i}?,Das ist {i}.\n" for i in range(40))
    (tmp_path / "rows.csv").write_text(f"Frage,Antwort\n{rows}")
    model = trained[0] / "model"
    checked = tunesmith("data", "check", "rows.csv", "--columns", *columns, "--json", cwd=tmp_path)
    assert json.loads(checked.stdout)["kept"] == 40
    made = tunesmith("init", model, "rows.csv", "--columns", *columns, "--output", "my own.yaml", cwd=tmp_path)
    assert made.returncode == 0 and "tunesmith train 'my own.yaml'" in made.stdout
    assert "tunesmith train 'my own.yaml'" in (tmp_path / "my own.yaml").read_text()
    [source] = Recipe.load(tmp_path / "my own.yaml").data.train
    assert source.columns == {"question": "Frage", "answer": "Antwort"}
    by_recipe = tunesmith("data", "check", "my own.yaml", "--json", cwd=tmp_path)
    assert json.loads(by_recipe.stdout)["kept"] == 40 and json.loads(by_recipe.stdout)["tokens"] > 0


def test_a_run_is_found_by_its_name(trained):
    by_name, by_folder = (tunesmith("runs", "show", run, "--json", cwd=trained[0]) for run in ("first", "runs/first"))
    assert by_name.returncode == 0 and by_name.stdout == by_folder.stdout


@pytest.fixture(scope="module")
def measured(trained):
    """Two runs with the same held-out rows, one with others, and one with another tokenizer."""
    from tests import tiny

    folder, _ = trained
    tiny.save("gemma3", folder / "other-model")
    write_rows(folder / "held-out.jsonl", sums(9, 500))
    write_rows(folder / "others.jsonl", sums(9, 700))
    for name, model, kind, held_out in (
        ("full", "model", "full", "held-out"),
        ("lora", "model", "lora", "held-out"),
        ("elsewhere", "model", "lora", "others"),
        ("gemma", "other-model", "lora", "held-out"),
    ):
        train(
            Recipe.build(
                {
                    "model": {"path": str(folder / model), "dtype": "float32"},
                    "data": {"train": str(folder / "rows.jsonl"), "eval": str(folder / f"{held_out}.jsonl")},
                    "adapter": {"kind": kind},
                    "train": {"max_steps": 2, "learning_rate": 1e-2},
                    "evaluate": {"max_new_tokens": 2},
                    "name": name,
                    "output": str(folder / "runs"),
                }
            )
        )
    return folder


@pytest.mark.parametrize("name", ["full", "lora", "gemma"])
def test_eval_measures_a_finished_run_on_other_rows(measured, name):
    """On the run's own held-out rows it finds what training found."""
    run = Run(measured / "runs" / name)
    found = evaluate(run, resolve(Source(path=str(measured / "held-out.jsonl"))))
    own = json.loads(run.eval_file.read_text())
    for side in ("before", "after"):
        assert found[side]["loss"]["mean"] == pytest.approx(own[side]["loss"]["mean"], rel=1e-4)
    assert found["rows"] == 9 and found["held_out"] == own["held_out"]
    assert [sample["after"] for sample in found["samples"]] == [sample["after"] for sample in own["samples"]]


def test_eval_on_other_rows_leaves_the_run_unchanged(measured, here, capsys):
    before = sorted((f, f.stat().st_mtime_ns) for f in (measured / "runs/lora").rglob("*"))
    here("eval", "lora", "--data", "others.jsonl", cwd=measured)
    shown = capsys.readouterr().out
    assert "Held-out loss" in shown and "others.jsonl: 9 rows read, 9 measured" in shown
    assert sorted((f, f.stat().st_mtime_ns) for f in (measured / "runs/lora").rglob("*")) == before


@pytest.mark.parametrize(
    ("runs", "said", "unsaid"),
    [
        (("full", "lora"), [], ["not comparable"]),
        (("lora", "elsewhere"), ["different held-out rows"], ["different tokenizers"]),
        (("lora", "gemma"), ["different tokenizers"], ["different held-out rows"]),
    ],
)
def test_compare_says_what_cannot_be_compared_and_draws_curves(measured, capsys, runs, said, unsaid):
    rich.print(compare([Run(measured / "runs" / name) for name in runs], 80))
    shown = " ".join(capsys.readouterr().out.split())
    assert [text for text in said if text not in shown] == [] and [text for text in unsaid if text in shown] == []
    assert "held-out loss" in shown and "●" in shown and "▲" in shown and "step" in shown
