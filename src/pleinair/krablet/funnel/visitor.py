"""Asking a funnel service what it counts, without being one of its clients: for monitors and people.

A visitor registers nothing, so it is answered even while Postgres is away or a flush takes long.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

from pleinair.krablet.addresses import Address, parse_address
from pleinair.krablet.funnel import wire
from pleinair.krablet.funnel.errors import FunnelError

TIMEOUT_SECONDS = 10.0


def service_stats(address: str, *, token: str = "", tls: ssl.SSLContext | None = None) -> dict[str, Any]:
    """The fields of `FunnelStats`, of the funnel at `address`. Raises FunnelError."""
    try:
        with _connected(parse_address(address), tls) as link:
            hello = [wire.HELLO, wire.VERSION, token, None, "", False]
            link.sendall(wire.frame(hello) + wire.frame([wire.STATS]))
            return _statistics(link)
    except OSError as error:
        raise FunnelError(f"the funnel at {address} cannot be asked: {error}; see whether it runs") from error


def _connected(address: Address, tls: ssl.SSLContext | None) -> socket.socket:
    if address.is_unix:
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(TIMEOUT_SECONDS)
        link.connect(address.path)
    else:
        link = socket.create_connection((address.host, address.port), TIMEOUT_SECONDS)
    return link if tls is None else tls.wrap_socket(link, server_hostname=address.host or "localhost")


def _statistics(link: socket.socket) -> dict[str, Any]:
    frames = wire.Frames()
    while data := link.recv(65_536):
        frames.feed(data)
        while (found := frames.next()) is not None:
            match found[0]:
                case [wire.STATS, dict(counters)]:
                    return counters
                case [wire.REFUSE, reason, _]:
                    raise FunnelError(f"the funnel refuses: {reason}")
    raise FunnelError("the funnel closed the connection without an answer (does it require TLS?)")
