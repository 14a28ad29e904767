"""`tunesmith connect`."""

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from tunesmith.connect.clients import CLIENTS, KEY_VARIABLE, Client, Target
from tunesmith.connect.config_files import FORMATS, Unreadable, write_config
from tunesmith.connect.trial import find_target, try_out


def connect(
    client: Literal[*CLIENTS],  # type: ignore[valid-type]  # from CLIENTS, so that the names are not repeated
    *,
    url: str = "http://127.0.0.1:8383",
    model: str | None = None,
    api_key: Annotated[str | None, Parameter(env_var=KEY_VARIABLE)] = None,
    write: bool = False,
    test: bool = True,
) -> None:
    """Print or write a client's configuration for a running server, and test it with a tool call.

    Args:
        client: The program to connect.
        url: The address of `tunesmith serve`.
        model: The model's id; by default the first tuned model.
        api_key: The server's key, if it has one.
        write: Write the configuration into the client's file instead of printing it; the old file is kept as .bak.
        test: Ask the model for a tool call.
    """
    chosen = CLIENTS[client]
    target = find_target(url, model, api_key)
    _warn(client, chosen, target)
    settings = chosen.config(target)
    text = FORMATS[chosen.format][1]({**chosen.start, **dict(settings)} if chosen.start else settings)
    path = chosen.path()
    if write:
        try:
            _say(write_config(path, chosen, settings, text))
        except Unreadable:
            print(text, end="")
            raise
    else:
        print(text, end="")
        _say(f"This belongs in {path}; --write writes it there.")
    _say(f"Next: {chosen.then(target)}")
    if test:
        _say(try_out(chosen.api, target))


def _warn(name: str, client: Client, target: Target) -> None:
    if not target.tools:
        _say(f"Warning: the chat template of {target.model} has no tools; {name} can chat with it, but not use tools.")
    if target.context < client.context:
        _say(
            f"Warning: {target.model} has a context of {target.context:,} tokens; {name} needs at least "
            f"{client.context:,}."
        )


def _say(line: str) -> None:
    """Prints a line to stderr, because stdout has only the configuration."""
    print(line, file=sys.stderr, flush=True)
