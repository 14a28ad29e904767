"""`tunesmith connect`: other programs' configurations for a server of ours, and a try with a tool call.

A new client is one entry of CLIENTS; docs/connect.md says which versions the entries were written for.
"""

import http.client
import json
import os
import shutil
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import yaml
from cyclopts import Parameter

from tunesmith.errors import UserError, first_line
from tunesmith.files import write_atomic

KEY_VARIABLE = "TUNESMITH_API_KEY"
ANY_KEY = "tunesmith"  # for clients that insist on a key where the server asks for none
SECONDS_TO_ANSWER = 300


@dataclass(frozen=True)
class Target:
    """What a client is to be connected with; `context` in tokens, `url` without /v1."""

    url: str
    model: str
    key: str | None
    context: int
    tools: bool

    @property
    def api(self) -> str:
        return f"{self.url}/v1"

    @property
    def answer_tokens(self) -> int:
        """What a client may ask for at most: a quarter of the context, as the rest is its prompt."""
        return min(8192, self.context // 4)


@dataclass(frozen=True)
class Client:
    """A program that can talk to the server.

    `path` gives its configuration file and `config` what of it is ours; `start` is what else a new file needs. `then`
    says what to do afterwards. `api` is the one it uses, `context` the fewest tokens with which it is of use.
    """

    path: Callable[[], Path]
    format: Literal["json", "toml", "yaml", "env"]
    config: Callable[[Target], dict | list]
    then: Callable[[Target], str]
    context: int
    api: Literal["chat", "responses", "messages"] = "chat"
    start: dict = field(default_factory=dict)


def _folder(variable: str, *default: str) -> Path:
    """The folder that a variable names, or one below the user's home."""
    return Path(os.environ.get(variable) or Path.home().joinpath(*default)).expanduser()


def _openclaw(target: Target) -> dict:
    model = {
        "id": target.model,
        "name": target.model,
        "reasoning": False,
        "input": ["text"],
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "contextWindow": target.context,
        "maxTokens": target.answer_tokens,
    }
    return {
        "models": {
            "mode": "merge",
            "providers": {
                "tunesmith": {
                    "baseUrl": target.api,
                    "apiKey": target.key or ANY_KEY,
                    "api": "openai-completions",
                    "models": [model],
                }
            },
        }
    }


def _opencode(target: Target) -> dict:
    model = {
        "name": target.model,
        "tool_call": target.tools,
        "limit": {"context": target.context, "output": target.answer_tokens},
    }
    return {
        "provider": {
            "tunesmith": {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Tunesmith",
                "options": {"baseURL": target.api, "apiKey": target.key or ANY_KEY},
                "models": {target.model: model},
            }
        }
    }


def _codex(target: Target) -> dict:
    provider = {"name": "Tunesmith", "base_url": target.api, "wire_api": "responses"}
    return {
        "model": target.model,
        "model_provider": "tunesmith",
        "model_context_window": target.context,
        "model_providers": {"tunesmith": provider | ({"env_key": KEY_VARIABLE} if target.key else {})},
    }


def _claude_code(target: Target) -> dict:
    names = (
        "ANTHROPIC_MODEL",
        "ANTHROPIC_DEFAULT_OPUS_MODEL",
        "ANTHROPIC_DEFAULT_SONNET_MODEL",
        "ANTHROPIC_DEFAULT_HAIKU_MODEL",
        "CLAUDE_CODE_SUBAGENT_MODEL",
    )
    return {
        "env": {
            "ANTHROPIC_BASE_URL": target.url,
            "ANTHROPIC_AUTH_TOKEN": target.key or ANY_KEY,
            **dict.fromkeys(names, target.model),
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(target.answer_tokens),
            "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(target.context),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
    }


def _continue(target: Target) -> dict:
    return {
        "models": [
            {
                "name": f"Tunesmith {target.model}",
                "provider": "openai",
                "model": target.model,
                "apiBase": target.api,
                "apiKey": target.key or ANY_KEY,
                "roles": ["chat", "edit", "apply"],
                "capabilities": ["tool_use"] if target.tools else [],
                "defaultCompletionOptions": {"contextLength": target.context, "maxTokens": target.answer_tokens},
            }
        ]
    }


def _open_webui(target: Target) -> dict:
    return {"ENABLE_OPENAI_API": "True", "OPENAI_API_BASE_URL": target.api, "OPENAI_API_KEY": target.key or ANY_KEY}


def _llm(target: Target) -> list:
    model = {"model_id": f"tunesmith/{target.model}", "model_name": target.model, "api_base": target.api}
    return [
        model
        | ({"supports_tools": True} if target.tools else {})
        | ({"api_key_name": "tunesmith"} if target.key else {})
    ]


def _llm_folder() -> Path:
    """As click's get_app_dir("io.datasette.llm") gives it."""
    if sys.platform == "darwin":
        return _folder("LLM_USER_PATH", "Library", "Application Support", "io.datasette.llm")
    return Path(os.environ.get("LLM_USER_PATH") or _folder("XDG_CONFIG_HOME", ".config") / "io.datasette.llm")


CLIENTS: dict[str, Client] = {
    "openclaw": Client(
        path=lambda: _folder("OPENCLAW_CONFIG_PATH", ".openclaw", "openclaw.json"),
        format="json",
        config=_openclaw,
        then=lambda t: f"openclaw models set tunesmith/{t.model}",
        context=16_000,
    ),
    "opencode": Client(
        path=lambda: _folder("XDG_CONFIG_HOME", ".config") / "opencode" / "opencode.json",
        format="json",
        config=_opencode,
        start={"$schema": "https://opencode.ai/config.json"},
        then=lambda t: f"opencode --model tunesmith/{t.model}",
        context=64_000,
    ),
    "codex": Client(
        path=lambda: _folder("CODEX_HOME", ".codex") / "tunesmith.config.toml",
        format="toml",
        config=_codex,
        then=lambda t: (f"{KEY_VARIABLE}=... " if t.key else "") + "codex --profile tunesmith",
        context=64_000,
        api="responses",
    ),
    "claude-code": Client(
        path=lambda: _folder("CLAUDE_CONFIG_DIR", ".claude") / "tunesmith.json",
        format="json",
        config=_claude_code,
        then=lambda t: f"claude --settings {CLIENTS['claude-code'].path()}",
        context=64_000,
        api="messages",
    ),
    "continue": Client(
        path=lambda: _folder("CONTINUE_GLOBAL_DIR", ".continue") / "config.yaml",
        format="yaml",
        config=_continue,
        start={"name": "Local", "version": "1.0.0", "schema": "v1"},
        then=lambda t: f"choose Tunesmith {t.model} in Continue's list of models",
        context=8_000,
    ),
    "open-webui": Client(
        path=lambda: Path("open-webui.env").absolute(),
        format="env",
        config=_open_webui,
        then=lambda t: (
            "start Open WebUI with these variables, for example docker run --network host --env-file "
            "open-webui.env ...; one that was started before keeps what it has: add the connection there "
            "under Admin Settings, Connections"
        ),
        context=4_000,
    ),
    "llm": Client(
        path=lambda: _llm_folder() / "extra-openai-models.yaml",
        format="yaml",
        config=_llm,
        then=lambda t: ("llm keys set tunesmith; " if t.key else "") + f"llm -m tunesmith/{t.model} 'Hello'",
        context=2_000,
    ),
}


def connect(
    client: Literal[*CLIENTS],  # type: ignore[valid-type]  # the names are said once, in CLIENTS
    *,
    url: str = "http://127.0.0.1:8383",
    model: str | None = None,
    api_key: Annotated[str | None, Parameter(env_var=KEY_VARIABLE)] = None,
    write: bool = False,
    test: bool = True,
) -> None:
    """Print or write a client's configuration for a running server, and try it with a tool call.

    Args:
        client: The program to connect.
        url: Where `tunesmith serve` listens.
        model: Id of the model; the first tuned one by default.
        api_key: The server's key, if it has one.
        write: Put the configuration into the client's file instead of printing it; the old file is kept as .bak.
        test: Ask the model for a tool call.
    """
    chosen = CLIENTS[client]
    target = find_target(url, model, api_key)
    _warn(client, chosen, target)
    ours = chosen.config(target)
    text = FORMATS[chosen.format][1]({**chosen.start, **dict(ours)} if chosen.start else ours)
    path = chosen.path()
    if write:
        _say(_write(path, chosen, ours, text))
    else:
        print(text, end="")
        _say(f"For {path}; --write puts it there.")
    _say(f"Then: {chosen.then(target)}")
    if test:
        _say(try_out(chosen.api, target))


def find_target(url: str, model: str | None, key: str | None) -> Target:
    """Asks the server what it serves; a UserError says why there is nothing to connect with."""
    url = url.rstrip("/").removesuffix("/v1")
    try:
        served = {item["id"]: item["tunesmith"] for item in _ask(f"{url}/v1/models", key)["data"]}
        tuned = [name for name, facts in served.items() if facts["kind"] == "tuned"]
        chosen = model or next(iter(tuned or served), None)
        if chosen not in served:
            raise UserError(f"--model {model}: not served at {url}; there is {', '.join(served) or 'no model'}")
        return Target(url, chosen, key, served[chosen]["context"], served[chosen]["tools"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{url}: a server, but not one of tunesmith serve; say --url") from error


def _warn(name: str, client: Client, target: Target) -> None:
    if not target.tools:
        _say(f"Warning: the chat template of {target.model} has no tools; {name} can talk with it, but not use tools.")
    if target.context < client.context:
        _say(
            f"Warning: {target.model} has a context of {target.context:,} tokens; {name} wants at least "
            f"{client.context:,}."
        )


# The try: one question with one tool, through the API that the client uses.

QUESTION = "What is the weather in Paris? Use the tool get_weather."
TOOL = {"name": "get_weather", "description": "Gives the weather of a city."}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PLAIN_QUESTION = "Say hello."


def _chat(question: str) -> dict:
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 256,
        "tools": [{"type": "function", "function": {**TOOL, "parameters": CITY}}],
    }


def _chat_streamed(events: list[dict]) -> dict:
    message = {"content": "", "tool_calls": []}
    for delta in (event["choices"][0]["delta"] for event in events if event["choices"]):
        message["content"] += delta.get("content") or ""
        for piece in delta.get("tool_calls") or []:
            if piece["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"function": {"name": piece["function"]["name"], "arguments": ""}})
            function = message["tool_calls"][piece["index"]]["function"]
            function["arguments"] += piece["function"].get("arguments") or ""
    return {"choices": [{"message": message}]}


def _chat_answer(reply: dict) -> tuple[list, str]:
    message = reply["choices"][0]["message"]
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return [(call["name"], call["arguments"]) for call in calls], message.get("content") or ""


def _responses(question: str) -> dict:
    return {
        "input": question,
        "max_output_tokens": 256,
        "store": False,
        "tools": [{"type": "function", **TOOL, "parameters": CITY}],
    }


def _responses_streamed(events: list[dict]) -> dict:
    return {"output": [event["item"] for event in events if event["type"] == "response.output_item.done"]}


def _responses_answer(reply: dict) -> tuple[list, str]:
    calls = [(item["name"], item["arguments"]) for item in reply["output"] if item["type"] == "function_call"]
    parts = [part for item in reply["output"] if item["type"] == "message" for part in item["content"]]
    return calls, "".join(part.get("text", "") for part in parts)


def _messages(question: str) -> dict:
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 256,
        "tools": [{**TOOL, "input_schema": CITY}],
    }


def _messages_streamed(events: list[dict]) -> dict:
    blocks, written = {}, {}
    for event in events:
        if event["type"] == "content_block_start":
            blocks[event["index"]], written[event["index"]] = event["content_block"], ""
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            written[event["index"]] += delta.get("text") or delta.get("partial_json") or ""
    whole = {"text": lambda text: {"text": text}, "tool_use": lambda text: {"input": json.loads(text or "{}")}}
    return {
        "content": [
            block | whole[block["type"]](written[index]) for index, block in blocks.items() if block["type"] in whole
        ]
    }


def _messages_answer(reply: dict) -> tuple[list, str]:
    calls = [(item["name"], json.dumps(item["input"])) for item in reply["content"] if item["type"] == "tool_use"]
    return calls, "".join(item["text"] for item in reply["content"] if item["type"] == "text")


APIS = {
    "chat": ("/v1/chat/completions", _chat, _chat_answer, _chat_streamed),
    "responses": ("/v1/responses", _responses, _responses_answer, _responses_streamed),
    "messages": ("/v1/messages", _messages, _messages_answer, _messages_streamed),
}


def try_out(api: str, target: Target) -> str:
    """What came of one question through an API, whole and, if a tool was called, streamed: the result line."""
    path, ask, _, _ = APIS[api]
    body = {"model": target.model, "temperature": 0, **ask(QUESTION if target.tools else PLAIN_QUESTION)}
    if not target.tools:
        del body["tools"]
    calls, text = _try(api, target, body)
    if not calls:
        said = f"it answered “{_one_line(text)}”"
        if target.tools:
            return f"Test: {target.model} answers through {path}, but no tool call came back; {said}."
        return f"Test passed without a tool: {target.model} answers through {path}; {said}."
    streamed, text = _try(api, target, body | {"stream": True})
    (name, arguments), *_ = calls
    called = f"{target.model} called {_one_line(name)} with {_one_line(arguments)} through {path}"
    if not streamed:
        return f"Test: {called}, but streamed no tool call came back; it answered “{_one_line(text)}”."
    return f"Test passed: {called}, whole and streamed."


def _try(api: str, target: Target, body: dict) -> tuple[list, str]:
    """(tool calls as (name, arguments), text) of the answer to a request."""
    path, _, answer, gather = APIS[api]
    reply = _ask(target.url + path, target.key, body)
    try:
        return answer(gather(reply) if body.get("stream") else reply)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{target.url}{path}: an answer that is not of this API: {json.dumps(reply)[:200]}") from error


def _one_line(text: str) -> str:
    """What a model wrote, short and without anything that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:100]


def _ask(url: str, key: str | None, body: dict | None = None):
    """JSON from the server, or a list of it if a stream was asked for, never through a proxy."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url {url}: begins with neither http:// nor https://")
    headers = {"Content-Type": "application/json", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode() if body else None,
        headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SECONDS_TO_ANSWER) as reply:
            text = reply.read()
        return _events(text) if body and body.get("stream") else json.loads(text)
    except urllib.error.HTTPError as error:
        raise UserError(_refusal(url, error)) from error
    except TimeoutError as error:
        raise UserError(f"{url}: no answer within {SECONDS_TO_ANSWER} seconds") from error
    except OSError as error:
        raise UserError(
            f"{url}: no server answers ({getattr(error, 'reason', error)}); start one with `tunesmith "
            f"serve RUN`, or say --url"
        ) from error
    except (http.client.HTTPException, ValueError) as error:
        raise UserError(f"{url}: a server, but not one of tunesmith serve; say --url") from error


def _events(text: bytes) -> list[dict]:
    lines = [line[5:].strip() for line in text.splitlines() if line.startswith(b"data:")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return f"{url}: the server asks for a key; say --api-key, or set {KEY_VARIABLE}"
    try:
        return f"{url}: {first_line(json.loads(error.read())['error']['message'])}"
    except (ValueError, KeyError, TypeError):
        return f"{url}: the server answered {error.code} {error.reason}"


# Files of other programs.


def _write(path: Path, client: Client, ours: dict | list, text: str) -> str:
    """Merges ours into the file and says so; a file that cannot be read stays as it is, and `text` is printed."""
    path = path.resolve()  # a link stays a link
    try:
        old = path.read_text("utf-8") if path.exists() else ""
        read, dump = FORMATS[client.format]
        before = read(old) if old.strip() else None
        new = text if before is None else dump(merge(before, ours))
    except (ValueError, yaml.YAMLError, UserError) as error:
        print(text, end="")
        raise UserError(
            f"{path}: not changed, as it is not plain {client.format.upper()} of the expected form "
            f"({first_line(error)}); what belongs there is printed above"
        ) from error
    if new == old:
        return f"{path} has it already."
    return _replace(path, old, new)


def _replace(path: Path, old: str, new: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _write_private(path, new, 0o600)
        return f"Wrote {path}."
    backup = path.with_name(path.name + ".bak")
    shutil.copy2(path, backup)
    _write_private(path, new, path.stat().st_mode & 0o777)
    lost = "; comments are only there" if any(line.lstrip().startswith("#") for line in old.splitlines()) else ""
    return f"Changed {path}; as it was before: {backup.name}{lost}."


def _write_private(path: Path, text: str, mode: int) -> None:
    """As it may hold a key, nobody else can read the file at any time unless `mode` says so."""
    usual = os.umask(0o077)
    try:
        write_atomic(path, text)
    finally:
        os.umask(usual)
    path.chmod(mode)


def merge(old, new):
    """`old` with `new` in it: tables are merged, entries of lists that have the same name are replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merge(old[key], value) if key in old else value for key, value in new.items()}
    if isinstance(old, list) and isinstance(new, list):
        names = [_name(item) for item in new]
        return [item for item in old if _name(item) not in names] + new
    if isinstance(old, dict | list) or isinstance(new, dict | list):
        raise UserError(f"expected a {'list' if isinstance(new, list) else 'table'} instead of {repr(old)[:60]}")
    return new


def _name(item):
    """What an entry of a list is known by."""
    if not isinstance(item, dict):
        return item
    return next((item[key] for key in ("model_id", "id", "name") if key in item), item)


def _dump_toml(table: dict, place: tuple[str, ...] = ()) -> str:
    """Plain values, then the tables; one that holds only tables needs no heading."""
    plain = "".join(
        f"{_toml_key(key)} = {_toml(value)}\n" for key, value in table.items() if not isinstance(value, dict)
    )
    heading = f"\n[{'.'.join(place)}]\n" if place and (plain or not table) else ""
    return (
        heading
        + plain
        + "".join(
            _dump_toml(value, (*place, _toml_key(key))) for key, value in table.items() if isinstance(value, dict)
        )
    )


def _toml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml_key(key)} = {_toml(inner)}' for key, inner in value.items())}}}"
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def _toml_key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key) else _toml(key)


def _read_env(text: str) -> dict:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in lines:
        if "=" not in line:
            raise ValueError(f"{line!r} is not NAME=value")
    return dict(line.split("=", 1) for line in lines)


FORMATS = {
    "json": (json.loads, lambda value: json.dumps(value, indent=2, ensure_ascii=False) + "\n"),
    "toml": (tomllib.loads, _dump_toml),
    "yaml": (yaml.safe_load, lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True)),
    "env": (_read_env, lambda value: "".join(f"{name}={said}\n" for name, said in value.items())),
}


def _say(line: str) -> None:
    """Beside the configuration, which alone is on standard output."""
    print(line, file=sys.stderr, flush=True)
