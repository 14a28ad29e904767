"""`tunesmith connect`."""

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from tunesmith.connect.clients import CLIENTS, KEY_VARIABLE
from tunesmith.connect.config_files import Unreadable, write_config
from tunesmith.connect.configuration import configuration
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
    target = find_target(url, model, api_key)
    made = configuration(client, target)
    for warning in made.warnings:
        _say(f"Warning: {warning}")
    if write:
        try:
            _say(write_config(made.path, made.client, made.settings, made.text))
        except Unreadable:
            print(made.text, end="")
            raise
    else:
        print(made.text, end="")
        _say(f"This belongs in {made.path}; --write writes it there.")
    _say(f"Next: {made.next_step}")
    if test:
        _say(try_out(made.client.api, target))


def _say(line: str) -> None:
    """Prints a line to stderr, because stdout has only the configuration."""
    print(line, file=sys.stderr, flush=True)
