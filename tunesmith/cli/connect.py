"""`tunesmith connect`."""

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from tunesmith.connect.clients import CLIENTS, KEY_VARIABLE, Client, Target
from tunesmith.connect.config_files import FORMATS, write_config
from tunesmith.connect.trial import find_target, try_out


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
        _say(write_config(path, chosen, ours, text))
    else:
        print(text, end="")
        _say(f"For {path}; --write puts it there.")
    _say(f"Then: {chosen.then(target)}")
    if test:
        _say(try_out(chosen.api, target))


def _warn(name: str, client: Client, target: Target) -> None:
    if not target.tools:
        _say(f"Warning: the chat template of {target.model} has no tools; {name} can talk with it, but not use tools.")
    if target.context < client.context:
        _say(
            f"Warning: {target.model} has a context of {target.context:,} tokens; {name} wants at least "
            f"{client.context:,}."
        )


def _say(line: str) -> None:
    """Beside the configuration, which alone is on standard output."""
    print(line, file=sys.stderr, flush=True)
