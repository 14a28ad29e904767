"""Tunesmith's server beside that of transformers and llama.cpp's: python bench/serve.py [--shape 100M] [--out FILE].

Each server answers the same questions on the same Llama of random weights, in float32, greedily, as a model folder or
as a GGUF: every client asks two,
one after the other, over a stream. Tokens a second are all answers' tokens over the time from the first question to
the last answer; the time to the first token is the median over all questions. The page names what each server was
started with.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import torch
from corpus import conversations, save_model
from trials import heading, results_file

from tunesmith.export.gguf.write import write_gguf
from tunesmith.export.merged_weights import Weights

OURS = ["{python}", "-m", "tunesmith", "serve", "--port", "{port}"]
THEIRS = ["{python}", "-m", "transformers.cli.transformers", "serve", "{model}", "--port", "{port}", "--device", "cpu"]
SERVERS = {
    "tunesmith serve": [*OURS, "{model}"],
    "transformers serve": THEIRS,
    "transformers serve --continuous-batching": [*THEIRS, "--continuous-batching"],
    "tunesmith serve, GGUF": [*OURS, "{gguf}"],
    # As many places as there are clients, each as long as the model takes; else more clients than four would wait.
    "llama-server --parallel 64": [
        "{llama_server}",
        "--model",
        "{gguf}",
        "--port",
        "{port}",
        "--parallel",
        "64",
        "--ctx-size",
        "{places}",
        "--threads",
        "{threads}",
    ],
}
CONTEXT = 1024
QUESTIONS_EACH = 2
START_SECONDS, ANSWER_SECONDS = 120, 600


async def ask(client: httpx.AsyncClient, url: str, model: str, question: str, tokens: int) -> tuple[float, int]:
    """(seconds to the first token, tokens of the answer)."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first, counted = time.perf_counter(), None, 0
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RuntimeError(chunk["error"])
            if first is None and any(c["delta"].get("content") for c in chunk["choices"]):
                first = time.perf_counter() - began
            counted = (chunk.get("usage") or {}).get("completion_tokens", counted)
    return first or time.perf_counter() - began, counted


async def load(url: str, model: str, questions: list[str], clients: int, tokens: int) -> dict:
    """What `clients` clients at once get."""
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS, limits=httpx.Limits(max_keepalive_connections=0)) as client:

        async def one(number: int) -> list[tuple[float, int]]:
            own = questions[number * QUESTIONS_EACH : (number + 1) * QUESTIONS_EACH]
            return [await ask(client, url, model, question, tokens) for question in own]

        began = time.perf_counter()
        found = [answer for answers in await asyncio.gather(*map(one, range(clients))) for answer in answers]
        seconds = time.perf_counter() - began
    return {
        "tokens_per_second": sum(count for _, count in found) / seconds,
        "tokens": sum(c for _, c in found),
        "first_seconds": statistics.median(first for first, _ in found),
        "seconds": seconds,
    }


def measured(
    name: str, places: dict[str, str], questions: list[str], clients: list[int], tokens: int
) -> dict[int, dict]:
    """Starts a server, asks once to warm it, and measures; a problem stands in the place of a figure. `places`: what
    its command is filled with."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [part.format(port=port, **places) for part in SERVERS[name]]
    found: dict[int, dict] = {}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url)
            served = Path(places["model"]).name if name.startswith("tunesmith") else places["model"]
            asyncio.run(load(url, served, questions[-QUESTIONS_EACH:], 1, 4))
            for count in clients:
                found[count] = asyncio.run(load(url, served, questions, count, tokens))
                print(name, count, found[count], flush=True)
        except Exception as error:  # of any kind: it is the server's result
            said.seek(0)
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(name, problem, said.read().decode()[-1500:], flush=True)
            found |= {count: {"problem": problem} for count in clients if count not in found}
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
    return found


def _wait(process: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ended with status {process.returncode}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise RuntimeError("did not start")


def document(shape: str, tokens: int, results: dict[str, dict[int, dict]]):
    """The results page, in Markdown lines."""
    yield from heading("cpu")
    threads = os.environ.get("OMP_NUM_THREADS", "as torch chooses")
    yield (
        f"\n`python bench/serve.py`: a Llama of {shape}, float32, random weights; {QUESTIONS_EACH} questions a "
        f"client, {tokens} tokens an answer at most; server and clients on one machine; threads: {threads}.\n"
    )
    yield "| server | clients | tokens/s | first token, s (median) | tokens |"
    yield "|---|---|---|---|---|"
    for name, found in results.items():
        for clients, result in found.items():
            if "problem" in result:
                yield f"| {name} | {clients} | {result['problem']} | | |"
            else:
                yield (
                    f"| {name} | {clients} | {result['tokens_per_second']:.1f} | {result['first_seconds']:.2f} | "
                    f"{result['tokens']} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="100M")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--servers", nargs="+", default=list(SERVERS))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--llama-server", default=shutil.which("llama-server"), help="llama.cpp's server")
    given = parser.parse_args()
    names = [name for name in given.servers if given.llama_server or "{llama_server}" not in SERVERS[name]]
    questions = [row["messages"][0]["content"] for row in conversations()]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / given.shape
        save_model(given.shape, model)
        gguf = model / f"{given.shape}.gguf"
        write_gguf(Weights(model, torch.float32), model, gguf, "f32")
        places = {
            "python": sys.executable,
            "model": str(model),
            "gguf": str(gguf),
            "places": str(64 * CONTEXT),
            "llama_server": given.llama_server,
            "threads": os.environ.get("OMP_NUM_THREADS") or os.cpu_count(),
        }
        results = {name: measured(name, places, questions, given.clients, given.tokens) for name in names}
    text = "\n".join(document(given.shape, given.tokens, results)) + "\n"
    print(text)
    (given.out or results_file("-serve-cpu")).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
