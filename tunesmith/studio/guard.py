"""Decides which requests reach the studio. Other web pages in the same browser must neither read nor change anything.

Each check stops one attack:

    Host            DNS rebinding: a page's own domain name that points at this machine
    Origin          requests of other pages, and of pages without an origin ("null", as in a sandboxed frame)
    Sec-Fetch-Site  the same, for requests without Origin such as images
    token           everything that does not know the address which `tunesmith studio` printed; no cookies are used,
                    so a browser never sends it by itself
    Content-Type    forms, which browsers send to other sites without asking first
    Content-Length  bodies that fill the memory
"""

import hmac
import time
from collections import deque
from collections.abc import Sequence

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from tunesmith.serve.binding import is_address, is_loopback, name_in

TOKEN_HEADER = "X-Tunesmith-Token"
VERSION_HEADER = "X-Tunesmith-Version"
MOST_BODY_BYTES = 32 * 2**20  # of JSON; uploads have a limit of their own
BINARY = "application/octet-stream"
UPLOADS = "/api/uploads"  # the only address that takes it
CHANGES = ("POST", "PUT", "PATCH", "DELETE")
OWN_SITES = ("same-origin", "none")  # none: the user typed the address
MOST_FAILED = 1_000  # addresses whose failures are counted
FAILURES, FAILURE_SECONDS = 20, 60.0  # so many wrong tokens from another machine in so long a time, then it waits
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-src 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types dompurify"
)
HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Middleware that lets only the studio's own page and its user through."""

    def __init__(
        self,
        app: ASGIApp,
        token: str,
        hosts: Sequence[str],
        version: str,
        read_only: bool = False,
    ):
        """`hosts`: names allowed in the Host header. `read_only`: refuses all requests that change something."""
        self._app, self._token, self._hosts, self._version = app, token, frozenset(hosts), version
        self._read_only = read_only
        self._failures: dict[str, deque[float]] = {}  # of the addresses that failed last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await WebSocketClose()(scope, receive, send)
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        refused = self._refusal(scope, headers)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    own.setdefault(name, value)
                own[VERSION_HEADER] = self._version
                # Else a browser may keep an old page after an update.
                own.setdefault("Cache-Control", "no-store" if scope["path"].startswith("/api/") else "no-cache")
            await send(message)

        if refused:
            status, message = refused
            app: ASGIApp = JSONResponse({"error": {"message": message}}, status)
        else:
            app = self._app
        return await app(scope, receive, with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Returns the status and the message that refuse a request, or None."""
        method, path = scope["method"], scope["path"]
        client = (scope.get("client") or ("",))[0]
        host = headers.get("host", "")
        name = name_in(host)
        if name not in self._hosts and not (name and is_address(name)):  # no domain name is an address
            return 403, f"the host {host!r} is not allowed; --allow-host NAME allows a name of this machine"
        origin = headers.get("origin")
        if origin is not None and not _is_own(origin, host):
            return 403, f"the studio does not answer pages of {origin}"
        # A link on another page may open the studio, which shows nothing without its token.
        is_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate" and not path.startswith("/api/")
        if headers.get("sec-fetch-site", "none") not in OWN_SITES and not is_link:
            return 403, "the studio does not answer requests of other pages"
        if not path.startswith("/api/"):
            return None if method in ("GET", "HEAD") else (405, "send changes to /api")
        return self._wrong_token(client, headers) or self._wrong_change(method, path, headers)

    def _wrong_token(self, client: str, headers: Headers) -> tuple[int, str] | None:
        now = time.monotonic()
        failures = self._failures.get(client, deque(maxlen=FAILURES))
        if len(failures) == FAILURES and now - failures[0] < FAILURE_SECONDS:
            return 429, "too many requests with a wrong token; wait a minute"
        if hmac.compare_digest(headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            return None
        if TOKEN_HEADER in headers and client and not is_loopback(client):
            failures.append(now)
            self._failures.pop(client, None)
            self._failures[client] = failures
            if len(self._failures) > MOST_FAILED:
                self._failures.pop(next(iter(self._failures)))
        return 401, "the token is missing or wrong; open the address that `tunesmith studio` printed"

    def _wrong_change(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        if method not in CHANGES:
            return None
        if self._read_only:
            return 403, "this studio can be read only; start it with --allow-changes"
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers and (kind, path) != (BINARY, UPLOADS):
            return 411, "send the header Content-Length, and no Transfer-Encoding"  # which would count instead of it
        if method == "DELETE" and length in ("", "0"):
            return None  # no form can send it, and a script of another page must ask first
        if (kind, path) == (BINARY, UPLOADS):
            return None  # an upload, which checks its own size
        if kind != "application/json":
            return 415, "send JSON with the header 'Content-Type: application/json'"
        if not length.isdigit():
            return 411, "send the header Content-Length"
        if int(length) > MOST_BODY_BYTES:
            return 413, f"the request has more than {MOST_BODY_BYTES // 2**20} MB"
        return None


def _is_own(origin: str, host: str) -> bool:
    """Whether an Origin header is that of the page which this Host serves. "null" never is."""
    return origin in (f"http://{host}", f"https://{host}")
