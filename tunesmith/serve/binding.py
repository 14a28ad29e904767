"""The address to listen at, and whether others can reach it."""

import ipaddress
import socket

from tunesmith.errors import UserError, first_line


def bind(host: str, port: int, api_key: str | None) -> socket.socket:
    """A socket that does not listen yet. Raises UserError where it cannot be, or others would reach it without a
    key."""
    if not api_key and not is_loopback(host):
        raise UserError(f"--host {host}: others can reach it, so it needs --api-key (or TUNESMITH_API_KEY)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {first_line(error)}; give another") from None
    return bound


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
