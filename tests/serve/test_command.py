"""`tunesmith serve` as a process: it starts, answers, drains and ends, and says what it will not do."""

import re
import signal
import subprocess
import sys
import threading

import httpx
import pytest


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "tunesmith.cli", "serve", *map(str, arguments)],
                            stderr=subprocess.PIPE, text=True)


def test_it_serves_and_ctrl_c_lets_it_finish_what_it_began(runs):
    process = start(runs[0], "--port", "0")
    said = ""
    while (found := re.search(r"serving (http://\S+);", said)) is None:
        line = process.stderr.readline()
        assert line, said
        said += line
    assert "engine  transformers in this process, cpu, float32 (first, base); keys" in said
    assert "model   first: tuned of base, context 512" in said and "model   base: base" in said
    answers = []

    def ask():
        answers.append(httpx.post(f"{found[1]}/v1/completions", timeout=60, json={
            "model": "base", "prompt": "The sum of", "max_tokens": 400}))

    asking = threading.Thread(target=ask)
    asking.start()
    while "tunesmith_running 1" not in httpx.get(f"{found[1]}/metrics").text and not answers:
        pass
    process.send_signal(signal.SIGINT)
    asking.join()
    assert answers[0].status_code == 200 and answers[0].json()["choices"][0]["finish_reason"] in ("length", "stop")
    assert process.wait(30) == 0, process.stderr.read()
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(("arguments", "said"), [
    ((), "name a run or a model"),
    (("RUN", "--host", "0.0.0.0"), "--api-key"),
    (("RUN", "--host", "256.0.0.1"), "--host 256.0.0.1"),
    (("model.gguf",), "model.gguf: no such file"),
    (("nowhere",), "no folder nowhere"),
])
def test_wrong_input_gets_one_line(runs, arguments, said):
    process = start(*(runs[0] if a == "RUN" else a for a in arguments))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and said in errors and len(errors.splitlines()) == 1
