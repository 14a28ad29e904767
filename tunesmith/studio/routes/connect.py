"""Connecting other programs to a server: their configuration, to copy or to write into their file."""

from fastapi import APIRouter
from pydantic import BaseModel

from tunesmith.connect.clients import CLIENTS, Target
from tunesmith.connect.config_files import write_config
from tunesmith.connect.configuration import Configuration, configuration
from tunesmith.connect.trial import find_target, try_out
from tunesmith.errors import UserError
from tunesmith.studio import servers
from tunesmith.studio.state import Studio


class ClientView(BaseModel):
    """A program that can use a server."""

    name: str
    format: str
    """json, toml, yaml or env."""
    path: str
    """Its configuration file."""
    context: int
    """The fewest tokens of context that it needs."""


class Connected(BaseModel):
    """A client's configuration for a model of a server."""

    text: str
    path: str
    """The file that it belongs in."""
    next_step: str
    warnings: list[str]


class ConnectModel(BaseModel):
    model: str


class ConnectOutcome(BaseModel):
    message: str
    """The change that was made, or how the test ended."""


def target_of(server: str, model: str) -> Target:
    """The model of a server, by the address that clients on this machine use. Raises UserError."""
    entry = servers.entry_of(server)
    found = find_target(entry.local_url or entry.url, model, entry.key)
    return Target(entry.url, found.model, found.key, found.context, found.tools)


def _made(client: str, server: str, model: str) -> tuple[Configuration, Target]:
    if client not in CLIENTS:
        raise UserError(f"there is no client {client}; choose {', '.join(CLIENTS)}")
    target = target_of(server, model)
    return configuration(client, target), target


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["connect"])

    @router.get("/connect/clients")
    def connect_clients() -> list[ClientView]:
        return [
            ClientView(name=name, format=client.format, path=str(client.path()), context=client.context)
            for name, client in CLIENTS.items()
        ]

    @router.get("/servers/{name}/connect/{client}")
    def connect_client(name: str, client: str, model: str) -> Connected:
        made, _ = _made(client, name, model)
        return Connected(text=made.text, path=str(made.path), next_step=made.next_step, warnings=made.warnings)

    @router.post("/servers/{name}/connect/{client}/write")
    def write_client(name: str, client: str, asked: ConnectModel) -> ConnectOutcome:
        made, _ = _made(client, name, asked.model)
        return ConnectOutcome(message=write_config(made.path, made.client, made.settings, made.text))

    @router.post("/servers/{name}/connect/{client}/test")
    def test_client(name: str, client: str, asked: ConnectModel) -> ConnectOutcome:
        made, target = _made(client, name, asked.model)
        return ConnectOutcome(message=try_out(made.client.api, target))

    return router
