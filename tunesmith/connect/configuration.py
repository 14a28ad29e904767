"""The configuration of a client for a server: its text, the file that it belongs in, and the next step."""

from dataclasses import dataclass
from pathlib import Path

from tunesmith.connect.clients import CLIENTS, Client, Target
from tunesmith.connect.config_files import FORMATS


@dataclass(frozen=True)
class Configuration:
    """The settings that connect a client to a server."""

    client: Client
    settings: dict | list
    """For the client's file, which may have others."""
    text: str
    """A new file with the settings."""
    path: Path
    next_step: str
    warnings: list[str]


def configuration(name: str, target: Target) -> Configuration:
    """Computes the configuration of a client."""
    client = CLIENTS[name]
    settings = client.config(target)
    text = FORMATS[client.format][1]({**client.start, **dict(settings)} if client.start else settings)
    return Configuration(client, settings, text, client.path(), client.then(target), _warnings(name, client, target))


def _warnings(name: str, client: Client, target: Target) -> list[str]:
    found = []
    if not target.tools:
        found.append(f"the chat template of {target.model} has no tools; {name} can chat with it, but not use tools.")
    if target.context < client.context:
        found.append(
            f"{target.model} has a context of {target.context:,} tokens; {name} needs at least {client.context:,}."
        )
    return found
