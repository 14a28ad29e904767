"""Shared fixtures: small models built once a session, a separate cache, small recipes."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests import tiny
from tunesmith import Recipe

STANDIN_VLLM = Path(__file__).parent / "inference" / "standin_vllm.py"
pytest_plugins = ["tests.browser", "tests.serving"]  # fixtures: Chromium; runs that are served

# No deadlines, as a busy machine takes long. `make test` draws the same examples every time; `make test-all` loads
# `random` with a seed that it prints.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("fixed")

# A shell that starts the tests in the background ignores SIGINT, and so would the programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--allow-skip",
        action="append",
        metavar="REASON",
        help="fail if a test is skipped for a reason that begins otherwise; may be given repeatedly",
    )


def pytest_sessionfinish(session):
    allowed, reporter = session.config.option.allow_skip, session.config.pluginmanager.get_plugin("terminalreporter")
    if not allowed or not reporter:  # a worker of pytest-xdist has no reporter
        return
    skips = {
        report.nodeid: report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", [])
    }
    others = {test: reason for test, reason in skips.items() if not reason.startswith(tuple(allowed))}
    for test, reason in others.items():
        reporter.write_line(f"\nERROR {test} must not be skipped here: {reason}", red=True)
    if others and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache or queue; all share one cache."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path_factory.getbasetemp() / "state"))
    monkeypatch.setenv("TUNESMITH_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def real_vllm(monkeypatch):
    """Skips where vLLM is not installed: its program is on PATH or in the folder that `TUNESMITH_TEST_VLLM` names."""
    places = os.pathsep.join([os.environ.get("TUNESMITH_TEST_VLLM", ""), os.environ["PATH"]]).strip(os.pathsep)
    if shutil.which("vllm", path=places) is None:
        pytest.skip("needs vLLM: install it, or name the folder of its program in TUNESMITH_TEST_VLLM")
    monkeypatch.setenv("PATH", places)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.fixture
def standin_vllm(tmp_path, monkeypatch) -> Path:
    """Puts a small program in vLLM's place. Returns the folder of its notes, which standin_vllm.received reads."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{STANDIN_VLLM.read_text()}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(program))  # so that nothing is found beside it
    monkeypatch.setenv("STANDIN_VLLM", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """Returns a function that returns the folder of a small model of a family."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("models") / name
            tiny.save(name, made[name])
        return made[name]

    return folder


def slow_but(quick, of) -> list:
    """Values to run a test with, all but the `quick` ones in `make test-all` alone."""
    return [
        value
        if value in quick
        else pytest.param(*value if isinstance(value, tuple) else [value], marks=pytest.mark.slow)
        for value in of
    ]


def sums(count: int, first: int = 0) -> list[dict]:
    """Conversations about adding, of different lengths."""
    rows = []
    for i in range(first, first + count):
        terms = [i + k for k in range(2 + i % 5)]
        question = f"What is {' plus '.join(map(str, terms))}?"
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": f"It is {sum(terms)}."},
                ]
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package `stranger` that adds a module under a name."""

    def install(group: str, name: str, source: str = "HERE = True\n") -> None:
        (tmp_path / "stranger.py").write_text(source)
        facts = tmp_path / "stranger-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[{group}]\n{name} = stranger\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "stranger", raising=False)  # another test's

    return install


@pytest.fixture
def recipe(tmp_path, family):
    """Builds a small float32 recipe; keyword arguments change its sections."""
    data = write_rows(tmp_path / "data.jsonl", sums(96))

    def build(base: str = "llama3", name: str = "run", tokens: tuple = (), **sections) -> Recipe:
        values = {
            "model": {"path": str(family(base)), "dtype": "float32", "new_tokens": list(tokens)},
            "data": {"train": str(data), "eval_share": 0.0, "sequence_length": 256},
            "train": {"batch": 8, "max_steps": 20, "learning_rate": 1e-3, "save_every": 100},
            "evaluate": {"samples": 0, "max_new_tokens": 8},
            "adapter": {"rank": 4, "alpha": 8},
            "output": str(tmp_path / "runs"),
            "name": name,
        }
        for section, changes in sections.items():
            values[section] = values.get(section, {}) | changes if isinstance(changes, dict) else changes
        if values["data"]["eval_share"] or values["data"].get("eval"):
            values["train"].setdefault("eval_every", 100)
        return Recipe.build(values)

    return build
