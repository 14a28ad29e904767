"""The server: routes, errors, the key, the page, start and stop."""

import hmac
import socket
from collections.abc import Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocketClose

from tunesmith.serve.answering import Service
from tunesmith.serve.apis import anthropic_api, openai_api, responses_api
from tunesmith.serve.binding import is_loopback
from tunesmith.serve.engine import Engine, Refused

PAGE = Path(__file__).parent / "page"
GAUGES = ("running", "waiting", "kv_bytes", "kv_limit_bytes", "prefix_bytes")
RETRY_SECONDS = "1"
# The page has its policy as well, but only a header can say who may frame it.
PAGE_HEADERS = {"Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
                                           "form-action 'none'; frame-ancestors 'none'",
                "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Page(StaticFiles):
    """The chat page, which loads nothing but itself."""

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":  # none is offered anywhere, and everything else here comes to the page
            return await WebSocketClose()(scope, receive, send)
        await super().__call__(scope, receive, send)

    async def get_response(self, path, scope):
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


class Problem(BaseModel):
    """An error in the shape of the API that was called."""

    error: dict


def make_app(engine: Engine, api_key: str | None = None, cors: Sequence[str] = (),
             hosts: Sequence[str] = ()) -> FastAPI:
    """`cors`: origins that pages may call from; `hosts`: names that requests must be addressed to, any if empty."""
    @asynccontextmanager
    async def lifespan(_):
        yield
        engine.close()

    service = Service(engine)
    problems = {"4XX": {"model": Problem}, "5XX": {"model": Problem}}
    app = FastAPI(title="Tunesmith", docs_url=None, redoc_url=None, lifespan=lifespan,
                  responses=problems)
    guarded = [Depends(_key_check(api_key))] if api_key else []
    for api in (openai_api, responses_api, anthropic_api):
        app.include_router(api.routes(service), dependencies=guarded)
    app.add_api_route("/health", _health, methods=["GET"])
    app.add_api_route("/metrics", lambda: _metrics(engine), methods=["GET"], dependencies=guarded,
                      response_class=PlainTextResponse)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=["*"], allow_headers=["*"])
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    if PAGE.is_dir():
        app.mount("/", Page(directory=PAGE, html=True))
    return app


def serve(engine: Engine, bound: socket.socket, host: str, api_key: str | None, cors: Sequence[str]) -> None:
    """Serves until SIGINT or SIGTERM; then answers what it has begun, and ends. A second Ctrl-C ends it at once."""
    # A page on the web could make a name of its own point here, and then read what is answered.
    hosts = ["localhost", "127.0.0.1", "[::1]", host] if is_loopback(host) else []
    try:
        config = uvicorn.Config(make_app(engine, api_key, cors, hosts), log_level="warning")
        uvicorn.Server(config).run(sockets=[bound])
    except KeyboardInterrupt:
        pass  # uvicorn hands on the signal that ended it
    finally:
        engine.close()


def _key_check(api_key: str):
    """Takes the key as either API's clients send it."""
    bearer, header = HTTPBearer(auto_error=False), APIKeyHeader(name="x-api-key", auto_error=False)

    async def check(given=Depends(bearer), other=Depends(header)) -> None:
        key = (given.credentials if given else other) or ""
        if not hmac.compare_digest(key.encode(), api_key.encode()):
            raise Refused("the API key is missing or wrong", 401, "invalid_api_key")

    return check


def _health() -> dict:
    return {"status": "ok"}


def _metrics(engine: Engine) -> str:
    """In the text format of Prometheus."""
    lines = []
    for name, value in engine.metrics().items():
        kind = "gauge" if name in GAUGES else "counter"
        full = f"tunesmith_{name}" + ("" if kind == "gauge" else "_total")
        lines += [f"# TYPE {full} {kind}", f"{full} {value}"]
    return "\n".join(lines) + "\n"


def _respond(request: Request, error: Refused) -> JSONResponse:
    shape = anthropic_api if request.url.path.startswith("/v1/messages") else openai_api
    headers = {"Retry-After": RETRY_SECONDS} if error.status in (429, 503) else None
    return JSONResponse(shape.problem(error), error.status, headers)


async def _refused(request: Request, error: Refused) -> JSONResponse:
    return _respond(request, error)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{where}: {first['msg']}" if where else first["msg"]
    return _respond(request, Refused(message, 400, "invalid_request", where or None))


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    response = _respond(request, Refused(str(error.detail), error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return _respond(request, Refused(f"the server failed: {type(error).__name__}", 500, "internal_error"))
