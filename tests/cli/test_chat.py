"""The terminal chat: what it shows of an answer, what it asks the model with, and its keys in a real terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests import tiny
from tests.conftest import sums, write_rows
from tests.serving import Scripted
from tunesmith import Recipe, train
from tunesmith.answer_formats.format import find
from tunesmith.cli.chat_session import Session
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.files import write_json
from tunesmith.inference.interface import Piece, Request
from tunesmith.inference.text_stream import Writer
from tunesmith.serve.options import Options

QUESTION = "What are two and two?"
WRITTEN = {
    "gpt_oss": "<|channel|>analysis<|message|>Two and two.<|end|><|start|>assistant<|channel|>final<|message|>Four."
    "<|return|>",
    "qwen3": "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>",
    "llama3": "Four.<|eot_id|>",
}
FAMILIES = ("qwen3", "llama3", "gemma3")


@pytest.mark.parametrize("name", WRITTEN)
def test_an_answer_is_shown_as_what_it_says(family, name):
    models = Played(family(name))
    tokenizer, format = models.tokenizer, models.format
    models.says = re.sub(r"<[^<]*>$", "", WRITTEN[name])  # an engine delivers no stop token
    chat, screen = session(models)
    chat.take(QUESTION)
    thought = {} if name == "llama3" else {"reasoning_content": "Two and two."}
    assert screen.getvalue().split() == " ".join([*thought.values(), "Four."]).split()
    plain = format.plain(tokenizer, tokenizer.encode(WRITTEN[name])[0])
    assert plain == (
        "Four."
        if name == "llama3"
        else "Two and two.\n\nFour."
        if name == "gpt_oss"
        else WRITTEN[name].removesuffix("<|im_end|>")
    )
    chat.take(QUESTION)
    asked = {"role": "user", "content": QUESTION}
    following = [asked, format.message({"role": "assistant", "content": "Four."} | thought), asked]
    assert models.prompts[-1] == tokenizer.render(following, add_generation_prompt=True)
    assert "Four." in models.prompts[-1]


class Played(Scripted):
    """In the place of Models, and the engine of both: answers what a test sets as `says`. With `interrupt_after`,
    Ctrl-C comes after so many tokens of an answer that never ends by itself."""

    def __init__(self, folder, context: int = 4096, system_prompts: dict | None = None):
        self.tokenizer = Tokenizer.load(folder)
        self.format = find(self.tokenizer)
        super().__init__({"tuned": self.tokenizer, "base": self.tokenizer})
        self.models = {name: replace(served, context=context) for name, served in self.models.items()}
        self.run = SimpleNamespace(plan=SimpleNamespace(system_prompts=system_prompts or {}))
        self.says, self.interrupt_after = "Yes.", None

    def engine(self, model: str) -> "Played":
        return self

    @property
    def prompts(self) -> list[str]:
        return [self.tokenizer.decode(request.ids) for request in self.asked]

    def submit(self, request: Request, deliver):
        if self.interrupt_after is None:
            return super().submit(request, deliver)
        self.asked.append(request)
        writer = Writer(self.tokenizer, shown=request.shown)
        for token in self.tokenizer.encode_rest(self.says)[0][: self.interrupt_after]:
            deliver(Piece(writer.push(token)))
        signal.raise_signal(signal.SIGINT)
        return SimpleNamespace(cancel=lambda: deliver(Piece(finish="cancelled")))


def session(models: Played, system: str | None = None, max_new_tokens: int = 64) -> tuple[Session, StringIO]:
    screen = StringIO()
    made = Session(Console(file=screen, width=1000), models, False, Options(temperature=0, seed=0), max_new_tokens)
    made.begin(system)
    return made, screen


@pytest.mark.parametrize("name", FAMILIES)
def test_each_model_has_a_conversation_of_its_own(family, name):
    models = Played(family(name))
    chat, _ = session(models)
    models.says = "The tuned answer."
    for message in ("First question", "/base", "Second question", "/tuned", "Third question"):
        assert chat.take(message)
    assert [request.model for request in models.asked] == ["tuned", "base", "tuned"]
    tuned, base, both = models.prompts
    assert "First question" in tuned and "Second question" in base
    assert "First question" not in base and "The tuned answer." not in base
    assert "First question" in both and "The tuned answer." in both and "Second question" not in both
    chat.take("/new")
    chat.take("Fourth question")
    assert "First question" not in models.prompts[-1] and not chat.take("/quit")


@pytest.mark.parametrize("name", FAMILIES)  # gemma3 has no place for a system turn but the user's
def test_the_system_prompt_of_the_rows_is_used_and_shown(family, name):
    models = Played(family(name), system_prompts={"Speak like a pirate.": 0.9, "": 0.1})
    chat, screen = session(models)
    assert "90% of the training rows: Speak like a pirate." in screen.getvalue()
    chat.take("Who are you?")
    for message in ("/system Speak like a poet.", "Who are you?", "/system none", "Who are you?", "/system"):
        chat.take(message)
    pirate, poet, neither = models.prompts
    assert "pirate" in pirate and "poet" in poet and "pirate" not in poet and "Yes." not in poet
    assert "pirate" not in neither and "poet" not in neither and screen.getvalue().endswith("no system prompt\n")
    given, screen = session(models, "Speak like a monk.")
    given.take("Who are you?")
    assert "monk" in models.prompts[-1] and "pirate" not in models.prompts[-1] + screen.getvalue()


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        (
            {"Be brief.": 0.4, "Be kind.": 0.35, "": 0.25},
            "different system prompts, so none is used. One of them: Be br",
        ),
        ({"": 0.8, "Be brief.": 0.2}, ""),
        (None, ""),  # a run of an earlier version
    ],
)
def test_no_system_prompt_is_used_that_most_rows_did_not_have(family, shares, said):
    models = Played(family("llama3"), system_prompts=shares)
    chat, screen = session(models)
    assert said in screen.getvalue() and bool(said) == bool(screen.getvalue())
    chat.take("Hello")
    assert "Be brief." not in models.prompts[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_context_has_no_room_for_is_forgotten_and_said(family, name):
    models = Played(family(name), context=400)
    chat, screen = session(models, "Always be kind.")
    models.says = "so it goes " * 4
    questions = [f"Question {letter} about the sea and the ships and the wind" for letter in "ABCDEFGH"]
    for question in questions:
        chat.take(question)
    assert "cut off" not in screen.getvalue()
    for number, prompt in enumerate(models.prompts):
        assert len(models.tokenizer.encode(prompt)[0]) <= 400 - 64 and "Always be kind." in prompt
        seen = [question in prompt for question in questions[: number + 1]]
        assert seen[-1] and seen == sorted(seen)  # the newest, without a gap
    assert questions[0] in models.prompts[1] and questions[0] not in models.prompts[-1]
    lost = sum(question not in models.prompts[-1] for question in questions)
    assert f"The context of 400 tokens is full: the model no longer sees the oldest {lost} " in screen.getvalue()
    chat.take("word " * 300)
    assert len(models.prompts) == 8 and "the model's context is 400, answer included" in screen.getvalue()
    chat.take("Again")
    assert len(models.prompts) == 9 and "word word" not in models.prompts[-1]


def test_a_cut_answer_is_said(family):
    models = Played(family("llama3"), context=100)
    models.says = "one two three four five six seven eight nine ten " * 20
    chat, screen = session(models, max_new_tokens=5)
    chat.take("Count")
    assert "cut off after 5 tokens: --max-new-tokens" in screen.getvalue()
    chat, screen = session(models, max_new_tokens=500)
    chat.take("Count")
    assert re.search(r"cut off after \d+ tokens: the context of 100 tokens is full", screen.getvalue())
    assert "one two three" in screen.getvalue()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_that_is_stopped_stays_as_far_as_it_came(family, name):
    models = Played(family(name))
    models.says, models.interrupt_after = "One two three four five six seven", 4
    chat, screen = session(models)
    assert chat.take("Count") and "stopped" in screen.getvalue()
    models.interrupt_after = 0  # before anything came
    assert chat.take("Sing") and "continues without this question" in screen.getvalue()
    models.interrupt_after = None
    chat.take("Further")
    assert "Count" in models.prompts[-1] and "One" in models.prompts[-1] and "seven" not in models.prompts[-1]
    assert "Sing" not in models.prompts[-1]


def test_what_begins_with_a_slash_is_never_sent_by_mistake(family):
    models = Played(family("llama3"))
    chat, screen = session(models)
    assert chat.take("/etc/passwd") and chat.take("/") and models.prompts == []
    assert "needs a space before it" in screen.getvalue()
    chat.take(" /etc/passwd")
    assert "/etc/passwd" in models.prompts[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose answers never end, in a context that leaves room for that."""
    folder = tmp_path_factory.mktemp("chat")
    base = tiny.save("llama3", folder / "base", max_position_embeddings=10**6)
    rows = [{"messages": [{"role": "system", "content": "Add the numbers."}, *row["messages"]]} for row in sums(24)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        made = train(
            Recipe.build(
                {
                    "model": {"path": str(base), "dtype": "float32"},
                    "data": {
                        "train": str(write_rows(folder / "rows.jsonl", rows + sums(2, 100))),
                        "eval_share": 0.0,
                        "sequence_length": 256,
                    },
                    "train": {"batch": 8, "max_steps": 1},
                    "evaluate": {"samples": 0, "max_new_tokens": 8},
                    "adapter": {"rank": 4, "alpha": 8},
                    "output": str(folder / "runs"),
                    "name": "sums",
                }
            )
        )
    write_json(made.plan_file, made.plan.as_dict() | {"stop_ids": [10**6]})
    return made


def command(run) -> list[str]:
    return [sys.executable, "-m", "tunesmith", "chat", str(run.folder), "--base", "--max-new-tokens", "900000"]


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, command: list[str]):
        self.process, self.text = pty.fork(), ""
        if self.process[0] == 0:
            os.execvpe(command[0], command, os.environ | {"TERM": "xterm-256color", "COLUMNS": "200"})

    def wait_for(self, pattern: str) -> str:
        """What came up to and with the pattern, without control sequences."""
        limit = time.monotonic() + 120
        while (found := re.search(pattern, self.text)) is None:
            assert time.monotonic() < limit, self.text
            if select.select([self.process[1]], [], [], 1)[0]:
                new = os.read(self.process[1], 65536).decode("utf-8", "replace")
                self.text += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]", "", new)
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def type(self, keys: str) -> None:
        os.write(self.process[1], keys.encode())

    def end(self) -> int:
        """The exit status."""
        with open(self.process[1], "rb", buffering=0) as rest:
            try:
                while rest.read(65536):
                    pass
            except OSError:  # what Linux says at the end
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.process[0], 0)[1])


def test_keys_in_a_terminal(run):
    """Editing, history, pasting, and Ctrl-C in an answer, in half a line and on an empty one."""
    terminal = Terminal(command(run))
    assert "92% of the training rows: Add the numbers." in terminal.wait_for("base >")
    terminal.type("/system abc\x1b[D\x1b[DX\r")
    terminal.wait_for(r"system prompt: aXbc\s+base >")
    terminal.type("\x1b[AY\r")
    terminal.wait_for(r"system prompt: aXbcY\s+base >")
    terminal.type("\x1b[200~/system one\ntwo\x1b[201~\r")  # as a terminal with bracketed paste sends it
    terminal.wait_for(r"system prompt: one\s+two\s+base >")
    terminal.type("/system three\nfour\r")  # and one without
    terminal.wait_for(r"system prompt: three\s+four\s+base >")
    terminal.type("Tell me a story\r")
    terminal.wait_for(r"Tell me a story\s+(\S[^\r\n]*){20}")
    terminal.type("\x03")
    terminal.wait_for(r"stopped\s+base >")
    terminal.type("half a line\x03")
    terminal.wait_for(r"half a line[^>]*base >")
    terminal.type("\x03")
    terminal.wait_for(r"Ctrl-D or /quit ends\.\s+base >")
    terminal.type("/system\r")
    terminal.wait_for(r"system prompt: three\s+four\s+base >")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_ctrl_c_stops_the_answer_of_a_piped_question_alone(run):
    process = subprocess.Popen(command(run), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdin.write(b"Tell me \xff a story\n")
    process.stdin.flush()
    said = b""
    while len(said.partition(b"base > ")[2]) < 50:
        said += process.stdout.read1()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(b"/system\n/quit\n", timeout=120)
    assert process.returncode == 0 and b"stopped\nbase > system prompt: Add the numbers." in rest, said + rest
