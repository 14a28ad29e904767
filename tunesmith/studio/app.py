"""The studio's web server: its routes, its page, and who may use them."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from tunesmith.errors import UserError
from tunesmith.studio.guard import Guard
from tunesmith.studio.page import STATIC
from tunesmith.studio.routes import (
    connect,
    conversations,
    data,
    events,
    exports,
    files,
    jobs,
    machine,
    models,
    recipes,
    runs,
    servers,
)
from tunesmith.studio.state import Studio

# Exports come before runs, which take any word after a run's id for a verb.
SUBJECTS = (machine, jobs, recipes, exports, runs, events, servers, conversations, connect, data, files, models)


def make_app(studio: Studio) -> FastAPI:
    """Creates the application without the guard that decides who may use it."""
    app = FastAPI(
        title="Tunesmith studio",
        version=version("tunesmith"),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_name_of,
    )
    for subject in SUBJECTS:
        app.include_router(subject.routes(studio), prefix="/api")
    app.add_exception_handler(UserError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(GZipMiddleware, minimum_size=2048)
    app.add_api_route("/reports/{secret}", studio.reports.open, methods=["GET"], include_in_schema=False)
    if STATIC.is_dir():
        app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


def guarded(app: FastAPI, token: str, hosts: Sequence[str], read_only: bool = False) -> ASGIApp:
    """The application as the outside reaches it."""
    return Guard(app, token, hosts, app.version, read_only)


def _name_of(route: APIRoute) -> str:
    """The name of a route in the API's description, from which the page's types are made."""
    return route.name


def _problem(message: str, status: int, **further: Any) -> JSONResponse:
    return JSONResponse({"error": {"message": message, **further}}, status)


async def _refused(request: Request, error: UserError) -> JSONResponse:
    return _problem(str(error), 400)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return _problem(f"{where}: {first['msg']}" if where else first["msg"], 422)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    return _problem(str(error.detail), error.status_code)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return _problem(f"the studio failed: {type(error).__name__}: {error}", 500)
