"""The HTTP server: routes, API key, chat page, start and shutdown."""

import hmac
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from tunesmith.inference.interface import Engine, Refused
from tunesmith.serve.answering import Service
from tunesmith.serve.apis import anthropic_api, completions_api, openai_api, responses_api
from tunesmith.serve.problems import OwnNames, add_handlers

GAUGES = ("running", "waiting", "kv_bytes", "kv_limit_bytes", "prefix_bytes")
# The page sets its own policy too, but `frame-ancestors` only works as a header.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # the browser asks whether its copy is current, else it may miss an update
}


class Page(StaticFiles):
    """A page at / with the files beside it. It loads nothing from other servers."""

    def __init__(self, file: Path):
        super().__init__(directory=file.parent)
        self._file = file

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":  # the page is mounted at /, so it receives all unknown requests
            return await WebSocketClose()(scope, receive, send)
        await super().__call__(scope, receive, send)

    async def get_response(self, path, scope):
        response = await super().get_response(self._file.name if path == "." else path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


class HeadAsGet:
    """Answers HEAD like GET. uvicorn drops the body."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self.app(scope, receive, send)


class Problem(BaseModel):
    """An error in the shape of the API that was called."""

    error: dict


def make_app(
    engine: Engine,
    api_key: str | None = None,
    cors: Sequence[str] = (),
    hosts: Sequence[str] = (),
    page: Path | None = None,
) -> FastAPI:
    """Creates the application. `cors` are the allowed origins of pages, `hosts` the allowed names in the Host header;
    if empty, any name is allowed. `page` is the HTML file to serve at /, with the files in its folder."""

    @asynccontextmanager
    async def lifespan(_):
        yield
        engine.close()

    service = Service(engine)
    problems = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}
    app = FastAPI(title="Tunesmith", docs_url=None, redoc_url=None, lifespan=lifespan, responses=problems)
    guarded = [Depends(_key_check(api_key))] if api_key else []
    for api in (openai_api, completions_api, responses_api, anthropic_api):
        app.include_router(api.routes(service), dependencies=guarded)
    app.add_api_route("/health", _health, methods=["GET"])
    app.add_api_route(
        "/metrics", lambda: _metrics(engine), methods=["GET"], dependencies=guarded, response_class=PlainTextResponse
    )
    add_handlers(app)
    app.add_middleware(HeadAsGet)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=["*"], allow_headers=["*"])
    if hosts:
        app.add_middleware(OwnNames, names=hosts)
    if page:
        app.mount("/", Page(page))
    return app


def serve(
    engine: Engine,
    bound: socket.socket,
    api_key: str | None,
    cors: Sequence[str],
    hosts: Sequence[str],
    page: Path,
    ready: Callable[[], None],
    stopping: Callable[[int], None],
) -> None:
    """Serves until SIGINT or SIGTERM, then finishes the answers in progress. A second Ctrl-C stops at once. Calls
    `ready` once it accepts requests, and `stopping` at shutdown with the number of answers that it waits for."""
    config = uvicorn.Config(make_app(engine, api_key, cors, hosts, page), log_level="warning")
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after its shutdown
        Server(config, engine, ready, stopping).run(sockets=[bound])


class Server(uvicorn.Server):
    """Reports when the server is ready, and at shutdown what it waits for."""

    def __init__(
        self, config: uvicorn.Config, engine: Engine, ready: Callable[[], None], stopping: Callable[[int], None]
    ):
        super().__init__(config)
        self._engine, self._ready, self._stopping = engine, ready, stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:  # from here on signals are handled
            self._ready()

    def handle_exit(self, sig: int, frame) -> None:
        first = not self.should_exit
        super().handle_exit(sig, frame)  # before it is reported, as the next signal may arrive meanwhile
        if first:
            self._stopping(int(sum(self._engine.metrics().get(name, 0) for name in ("running", "waiting"))))
        else:
            logging.disable()  # uvicorn would log the cancelled answers as errors


def _key_check(api_key: str):
    """Returns a dependency that checks the key, sent as a bearer token (OpenAI) or as x-api-key (Anthropic)."""
    bearer, header = HTTPBearer(auto_error=False), APIKeyHeader(name="x-api-key", auto_error=False)

    async def check(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
        header_key: Annotated[str | None, Depends(header)],
    ) -> None:
        key = (credentials.credentials if credentials else header_key) or ""
        if not hmac.compare_digest(key.encode(), api_key.encode()):
            raise Refused("the API key is missing or wrong", 401, "invalid_api_key")

    return check


def _health() -> dict:
    return {"status": "ok"}


def _metrics(engine: Engine) -> str:
    """Returns the engine's metrics in the text format of Prometheus."""
    lines = []
    for name, value in engine.metrics().items():
        type_ = "gauge" if name in GAUGES else "counter"
        full = f"tunesmith_{name}" + ("" if type_ == "gauge" else "_total")
        lines += [f"# TYPE {full} {type_}", f"{full} {value}"]
    return "\n".join(lines) + "\n"
