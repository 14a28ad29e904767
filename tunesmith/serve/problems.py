"""Error responses, in the shape of the API that was called, with what to do."""

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from tunesmith.inference.interface import Refused
from tunesmith.serve.apis import anthropic_api, openai_api
from tunesmith.serve.binding import name_in

RETRY_SECONDS = "1"
PASSING = ("queue_full", "stopping")  # codes of temporary errors, after which a client may retry


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)


class OwnNames:
    """Refuses requests whose Host header is not in `names`. It stops DNS rebinding, in which a web page points its own
    domain at this machine to read the answers."""

    def __init__(self, app: ASGIApp, names: Sequence[str]):
        self.app, self.names = app, frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http":
            request = Request(scope)
            host = request.headers.get("host", "")
            if name_in(host) not in self.names:
                app = _respond(
                    request,
                    Refused(
                        f"the host {host!r} is not allowed; if it is a name of this machine, start the "
                        "server with --allow-host NAME",
                        403,
                        "host_not_allowed",
                    ),
                )
        await app(scope, receive, send)


def _respond(request: Request, error: Refused) -> JSONResponse:
    shape = anthropic_api if request.url.path.startswith("/v1/messages") else openai_api
    headers = {"Retry-After": RETRY_SECONDS} if error.code in PASSING else None
    return JSONResponse(shape.problem(error), error.status, headers)


async def _refused(request: Request, error: Refused) -> JSONResponse:
    return _respond(request, error)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["loc"] == ("body",) and first["type"] == "missing":
        return _respond(request, Refused("the request has no body; send JSON", 400, "invalid_request"))
    if first["loc"] == ("body",) and not _is_json(request):  # FastAPI then reads the body as text
        sent = request.headers.get("content-type", "none")
        return _respond(
            request,
            Refused(
                f"the Content-Type is {sent}; send JSON with the header 'Content-Type: application/json'",
                415,
                "unsupported_media_type",
            ),
        )
    if first["type"] == "json_invalid":
        return _respond(
            request,
            Refused(
                f"the body is not valid JSON: {first['ctx']['error']} at character {first['loc'][1]}",
                400,
                "invalid_json",
            ),
        )
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{where}: {first['msg']}" if where else first["msg"]
    return _respond(request, Refused(message, 400, "invalid_request", where or None))


def _is_json(request: Request) -> bool:
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    return media_type.startswith("application/") and (media_type == "application/json" or media_type.endswith("+json"))


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = str(error.detail)
    if error.status_code in (404, 405):
        path = request.url.path
        message = f"this server has no {request.method} {path}"
        message += "" if path.startswith("/v1") else "; the APIs are below /v1"
    response = _respond(request, Refused(message, error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return _respond(request, Refused(f"the server failed: {type(error).__name__}", 500, "internal_error"))
