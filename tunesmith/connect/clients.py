"""Configurations that connect other programs to a Tunesmith server, for `tunesmith connect`.

A new client is one entry of CLIENTS. docs/reference/connect.md lists the versions that the entries were written for.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

KEY_VARIABLE = "TUNESMITH_API_KEY"
ANY_KEY = "tunesmith"  # for clients that require a key, if the server does not


@dataclass(frozen=True)
class Target:
    """The server and model to connect a client to. `context` is in tokens, `url` is without /v1."""

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
        """The most tokens that a client may request: a quarter of the context, to leave room for the prompt."""
        return min(8192, self.context // 4)


@dataclass(frozen=True)
class Client:
    """A program that can use the server.

    `path` returns its configuration file, `config` the settings to merge into it. `start` has further settings that a
    new file needs. `then` returns the next step for the user. `api` is the API that the program uses, `context` the
    fewest tokens that it needs.
    """

    path: Callable[[], Path]
    format: Literal["json", "toml", "yaml", "env"]
    config: Callable[[Target], dict | list]
    then: Callable[[Target], str]
    context: int
    api: Literal["chat", "responses", "messages"] = "chat"
    start: dict = field(default_factory=dict)


def _folder(variable: str, *default: str) -> Path:
    """Returns the folder in an environment variable, else a folder in the user's home."""
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
    """Returns the folder of click's get_app_dir("io.datasette.llm")."""
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
            "open-webui.env ...; an Open WebUI that was started before keeps its settings: add the connection there "
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
