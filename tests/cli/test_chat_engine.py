"""The terminal chat with real models: its answers are those of transformers' generate, and it leaves no thread."""

import io
import os
import signal
import sys
import threading
from io import StringIO

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import sums, write_rows
from tunesmith import Recipe, train
from tunesmith.cli.chat_session import Models, Session, talk
from tunesmith.cli.main import main
from tunesmith.inference import scheduler
from tunesmith.run import Run
from tunesmith.serve.options import Options

NEW = 12
QUESTION = "What is 1 plus 2?"


def engines() -> int:
    """How many threads compute."""
    return sum(thread.name == "engine" for thread in threading.enumerate())


@pytest.fixture(scope="module")
def made(family, tmp_path_factory):
    """Trains a run of a kind once."""
    folder, runs = tmp_path_factory.mktemp("chat"), {}
    rows = write_rows(folder / "rows.jsonl", sums(48))

    def run(kind: str) -> Run:
        if kind not in runs:
            recipe = {
                "model": {"path": str(family("llama3")), "dtype": "float32"},
                "data": {"train": str(rows), "eval_share": 0.0, "sequence_length": 256},
                "train": {"batch": 8, "max_steps": 6, "learning_rate": 3e-2 if kind == "lora" else 1e-2},
                "evaluate": {"samples": 0, "max_new_tokens": 8},
                "adapter": {"kind": kind, **({"rank": 4, "alpha": 8} if kind == "lora" else {})},
                "output": str(folder / "runs"),
                "name": "base" if kind == "lora" else kind,  # the name that the server gives to bases
            }
            runs[kind] = train(Recipe.build(recipe))
        return runs[kind]

    return run


@pytest.fixture
def open_models(made):
    opened = []

    def build(kind: str) -> Models:
        opened.append(Models(made(kind)))
        return opened[-1]

    yield build
    for models in opened:
        models.close()


class Chat:
    """A session and its screen. Ctrl-C comes at the `interrupt_at`-th write to the screen."""

    def __init__(self, models: Models, max_new_tokens: int = NEW, temperature: float = 0.0, seed: int = 0):
        self.screen = Screen()
        console = Console(file=self.screen, width=1000)
        options = Options(temperature=temperature, seed=seed)
        self.session = Session(console, models, False, options, max_new_tokens)

    def take(self, message: str) -> str:
        """What the screen shows of a message's answer, without notes in lines of their own."""
        self.screen.truncate(self.screen.seek(0))
        assert self.session.take(message)
        return self.screen.getvalue()


class Screen(StringIO):
    interrupt_at = 0

    def write(self, text: str) -> int:
        self.interrupt_at -= 1
        if self.interrupt_at == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def greedy(model, tokenizer, messages: list[dict]) -> str:
    """Transformers' own answer, without a character that the last token leaves incomplete."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=0)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_answers_of_both_models_are_those_of_generate(family, open_models, kind):
    before, models = engines(), open_models(kind)
    chat, result = Chat(models), models.run.result
    opener = AutoModelForCausalLM if kind == "full" else AutoPeftModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(result)
    references = {
        "tuned": opener.from_pretrained(result).eval(),
        "base": AutoModelForCausalLM.from_pretrained(family("llama3")).eval(),
    }
    answers = {}
    for name, reference in references.items():
        chat.take(f"/{name}")
        assert engines() - before == 1  # the base of a full fine-tune is loaded by the first question
        messages = []
        for question in (QUESTION, "And what is 40 plus 2?"):
            messages.append({"role": "user", "content": question})
            answer = greedy(reference, tokenizer, messages)
            assert chat.take(question).split("cut off after")[0].strip() == answer.strip()
            messages.append({"role": "assistant", "content": answer})
        answers[name] = messages
    assert answers["tuned"] != answers["base"]
    assert engines() - before == (2 if kind == "full" else 1)
    models.close()
    assert engines() == before


def test_the_same_seed_gives_the_same_answers(open_models):
    models = open_models("lora")

    def answers(seed: int) -> list[str]:
        chat = Chat(models, temperature=1.0, seed=seed)
        return [chat.take(message) for message in (QUESTION, QUESTION, "/new", QUESTION)]

    first = answers(5)
    assert answers(5) == first and answers(6) != first
    assert first[0] != first[3]  # the same prompt, with draws of its own


def test_ctrl_c_keeps_the_part_and_the_session_continues(open_models):
    models = open_models("lora")
    chat = Chat(models, max_new_tokens=400)
    whole = chat.take(QUESTION).split("cut off after")[0].strip()
    chat.take("/new")
    chat.screen.interrupt_at = 4
    part, note = chat.take(QUESTION).rsplit("stopped", 1)
    assert note == "\n" and part.strip() and whole.startswith(part.strip()) and len(part.strip()) < len(whole)
    assert models.engine("tuned").metrics()["running"] == 0
    assert chat.take("Continue") and "stopped" not in chat.screen.getvalue()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failing_answer_gets_one_line_and_the_session_continues(open_models, monkeypatch):
    models = open_models("lora")
    chat = Chat(models)
    good = chat.take(QUESTION)
    chat.take("/new")
    with monkeypatch.context() as patch:

        def fail(*_):
            raise RuntimeError("no kernel image\nis available")

        patch.setattr(models.engine("tuned").models["tuned"].weights, "logits", fail)
        shown = chat.take(QUESTION)
    assert [line for line in shown.splitlines() if line] == [
        "generation failed: no kernel image",
        "There is no answer, so the conversation continues without this question.",
    ]
    assert chat.take(QUESTION) == good


def test_a_base_that_cannot_be_loaded_gets_one_line(open_models, monkeypatch):
    chat = Chat(open_models("full"))
    chat.take("/base")
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "MEMORY_SHARE", 0.0)
        shown = chat.take(QUESTION)
    assert shown.count("\n") == 1 and "the base model cannot be opened: base: there is no memory left" in shown
    assert "cannot be opened" not in chat.take(QUESTION)


def typed(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_no_thread_is_left_after_a_session(made, monkeypatch, capsys):
    before = engines()
    typed(monkeypatch, f"{QUESTION}\n/base\n{QUESTION}\n")
    talk(made("full"), False, None, 4, 0.0, 0)
    assert "tuned > " in capsys.readouterr().out and engines() == before

    def broken(*_):
        raise OSError("the terminal is gone")

    monkeypatch.setattr(Session, "take", broken)
    typed(monkeypatch, f"{QUESTION}\n")
    with pytest.raises(OSError, match="the terminal is gone"):
        talk(made("full"), False, None, 4, 0.0, 0)
    assert engines() == before


def test_a_model_that_the_engine_refuses_gets_one_line(made, monkeypatch, capsys):
    before = engines()
    monkeypatch.setattr(scheduler, "MEMORY_SHARE", 0.0)
    typed(monkeypatch, f"{QUESTION}\n")
    with pytest.raises(SystemExit, check=lambda end: end.code == 2):
        main(["chat", str(made("lora").folder)])
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "there is no memory left" in shown.err
    assert engines() == before
