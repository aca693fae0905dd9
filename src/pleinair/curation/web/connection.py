"""One HTTP request to an address that was checked, within a time and a number of bytes.

`http.client` speaks the protocol; what it lacks is put around it: the connection goes to a given address while Host and
the TLS name stay the URL's, redirects are answers, and one deadline covers connecting, the handshake, the headers and
the body, so a server that sends a byte now and then is left after `max_seconds`. No proxy is used: it would resolve
names itself.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any, cast

from pleinair.curation.web.addresses import Target
from pleinair.curation.web.policy import FetchPolicy
from pleinair.records.errors import ImageError, SourceError

_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """What a server said."""

    status: int
    headers: Message
    body: bytes
    """Empty unless the status is 200."""


def ask(target: Target, address: str, policy: FetchPolicy, *, max_bytes: int | None = None) -> Answer:
    """GET the target from `address`.

    Raises ImageError for a body that is too large or encoded, SourceError for what may pass: no connection, a broken
    certificate, a cut, the deadline.
    """
    until = time.monotonic() + policy.max_seconds
    try:
        with _connected(target, address, until) as wire:
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.sock = cast(socket.socket, _Wire(wire, until))
            connection.request("GET", target.path, headers=_headers(target, policy))
            with connection.getresponse() as response:
                body = _body(response, target.url, max_bytes or policy.max_bytes) if response.status == 200 else b""
                return Answer(response.status, response.headers, body)
    except ImageError:
        raise
    except TimeoutError as error:
        raise SourceError(
            f"{target.url} was not there after {policy.max_seconds:g} s: try later or raise fetch.max_seconds"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise SourceError(f"{target.url} cannot be fetched ({said}): try later") from error


def _headers(target: Target, policy: FetchPolicy) -> Mapping[str, str]:
    return {
        "Host": target.origin.partition("://")[2],
        "User-Agent": policy.user_agent,
        "Accept": "image/*, */*;q=0.5",
        # Pictures are compressed already; an encoding would only be a place for a bomb.
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


def _body(response: http.client.HTTPResponse, url: str, most: int) -> bytes:
    """The body, given up as soon as it proves too long."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ImageError(f"encoded: {url} came as {encoding} although identity was asked for; store it plain")
    # Only where the length is given; http.client sets it to None for a chunked body.
    expected = response.length
    if expected is not None and expected > most:
        raise ImageError(f"large: {url} says {expected} bytes, over {most}; raise fetch.max_bytes")
    body = bytearray()
    while chunk := response.read1(_CHUNK_BYTES):
        body += chunk
        if len(body) > most:
            raise ImageError(f"large: {url} goes on after {most} bytes; raise fetch.max_bytes")
    if expected is not None and len(body) < expected:
        raise OSError(f"cut off after {len(body)} of {expected} bytes")
    return bytes(body)


@contextmanager
def _connected(target: Target, address: str, until: float) -> Iterator[socket.socket]:
    """A socket to the address, TLS and the certificate checked against the URL's name where the scheme says so."""
    wire = socket.create_connection((address, target.port), timeout=_left(until))
    try:
        if target.scheme == "https":
            wire.settimeout(_left(until))
            wire = _tls().wrap_socket(wire, server_hostname=target.host)
        yield wire
    finally:
        wire.close()


def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("out of time")
    return left


class _Wire:
    """The little of a socket that http.client needs, every read and write ending by one moment."""

    def __init__(self, wire: socket.socket, until: float) -> None:
        self._wire, self._until = wire, until

    def sendall(self, data: bytes) -> None:
        self._wire.settimeout(_left(self._until))
        self._wire.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reading(self._wire, self._until), _CHUNK_BYTES)

    def close(self) -> None:
        """Nothing: http.client closes before the body is read; `_connected` closes at the end."""


class _Reading(io.RawIOBase):
    def __init__(self, wire: socket.socket, until: float) -> None:
        self._wire, self._until = wire, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wire.settimeout(_left(self._until))
        return self._wire.recv_into(buffer)
