"""The address that the server listens on, and the checks on who may call it."""

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from tunesmith.errors import UserError

HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
KEY_FLAG = "--api-key (or TUNESMITH_API_KEY)"
USUAL_PORTS = {"http": 80, "https": 443}  # browsers omit these in an origin


def listen(host: str, port: int, api_key: str | None, key_flag: str = KEY_FLAG) -> socket.socket:
    """Returns a listening socket. It is opened before the model loads, so that a second server fails at once; clients
    that connect early wait. Raises UserError if the address cannot be used, or if it is open to others without a
    key."""
    if not api_key and not is_loopback(host):
        raise UserError(f"--host {host}: other machines can reach it, so it needs {key_flag}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except OSError as error:
        why = "in use, perhaps by another server" if error.errno == errno.EADDRINUSE else error.strerror
        raise UserError(f"--host {host} --port {port}: {why}; choose another") from None
    return bound


def check_callers(
    api_key: str | None, cors: Sequence[str], allow_host: Sequence[str], key_flag: str = KEY_FLAG
) -> None:
    """Raises UserError for a key, origin or host name that no client could send."""
    if api_key is not None and (
        not api_key.isascii() or not api_key.isprintable() or api_key.strip() != api_key or not api_key
    ):
        raise UserError(f"{key_flag}: use printable ASCII without spaces around it; a header can contain nothing else")
    for origin in cors:
        if origin not in ("*", "null") and not _is_origin(origin):
            raise UserError(
                f"--cors {origin}: not an origin as browsers send it, like http://localhost:3000 (lower case, no path)"
            )
    for name in allow_host:
        if not HOST_NAME.fullmatch(name) and not is_address(name):
            raise UserError(f"--allow-host {name}: not a host name; write it in lower case, without scheme and port")


def own_names(host: str, allow_host: Sequence[str]) -> list[str]:
    """Returns the allowed names in the Host header. An empty list allows any name: the server is then open to
    others."""
    if not is_loopback(host) and not allow_host:
        return []
    return ["localhost", "127.0.0.1", "::1", host.lower(), *allow_host]


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    return is_address(host) and ipaddress.ip_address(host).is_loopback


def name_in(host: str) -> str | None:
    """Returns the name in a Host header, without the port and IPv6 brackets, or None if it is invalid."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        usual = parts.port is not None and USUAL_PORTS.get(parts.scheme) == parts.port
    except ValueError:
        return False
    return bool(parts.hostname) and not usual and origin == f"{parts.scheme}://{parts.netloc}".lower()
