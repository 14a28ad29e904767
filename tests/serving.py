"""Two runs over one base and a model of another family, served once for all tests of a session."""

import threading
import time

import pytest
import uvicorn
from openai import OpenAI

from tests import tiny
from tests.answer_formats import templates
from tests.conftest import sums, write_rows
from tunesmith import Recipe, train
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.inference.interface import Piece, Request, Served
from tunesmith.inference.scheduler import BatchingEngine
from tunesmith.inference.text_stream import Writer
from tunesmith.serve.app import make_app
from tunesmith.serve.open_models import open_models
from tunesmith.studio.page import CHAT_PAGE

KEY = "a secret"


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The folders of two LoRA runs over one base."""
    return two_runs(tmp_path_factory.mktemp("served"))


def two_runs(folder, **changes):
    """`changes`: of the base's config."""
    base = tiny.save("qwen3", folder / "small", **changes)
    data = write_rows(folder / "rows.jsonl", sums(48))
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(folder / "cache"))
        for seed, name in enumerate(("first", "second.v2")):
            made.append(
                train(
                    Recipe.build(
                        {
                            "model": {"path": str(base), "dtype": "float32"},
                            "data": {"train": str(data), "eval_share": 0.0, "sequence_length": 256},
                            "train": {"batch": 8, "max_steps": 6, "learning_rate": 3e-2},
                            "evaluate": {"samples": 0, "max_new_tokens": 8},
                            "adapter": {"rank": 4, "alpha": 8},
                            "output": str(folder / "runs"),
                            "name": name,
                            "seed": seed,
                        }
                    )
                ).folder
            )
    return made


@pytest.fixture(scope="session")
def mistral(tmp_path_factory):
    return tiny.save("mistral", tmp_path_factory.mktemp("models") / "mistral")


@pytest.fixture(scope="session")
def engine(runs, mistral):
    made = BatchingEngine(open_models([*runs, mistral]), batch=32, queue=64)
    yield made
    made.close()


@pytest.fixture(scope="session")
def served():
    """Starts a server for an engine, with make_app's arguments; gives its address."""
    started = []

    def start(engine, **options) -> str:
        server = uvicorn.Server(uvicorn.Config(make_app(engine, **options), port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        started.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def address(engine, served) -> str:
    return served(engine, page=CHAT_PAGE)


@pytest.fixture(scope="session")
def openai(address) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


class Collector:
    """What an engine delivers of one request."""

    def __init__(self, engine, request: Request):
        self.text, self.last = "", None
        self._done = threading.Event()
        self.ticket = engine.submit(request, self._take)

    def _take(self, piece: Piece) -> None:
        self.text += piece.text
        if piece.finish is not None:
            self.last = piece
            self._done.set()

    def wait(self) -> "Collector":
        assert self._done.wait(60)
        return self


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory):
    """Tokenizers by name: families of tests/tiny.py, and those with the templates of templates.py."""
    folder = tmp_path_factory.mktemp("tokenizers")
    families = ("qwen2", "qwen3", "mistral", "llama3", "gemma3", "smollm3", "gpt_oss")
    for name in families:
        tiny.save_tokenizer(name, folder / name)
    found = {name: Tokenizer.load(folder / name) for name in families}
    for name, base in (
        ("llama", "llama3"),
        ("coder", "qwen3"),
        ("thinker", "qwen3"),
        ("distilled", "qwen3"),
        ("headed", "qwen3"),
        ("first_system", "qwen3"),
    ):
        template = folder / f"{name}.jinja"
        template.write_text(getattr(templates, name.upper()))
        found[name] = Tokenizer.load(folder / base, str(template))
    for name, (text, special) in templates.CALLS.items():
        made = tiny.save_tokenizer("qwen3", folder / name)
        made.add_special_tokens({"additional_special_tokens": list(special)})
        made.chat_template = text
        made.save_pretrained(folder / name)
        found[name] = Tokenizer.load(folder / name)
    return found


class Scripted:
    """An engine whose models say what a test sets as `says`, through the real decoding, token by token."""

    description, capacity = ["scripted"], 16

    def __init__(self, tokenizers: dict):
        ends = {name: tokenizer.special_ids for name, tokenizer in tokenizers.items()}
        self.models = {
            name: Served(name, "base", name, tokenizer, ends[name], {}, 4096) for name, tokenizer in tokenizers.items()
        }
        self.says, self.asked = "", []

    def submit(self, request: Request, deliver) -> "Scripted":
        self.asked.append(request)
        tokenizer = self.models[request.model].tokenizer
        writer = Writer(tokenizer, request.stop, request.shown, request.context)
        ids = tokenizer.encode_rest(self.says)[0]
        told = ids[: request.max_new_tokens]
        pieces = [writer.push(token) for token in told] + [writer.finish()]
        pieces = pieces if request.stream else ["".join(pieces)]
        for number, text in enumerate(pieces[:-1], 1):
            deliver(Piece(text, generated=number))
        deliver(Piece(pieces[-1], finish="length" if len(told) < len(ids) else "stop", generated=len(told)))
        return self

    def prompt(self) -> str:
        """What the last request asked to go on with."""
        return self.models[self.asked[-1].model].tokenizer.decode(self.asked[-1].ids)

    def cancel(self) -> None:
        pass

    close = cancel

    def metrics(self) -> dict:
        return {}


@pytest.fixture(scope="session")
def scripted(tokenizers):
    return Scripted(tokenizers)


@pytest.fixture(scope="session")
def scripted_address(scripted, served) -> str:
    return served(scripted, page=CHAT_PAGE)
