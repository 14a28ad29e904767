"""`tunesmith serve` as a process: it starts, answers, drains, ends, and refuses invalid input."""

import re
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from tests import tiny
from tests.conftest import slow_but
from tunesmith.cli.serve import open_and_serve
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.serve.binding import listen


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tunesmith", "serve", *map(str, arguments)], stderr=subprocess.PIPE, text=True
    )


def serving(process) -> tuple[re.Match, str]:
    """Waits until it serves: its address, as the first group, and all that it said."""
    said = ""
    while (found := re.search(r"serving (http://\S+);", said)) is None:
        line = process.stderr.readline()
        assert line, said
        said += line
    return found, said


def test_it_serves_and_ctrl_c_lets_it_finish_what_it_began(runs):
    process = start(runs[0], "--port", "0")
    found, said = serving(process)
    assert "engine  transformers in this process, cpu, float32 (first, base); keys" in said
    assert "model   first: tuned of base, context 512" in said and "model   base: base" in said
    answers = []

    def ask():
        answers.append(
            httpx.post(
                f"{found[1]}/v1/completions",
                timeout=60,
                json={"model": "base", "prompt": "The sum of", "max_tokens": 400},
            )
        )

    asking = threading.Thread(target=ask)
    asking.start()
    while "tunesmith_running 1" not in httpx.get(f"{found[1]}/metrics").text and not answers:
        pass
    process.send_signal(signal.SIGINT)
    asking.join()
    assert answers[0].status_code == 200 and answers[0].json()["choices"][0]["finish_reason"] in ("length", "stop")
    assert process.wait(30) == 0
    assert process.stderr.read() == "stopping when 1 answer is finished; Ctrl-C again stops at once\n"


@pytest.mark.parametrize("name", slow_but(("llama3",), ("llama3", "gemma3")))
def test_a_second_ctrl_c_ends_it_without_a_word(tmp_path, name):
    folder = tiny.save(name, tmp_path / name, max_position_embeddings=10**6)
    tokenizer = Tokenizer.load(folder)
    process = start(folder, "--port", "0")
    found, _ = serving(process)
    ends = {str(token): -100 for token in {tokenizer.eos_id, *tokenizer.special_ids}}
    broken = []

    def ask(stream: bool):
        try:
            response = httpx.post(
                f"{found[1]}/v1/completions",
                timeout=60,
                json={"prompt": "The sum of", "max_tokens": 900_000, "logit_bias": ends, "stream": stream},
            )
            broken.append(response.status_code >= 500)
        except httpx.TransportError:
            broken.append(True)

    asking = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
    for thread in asking:
        thread.start()
    while "tunesmith_running 2" not in httpx.get(f"{found[1]}/metrics").text:
        pass
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopping when 2 answers are finished; Ctrl-C again stops at once\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0 and process.stderr.read() == ""
    for thread in asking:
        thread.join()
    assert broken == [True, True]


def test_a_port_in_use_is_reported_before_a_model_is_opened(runs):
    """Also a port of a server that is still starting, because it listens from the start."""
    with listen("127.0.0.1", 0, None) as other:
        port = other.getsockname()[1]
        process = start(runs[0], "--port", port)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors == (f"tunesmith: --host 127.0.0.1 --port {port}: in use, perhaps by another server; choose another\n")


def test_what_fails_after_the_engine_was_started_ends_it(runs, monkeypatch):
    import tunesmith.serve.app

    def fail(*_):
        assert "engine" in {thread.name for thread in threading.enumerate()}
        raise UserError("no")

    before = set(threading.enumerate())
    monkeypatch.setattr(tunesmith.serve.app, "serve", fail)
    with pytest.raises(UserError, match="no"):
        open_and_serve([runs[0]], "127.0.0.1", 0, None, (), (), None, 4, 4, "here")
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name a run or a model"),
        (("RUN", "--host", "0.0.0.0"), "--api-key"),
        (("RUN", "--host", "256.0.0.1"), "--host 256.0.0.1"),
        (("model.gguf",), "model.gguf: no such file"),
        (("nowhere",), "no folder nowhere"),
        (("RUN", "--port", "70000"), "--port"),
        (("RUN", "--batch", "0"), "--batch"),
        (("RUN", "--context", "1"), "--context"),
        (("RUN", "--allow-host", "http://box"), "--allow-host http://box"),
    ],
)
def test_wrong_input_gets_one_line(runs, arguments, said):
    process = start(*(runs[0] if a == "RUN" else a for a in arguments))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and said in errors and len(errors.splitlines()) == 1
