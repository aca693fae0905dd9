"""A real web server on this machine, for tests of what goes to the web."""

from __future__ import annotations

import http.server
import io
import threading
import time
from collections.abc import Callable

from PIL import Image

from pleinair.curation.web import FetchPolicy

Route = Callable[[http.server.BaseHTTPRequestHandler], None]


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (80, 80), colour).save(out, "PNG")
    return out.getvalue()


class Site:
    """A real HTTP server: routes by path, every request logged with its moment and its headers."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.routes: dict[str, Route] = {}
        self.log: list[str] = []
        self.times: list[float] = []
        self.agents: set[str] = set()
        self.hosts: set[str] = set()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.log.append(self.path)
                site.times.append(time.monotonic())
                site.agents.add(self.headers["User-Agent"])
                site.hosts.add(self.headers["Host"])
                site.routes.get(self.path, answer(404))(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer((address, 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://{address}:{self.port}"
        self.policy = FetchPolicy(
            contact="mailto:test@lab.example",
            allow_networks=("127.0.0.1/32",),
            allow_ports=(self.port,),
            delay_seconds=0.0,
            attempts=1,
            max_seconds=5.0,
        )
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def asked(self) -> list[str]:
        """Paths asked for, the files of the site's rules left out."""
        rules = ("/robots.txt", "/ai.txt", "/.well-known/tdmrep.json")
        return [path for path in self.log if path not in rules]


def answer(status: int = 200, body: bytes | None = None, **headers: str) -> Route:
    def route(handler: http.server.BaseHTTPRequestHandler) -> None:
        data = (png() if status == 200 else b"") if body is None else body
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return route
