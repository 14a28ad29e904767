"""Servers: which ones run on this machine, starting and stopping them, and requests to them."""

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Literal

import httpx
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.background import BackgroundTask

from tunesmith.errors import UserError
from tunesmith.run import Run
from tunesmith.serve.registry import file_of
from tunesmith.studio import servers
from tunesmith.studio.routes.jobs import MOST_LOG_BYTES, Log, part_of
from tunesmith.studio.servers import Server
from tunesmith.studio.state import Studio

PASSED = ("v1/", "render", "health", "metrics")  # the paths of a server that are passed on; not its page
HUB_ID = re.compile(r"(?!.*(\.\.|--))\w[\w.-]*/\w[\w.-]*", re.ASCII)  # never a flag
TO_SERVER = ("content-type", "accept")  # all other headers stay here: the token, cookies, addresses
TO_PAGE = ("content-type", "retry-after")
TEXTS = ("application/json", "text/event-stream", "text/plain")  # nothing that a browser would show as a page


class NewServer(BaseModel):
    """A server to start."""

    models: Annotated[list[str], Field(min_length=1)]
    """Ids of runs, or paths of runs, model folders and GGUF files; a GGUF adapter after its base."""
    context: Annotated[int, Field(ge=2)] | None = None
    """The limit on prompt and answer together, in tokens."""
    batch: Annotated[int, Field(ge=1)] | None = None
    """The most requests to compute at the same time."""
    engine: Literal["here", "vllm"] = "here"
    cpu: bool = False
    """Compute on the CPU, also if there is a GPU."""
    with_key: bool = False
    """Whether clients need a key, which the studio then chooses."""


class Stop(BaseModel):
    now: bool = False
    """Breaks off the answers in progress."""


class ServerKey(BaseModel):
    """The key of a server that the studio started with one."""

    key: str | None


def path_of(studio: Studio, model: str) -> str:
    """The path of a model: that of the run with this id, a path in the roots, or a hub id, which is not downloaded.
    Raises UserError."""
    with suppress(UserError):
        return str(studio.runs.open(model).folder.absolute())
    if HUB_ID.fullmatch(model) and not (studio.roots.folders[0] / model).exists():
        return model
    path = studio.roots.resolve(model)
    if not Run(path).exists and not (path.is_dir() and (path / "config.json").exists()) and path.suffix != ".gguf":
        raise UserError(f"{model}: neither a run, nor a model folder, nor a GGUF file")
    return str(path)


def flags_of(asked: NewServer) -> list[str]:
    """The flags of `tunesmith serve`."""
    flags = ["--engine", asked.engine] if asked.engine != "here" else []
    for name in ("context", "batch"):
        if (value := getattr(asked, name)) is not None:
            flags += [f"--{name}", str(value)]
    return [*flags, "--cpu"] if asked.cpu else flags


async def passed_on(client: httpx.AsyncClient, name: str, path: str, request: Request) -> StreamingResponse:
    """The server's answer, as it comes. Raises UserError."""
    entry = servers.entry_of(name)
    if not path.startswith(PASSED) or ".." in path.split("/") or not path.isprintable():
        raise UserError(f"{path}: the studio passes on only {', '.join(PASSED)}")
    headers = {key: value for key, value in request.headers.items() if key in TO_SERVER}
    headers |= {"Authorization": f"Bearer {entry.key}"} if entry.key else {}
    asked = client.build_request(
        request.method,
        f"{entry.local_url}/{path}",
        params=request.query_params,
        headers=headers,
        content=await request.body(),
    )
    try:
        answer = await client.send(asked, stream=True)
    except httpx.TransportError:
        raise UserError(f"the server {name} cannot be reached") from None
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind not in TEXTS:
        await answer.aclose()
        raise UserError(f"{path}: the server answered with {kind or 'nothing'}, which the studio does not pass on")
    kept = {key: value for key, value in answer.headers.items() if key in TO_PAGE}
    return StreamingResponse(_pieces(answer), answer.status_code, kept, background=BackgroundTask(answer.aclose))


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """A page that leaves ends the server's request, too."""
    try:
        async for piece in answer.aiter_bytes():
            yield piece
    except httpx.TransportError:
        return  # the server has ended
    finally:
        await answer.aclose()


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["servers"])
    client = servers.client()

    @router.get("/servers", name="servers")
    def list_servers() -> list[Server]:
        return servers.look()

    @router.post("/servers")
    def start_server(asked: NewServer) -> Server:
        paths = [path_of(studio, model) for model in asked.models]
        return servers.find(servers.start(studio.folder, flags_of(asked), paths, asked.with_key))

    @router.post("/servers/{name}/stop")
    def stop_server(name: str, asked: Stop) -> list[Server]:
        servers.stop(name, asked.now)
        return servers.look()

    @router.get("/servers/{name}/log")
    def server_log(name: str, offset: Annotated[int, Query()] = -MOST_LOG_BYTES) -> Log:
        return part_of(file_of(servers.find(name).id, "log"), offset)

    @router.get("/servers/{name}/key")
    def server_key(name: str) -> ServerKey:
        return ServerKey(key=servers.entry_of(name).key)

    @router.api_route("/servers/{name}/proxy/{path:path}", methods=["GET", "POST"], include_in_schema=False)
    async def pass_on(name: str, path: str, request: Request) -> StreamingResponse:
        return await passed_on(client, name, path, request)

    return router
