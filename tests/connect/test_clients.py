"""`tunesmith connect` with a small server: its output, the files it writes, and the settings it keeps."""

import json
import re
import tomllib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.standin import StandIn
from tunesmith.cli import main
from tunesmith.connect.clients import CLIENTS
from tunesmith.connect.config_files import FORMATS, merge
from tunesmith.errors import UserError

READ = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
    "env": lambda text: dict(line.split("=", 1) for line in text.splitlines()),
}


@pytest.fixture
def server():
    with StandIn() as standin:
        yield standin


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Makes an empty home folder, which is also the current folder."""
    for name in (
        "XDG_CONFIG_HOME",
        "CODEX_HOME",
        "CLAUDE_CONFIG_DIR",
        "CONTINUE_GLOBAL_DIR",
        "LLM_USER_PATH",
        "OPENCLAW_CONFIG_PATH",
        "TUNESMITH_API_KEY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be asked
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tunesmith(monkeypatch, capsys):
    """Runs the command line. Returns the exit status, stdout, and the lines on stderr."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["tunesmith", *map(str, arguments)])
        status = 0
        try:
            main.main()
        except SystemExit as end:
            status = end.code or 0
        said = capsys.readouterr()
        return status, said.out, said.err.splitlines()

    return run


def paths(value, at=()):
    """Yields every leaf of nested tables and lists, with its path."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if children is None:
        return [(at, value)]
    return [leaf for key, inner in children for leaf in paths(inner, (*at, key))]


@pytest.mark.parametrize("client", CLIENTS)
def test_the_printed_configuration_names_server_and_model(client, server, tunesmith, home):
    status, printed, said = tunesmith("connect", client, "--url", server.url, "--api-key", "sesame")
    assert status == 0
    found = READ[CLIENTS[client].format](printed)
    values = [value for _, value in paths(found)] + [key for way, _ in paths(found) for key in way]
    assert {server.url, f"{server.url}/v1"} & set(values) and (client == "open-webui" or "my-run" in values)
    assert any(str(CLIENTS[client].path()) in line for line in said)
    assert said[-1].startswith("Test passed: my-run called get_weather") and "Paris" in said[-1]
    assert [file for file in home.rglob("*") if file.is_file()] == []


@pytest.mark.parametrize(
    ("client", "path", "tools"),
    [
        ("openclaw", "/v1/chat/completions", lambda tool: tool["function"]["parameters"]),
        ("codex", "/v1/responses", lambda tool: tool["parameters"]),
        ("claude-code", "/v1/messages", lambda tool: tool["input_schema"]),
    ],
)
def test_the_test_uses_the_api_of_the_client(client, path, tools, server, tunesmith):
    _, _, said = tunesmith("connect", client, "--url", server.url + "/v1/")
    [(asked, body), (again, streamed)] = server.asked
    assert asked == again == path and streamed == body | {"stream": True} and said[-1].endswith("whole and streamed.")
    assert body["model"] == "my-run" and "city" in tools(body["tools"][0])["properties"]
    server.calls_streamed = False
    status, _, said = tunesmith("connect", client, "--url", server.url)
    assert status == 0 and "Paris" in said[-1] and "streamed no tool call came back" in said[-1]
    server.asked.clear()
    server.calls_tool, server.says = False, "It is \x1b[31m\x9b5msunny.\n"
    status, _, said = tunesmith("connect", client, "--url", server.url)
    assert status == 0 and "no tool call" in said[-1] and "It is [31m 5msunny." in said[-1]
    _, _, said = tunesmith("connect", client, "--url", server.url, "--no-test")
    assert len(server.asked) == 1 and said[-1].startswith("Next: ")


EXISTING = {
    "openclaw": {"models": {"providers": {"other": {"baseUrl": "x", "models": [{"id": "a"}]}}}, "gateway": {"port": 1}},
    "opencode": {"theme": "dark", "provider": {"other": {"options": {"apiKey": "é"}}}},
    "codex": {"approval_policy": "never", "model_providers": {"other": {"name": "Other"}}, "mine": [1, {"a": 2.5}]},
    "claude-code": {"permissions": {"allow": ["Bash"]}, "env": {"EDITOR": "vi"}},
    "continue": {"name": "Mine", "version": "2.0.0", "schema": "v1", "models": [{"name": "Other", "model": "b"}]},
    "open-webui": {"PORT": "3000"},
    "llm": [{"model_id": "other", "model_name": "b"}],
}


@pytest.mark.parametrize("client", CLIENTS)
def test_writing_keeps_other_settings_and_a_backup(client, server, tunesmith):
    file, kind = CLIENTS[client].path(), CLIENTS[client].format
    file.parent.mkdir(parents=True, exist_ok=True)
    before = FORMATS[kind][1](EXISTING[client])
    file.write_text(before)
    file.chmod(0o640)
    status, printed, said = tunesmith("connect", client, "--url", server.url, "--write")
    assert status == 0 and printed == "" and said[0].startswith("Changed ")
    after = READ[kind](file.read_text())
    assert [leaf for leaf in paths(EXISTING[client]) if leaf not in paths(after)] == []
    assert any("my-run" in map(str, (*way, value)) or server.url in str(value) for way, value in paths(after))
    assert file.with_name(file.name + ".bak").read_text() == before and file.stat().st_mode & 0o777 == 0o640
    written = file.read_text()
    _, _, said = tunesmith("connect", client, "--url", server.url, "--write")
    assert "has these settings already" in said[0] and file.read_text() == written
    assert sorted(f.name for f in file.parent.iterdir()) == sorted([file.name, file.name + ".bak"])


def test_a_new_file_is_complete_and_private(server, tunesmith):
    for client in CLIENTS:
        tunesmith("connect", client, "--url", server.url, "--write", "--api-key", "sesame")
        file = CLIENTS[client].path()
        _, printed, _ = tunesmith("connect", client, "--url", server.url, "--api-key", "sesame")
        assert file.read_text() == printed and file.stat().st_mode & 0o777 == 0o600
        assert not file.with_name(file.name + ".bak").exists()


def test_a_link_stays_a_link(server, tunesmith, home):
    file = CLIENTS["opencode"].path()
    file.parent.mkdir(parents=True)
    (home / "real.json").write_text("{}")
    file.symlink_to(home / "real.json")
    tunesmith("connect", "opencode", "--url", server.url, "--write")
    assert file.is_symlink() and "tunesmith" in (home / "real.json").read_text()


@pytest.mark.parametrize(
    ("client", "text"),
    [
        ("openclaw", '{\n  // mine\n  "gateway": {}\n}'),
        ("opencode", '{"provider": ["a"]}'),
        ("codex", "a = = 1\n"),
        ("continue", "models: [\n"),
        ("llm", "model_id: a\n"),
        ("open-webui", "just words\n"),
        ("opencode", "[1]"),
    ],
)
def test_a_file_that_cannot_be_merged_stays_and_the_settings_are_printed(client, text, server, tunesmith):
    file = CLIENTS[client].path()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    status, printed, said = tunesmith("connect", client, "--url", server.url, "--write")
    assert status == 2 and len(said) == 1 and str(file) in said[0]
    assert READ[CLIENTS[client].format](printed)
    assert file.read_text() == text and [f.name for f in file.parent.iterdir()] == [file.name]


def test_warnings(server, tunesmith):
    server.models[1]["tunesmith"] |= {"context": 2048, "tools": False}
    status, printed, said = tunesmith("connect", "claude-code", "--url", server.url)
    assert status == 0 and printed
    assert "no tools" in said[0] and "2,048" in said[1] and "64,000" in said[1]
    assert "tools" not in server.asked[0][1] and "without a tool" in said[-1]
    _, _, said = tunesmith("connect", "claude-code", "--url", server.url, "--model", "base-1b")
    assert not any(line.startswith("Warning") for line in said)


def test_mistakes_get_one_line(server, tunesmith, home):
    gone = StandIn()
    gone.server_close()
    server.failure = (400, "the model is too small\nfor this")
    cases = [
        (["connect", "emacs"], "emacs"),
        (["connect", "llm", "--url", gone.url], "tunesmith serve RUN"),
        (["connect", "llm", "--url", "localhost:8383"], "http://"),
        (["connect", "llm", "--url", server.url, "--model", "absent"], "my-run"),
        (["connect", "llm", "--url", f"{server.url}/elsewhere"], "nothing at"),
    ]
    for arguments, expected in cases:
        status, printed, said = tunesmith(*arguments)
        assert (status, printed, len(said)) == (2, "", 1) and expected in said[0], (arguments, said)
    status, _, said = tunesmith("connect", "llm", "--url", server.url)
    assert status == 2 and said[-1].endswith("the model is too small")
    server.key, server.failure = "sesame", None
    status, _, said = tunesmith("connect", "llm", "--url", server.url)
    assert status == 2 and "--api-key" in said[0]
    status, printed, said = tunesmith("connect", "codex", "--url", server.url, "--api-key", "sesame")
    assert status == 0 and "sesame" not in printed and said[-1].startswith("Test passed")
    server.models = [{"id": "other"}]
    status, _, said = tunesmith("connect", "llm", "--url", server.url, "--api-key", "sesame")
    assert status == 2 and "not a Tunesmith server" in said[0]


@pytest.mark.slow
def test_llm_finds_the_model(server, tunesmith, home, monkeypatch):
    llm = pytest.importorskip("llm")
    monkeypatch.setenv("LLM_USER_PATH", str(home / "llm"))
    tunesmith("connect", "llm", "--url", server.url, "--write")
    model = llm.get_model("tunesmith/my-run")
    assert model.api_base == f"{server.url}/v1" and model.model_name == "my-run" and model.supports_tools


def test_every_client_is_in_the_documentation_and_the_help(tunesmith, request):
    text = (request.config.rootpath / "docs" / "reference" / "connect.md").read_text()
    _, help_text, _ = tunesmith("connect", "--help")
    for client, facts in CLIENTS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{client}` "))
        assert f"{facts.context:,}" in row and facts.path().name in row
        assert client in re.sub(r"[│\s]+", "", help_text).replace("--", "")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXTS
TABLES = st.dictionaries(
    TEXTS,
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab."\\ é'), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(TABLES, TABLES)
def test_merging_changes_only_what_is_new(old, new):
    try:
        merged = merge(old, new)
    except UserError:
        return
    assert merge(merged, new) == merged
    for key in old.keys() | new.keys():
        assert key in merged
        if key not in new:
            assert merged[key] == old[key]
        elif key not in old:
            assert merged[key] == new[key]


@given(TABLES)
def test_toml_reads_back(table):
    def without_none(value):
        if isinstance(value, dict):
            return {key: without_none(inner) for key, inner in value.items() if inner is not None}
        return [without_none(inner) for inner in value if inner is not None] if isinstance(value, list) else value

    table = without_none(table)
    assert tomllib.loads(FORMATS["toml"][1](table)) == table
