"""The picker's page and its few addresses, on loopback only.

    GET  /<token>/                    the page; /<token>/pick.js, /<token>/pick.css
    GET  /<token>/state, /news        what is shown and picked; what changed since
    GET  /<token>/thumb|view|full/ID  pictures, by an id the state named
    POST /<token>/events              wishes, as JSON

A browser also runs pages of strangers, and they can reach loopback. So: the token in the address is the key; a Host that is
no loopback name is refused (DNS rebinding), as is a POST whose Origin is another page's or that is not JSON (which a form
cannot send); the content policy lets the page load and run nothing but what is served here. Pictures are named by ids
made from rows of the warehouse: no path is ever read from an address.
"""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pleinair.curation.picks.board import Board
from pleinair.curation.picks.events import Wish
from pleinair.curation.store import ObjectStore
from pleinair.curation.thumbnails import THUMB_SIDE, thumbnail_file
from pleinair.records.errors import ConfigError, DatabaseError, ImageError, PleinairError, SourceError

HOST = "127.0.0.1"
VIEW_SIDE = 1280
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
_PAGE = {
    "": ("index.html", "text/html; charset=utf-8"),
    "pick.js": ("pick.js", "text/javascript; charset=utf-8"),
    "pick.css": ("pick.css", "text/css; charset=utf-8"),
}
_SHOWN_AS_IS = {"png": "image/png", "jpg": "image/jpeg", "gif": "image/gif", "webp": "image/webp", "avif": "image/avif"}


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

    def __init__(self, board: Board, store: ObjectStore, token: str, *connection: Any) -> None:
        self.board, self.store, self.token = board, store, token
        super().__init__(*connection)

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def _answered(self, answer: Any) -> None:
        try:
            answer(self._checked_path())
        except RefusedRequestError as refused:
            self._refuse(refused.status, str(refused))
        except (ConfigError, ValueError, TypeError, KeyError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except DatabaseError as error:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except (SourceError, ImageError) as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))

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
            raise RefusedRequestError(HTTPStatus.FORBIDDEN, "open the address that 'pleinair pick' printed")
        return parts[2:]

    def _get(self, path: list[str]) -> None:
        match path:
            case [name] if name in _PAGE:
                file, media_type = _PAGE[name]
                self._send(files(__package__).joinpath("page", file).read_bytes(), media_type)
            case ["state"]:
                self._send_document(self.board.state())
            case ["news"]:
                asked = parse_qs(urlsplit(self.path).query)
                self._send_document(self.board.news(asked["boot"][0], int(asked["version"][0])))
            case ["thumb" | "view" | "full" as size, picture]:
                self._send_picture(size, picture)
            case _:
                raise RefusedRequestError(HTTPStatus.NOT_FOUND, "nothing is here")

    def _post(self, path: list[str]) -> None:
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
        if path != ["events"]:
            raise RefusedRequestError(HTTPStatus.NOT_FOUND, "nothing is here")
        wishes = [Wish(**wish) for wish in json.loads(body)]
        self._send_document({"picks": self.board.wish(wishes)})

    def _send_picture(self, size: str, picture: str) -> None:
        path = self.board.path_of(picture)
        if path is None:
            raise RefusedRequestError(HTTPStatus.NOT_FOUND, "no picture of this name is shown")
        suffix = path.rpartition(".")[2]
        if size == "full" and suffix in _SHOWN_AS_IS:
            return self._send(self.store.get(path), _SHOWN_AS_IS[suffix], keep=True)
        side = THUMB_SIDE if size == "thumb" else VIEW_SIDE
        return self._send(thumbnail_file(self.store, path, side).read_bytes(), "image/webp", keep=True)

    def _send_document(self, document: object) -> None:
        self._send(json.dumps(document).encode(), "application/json")

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        # What is left of an unread body would be taken for the next request.
        self.close_connection = True
        self._send(json.dumps({"error": why}).encode(), "application/json", status)

    def _send(self, body: bytes, media_type: str, status: HTTPStatus = HTTPStatus.OK, *, keep: bool = False) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        # Pictures are named by content; all else changes, and none of it is for a shared cache.
        self.send_header("Cache-Control", "private, max-age=31536000, immutable" if keep else "no-store")
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """A line per picture would be noise."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that goes away in the middle of a picture is no error."""
        import sys

        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def board_served(board: Board, store: ObjectStore, token: str, port: int) -> Iterator[str]:
    """Serve the page inside the block, which is given its address. Raises ConfigError when the port is taken."""
    try:
        server = _Server((HOST, port), partial(Handler, board, store, token))
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used ({error.strerror}): give another with --port") from error
    threading.Thread(target=server.serve_forever, name="pleinair-pick", daemon=True).start()
    stopping = threading.Event()
    making = threading.Thread(target=_make_thumbnails, args=(board, store, stopping), daemon=True)
    making.start()
    try:
        yield f"http://{HOST}:{server.server_port}/{token}/"
    finally:
        stopping.set()
        server.shutdown()
        server.server_close()
        making.join()


def _make_thumbnails(board: Board, store: ObjectStore, stopping: threading.Event) -> None:
    """Make what the page will ask for, in its order, so that a person finds them made."""
    for one in board.shown:
        if stopping.is_set():
            return
        try:
            thumbnail_file(store, one.image_path)
        except PleinairError:
            continue  # the page says so where it is shown
