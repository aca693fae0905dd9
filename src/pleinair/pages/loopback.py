"""Pages that take decisions: a server on loopback only, and what it refuses. A `Site` says what is there.

    GET  /<token>/            the page; /<token>/NAME, its script and style, or one of `shared`, which pages have in common
    GET  /<token>/PATH        what the site has: documents, pictures
    POST /<token>/PATH        what somebody did, as JSON

A browser also runs pages of strangers, and they can reach loopback. So: the token in the address is the key; a Host that is
no loopback name is refused (DNS rebinding), as is a POST whose Origin is another page's or that is not JSON (which a form
cannot send); the content policy lets the page load and run nothing but what is served here.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from pleinair.records.errors import ConfigError, DatabaseError, ImageError, SourceError

HOST = "127.0.0.1"
MAX_BODY_BYTES = 2**20
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_SHARED = files(__package__).joinpath("shared")
_MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}

Query = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class File:
    """An answer that is not JSON."""

    body: bytes
    media_type: str
    keep: bool = False
    """Its address names its content, so that the browser may keep it for good."""


class Site(Protocol):
    """What is served. Any thread may call.

    ConfigError, ValueError, TypeError and KeyError become 400, SourceError and ImageError 404, DatabaseError 503.
    """

    command: str
    """What prints the address: `pleinair pick`."""
    page: Traversable
    """The folder of `index.html`, scripts and styles."""

    def get(self, path: Sequence[str], query: Query) -> object | None:
        """A `File`, or a document for JSON; None where nothing is."""
        ...

    def post(self, path: Sequence[str], document: Any) -> object | None:
        """The answer, as of `get`, once what was posted is durable."""
        ...


class RefusedRequestError(Exception):
    """A request that gets an error status and a sentence."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    protocol_version = "HTTP/1.1"
    server_version = "pleinair"
    sys_version = ""
    timeout = 120.0
    disable_nagle_algorithm = True  # a body after its headers would wait for the other side's delayed acknowledgement

    def __init__(self, site: Site, token: str, *connection: Any) -> None:
        self.site, self.token = site, token
        super().__init__(*connection)

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def _answered(self, ask: Callable[[list[str]], object | None]) -> None:
        try:
            answer = ask(self._checked_path())
            if answer is None:
                raise RefusedRequestError(HTTPStatus.NOT_FOUND, "nothing is here")
        except RefusedRequestError as refused:
            self._refuse(refused.status, str(refused))
        except (ConfigError, ValueError, TypeError, KeyError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except DatabaseError as error:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except (SourceError, ImageError) as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        else:
            self._send(answer if isinstance(answer, File) else as_json(answer))

    def _checked_path(self) -> list[str]:
        """The parts of the path behind the token."""
        host = self.headers.get("Host", "")
        name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
        if name.lower() not in _LOOPBACK:
            raise RefusedRequestError(
                HTTPStatus.MISDIRECTED_REQUEST, f"the host {host!r:.80} is not this machine's loopback"
            )
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise RefusedRequestError(HTTPStatus.FORBIDDEN, "another page may not ask this server")
        parts = urlsplit(self.path).path.split("/")
        if len(parts) < 3 or not hmac.compare_digest(parts[1].encode(), self.token.encode()):
            raise RefusedRequestError(HTTPStatus.FORBIDDEN, f"open the address that '{self.site.command}' printed")
        return parts[2:]

    def _get(self, path: list[str]) -> object | None:
        for folder in (self.site.page, _SHARED):
            if len(path) == 1 and (found := page_file(folder, path[0])):
                return found
        return self.site.get(path, parse_qs(urlsplit(self.path).query))

    def _post(self, path: list[str]) -> object | None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            if length.isdigit():  # a sender cut off in the middle would never read the answer
                self.rfile.read(min(int(length), 4 * MAX_BODY_BYTES))
            raise RefusedRequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of {length or 'unknown'} bytes is refused"
            )
        body = self.rfile.read(int(length))
        if self.headers.get("Origin") != f"http://{self.headers['Host']}":
            raise RefusedRequestError(
                HTTPStatus.FORBIDDEN, f"the origin {self.headers.get('Origin')!r:.80} is not this page's"
            )
        if self.headers.get_content_type() != "application/json":
            raise RefusedRequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON")
        return self.site.post(path, json.loads(body))

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        # What is left of an unread body would be taken for the next request.
        self.close_connection = True
        self._send(as_json({"error": why}), status)

    def _send(self, file: File, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        # Pictures are named by content; all else changes, and none of it is for a shared cache.
        self.send_header("Cache-Control", "private, max-age=31536000, immutable" if file.keep else "no-store")
        self.send_header("Content-Type", file.media_type)
        self.send_header("Content-Length", str(len(file.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(file.body)

    def log_message(self, *arguments: object) -> None:
        """A line per picture would be noise."""


def as_json(document: object) -> File:
    """A document as an answer."""
    return File(json.dumps(document).encode(), "application/json")


def page_file(page: Traversable, name: str) -> File | None:
    """A file of the page, `index.html` for no name; None for any other, so that no address reaches out of the folder."""
    wanted = name or "index.html"
    media_type = _MEDIA_TYPES.get(wanted.rpartition(".")[2])
    for one in page.iterdir():
        if one.name == wanted and media_type:
            return File(one.read_bytes(), f"{media_type}; charset=utf-8")
    return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Browsers keep connections open: they are remembered, so that none outlives the server."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """One connection ends."""
        self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """No request is answered from here on."""
        super().server_close()
        for request in list(self._open):
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away in the middle of a picture is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def served(site: Site, token: str, port: int) -> Iterator[str]:
    """Serve a site inside the block, which is given its address. Raises ConfigError when the port is taken."""
    try:
        server = _Server((HOST, port), partial(Handler, site, token))
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used ({error.strerror}): give another with --port") from error
    threading.Thread(target=server.serve_forever, name=site.command, daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_port}/{token}/"
    finally:
        server.shutdown()
        server.server_close()


def kept_token(path: Path) -> str:
    """The key in a page's address: kept, so that a page left open goes on when the server is started again."""
    try:
        if len(kept := path.read_text().strip()) >= 32:
            return kept
    except FileNotFoundError:
        pass
    token = secrets.token_urlsafe(24)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(token)
    return token
