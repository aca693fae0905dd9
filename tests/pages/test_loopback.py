"""The server of pages that take decisions: what it serves, and what it refuses whoever asks."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pleinair.pages.loopback import File, Query, kept_token, served
from pleinair.records.errors import ConfigError, DatabaseError, SourceError
from tests.pages.visitor import REFUSED, Visitor

TOKEN = "t" * 32


class Plain:
    """A site of one page, one document and one picture."""

    command = "pleinair test"

    def __init__(self, page: Path) -> None:
        self.page = page
        self.posted: list[Any] = []

    def get(self, path: Sequence[str], query: Query) -> object | None:
        match path:
            case ["state"]:
                return {"asked": query.get("of", [])}
            case ["picture", name]:
                return File(name.encode(), "image/png", keep=True)
            case ["fail", kind]:
                raise {"config": ConfigError, "database": DatabaseError, "source": SourceError}[kind](kind)
        return None

    def post(self, path: Sequence[str], document: Any) -> object | None:
        if list(path) != ["notes"]:
            return None
        self.posted.append(document)
        return {"num": len(self.posted)}


@pytest.fixture
def site(tmp_path: Path) -> Plain:
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html>hello")
    (page / "x.js").write_text("1")
    (page / "secret.py").write_text("no")
    (tmp_path / "above.css").write_text("no")
    return Plain(page)


@pytest.fixture
def visitor(site: Plain) -> Iterator[Visitor]:
    with served(site, TOKEN, 0) as address:
        yield Visitor(address)


def test_pages_documents_and_files_are_served_under_a_policy_that_allows_nothing_else(visitor: Visitor) -> None:
    kinds = {
        "": "text/html; charset=utf-8",
        "index.html": "text/html; charset=utf-8",
        "x.js": "text/javascript; charset=utf-8",
        "outbox.js": "text/javascript; charset=utf-8",
        "state?of=it": "application/json",
        "picture/red": "image/png",
    }
    for path, kind in kinds.items():
        status, _, headers = visitor.ask(path)
        assert (status, headers["Content-Type"]) == (200, kind)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert ("immutable" in headers["Cache-Control"]) == (path == "picture/red")
    assert visitor.ask("state?of=it")[1] == {"asked": ["it"]}


@pytest.mark.parametrize("place", range(len(REFUSED)))
def test_what_another_page_or_a_wrong_address_asks_is_refused(visitor: Visitor, site: Plain, place: int) -> None:
    status, asked = REFUSED[place]
    found, told, headers = visitor.ask(**asked)
    assert (found, set(told)) == (status, {"error"})
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert site.posted == []


@pytest.mark.parametrize("path", ["secret.py", "..", "../above.css", "..%2fabove.css", "page", "nothing"])
def test_no_address_reaches_a_file_that_is_not_of_the_page(visitor: Visitor, path: str) -> None:
    assert visitor.ask(path)[0] == 404


def test_errors_become_statuses_with_their_sentence(visitor: Visitor) -> None:
    told = {kind: visitor.ask(f"fail/{kind}")[:2] for kind in ("config", "database", "source")}
    assert told == {
        "config": (400, {"error": "config"}),
        "database": (503, {"error": "database"}),
        "source": (404, {"error": "source"}),
    }


def test_posts_from_the_page_itself_arrive_and_others_are_not_read_on(visitor: Visitor, site: Plain) -> None:
    assert visitor.ask("notes", [1, 2])[1] == {"num": 1}
    connection = http.client.HTTPConnection("127.0.0.1", visitor.port, timeout=20)
    smuggled = f"POST /{TOKEN}/notes HTTP/1.1\r\n"
    connection.request("POST", "/wrong/notes", smuggled, {"Host": f"127.0.0.1:{visitor.port}"})
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Connection"]) == (403, "close")
    connection.close()
    assert site.posted == [[1, 2]]


def test_a_port_that_is_taken_is_said_and_a_stopped_server_is_gone(site: Plain) -> None:
    with served(site, TOKEN, 0) as address:
        port = Visitor(address).port
        with pytest.raises(ConfigError, match="--port"), served(site, TOKEN, port):
            pass
    assert site.command not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConnectionRefusedError):
        Visitor(address).ask("state")


def test_a_connection_a_browser_keeps_open_is_not_answered_once_the_server_has_ended(site: Plain) -> None:
    with served(site, TOKEN, 0) as address:
        port = Visitor(address).port
        kept = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        where = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json"}
        kept.request("POST", f"/{TOKEN}/notes", "1", where)
        assert kept.getresponse().read() == b'{"num": 1}'
    with suppress(ConnectionError, http.client.HTTPException):
        kept.request("POST", f"/{TOKEN}/notes", "2", where)
        kept.getresponse()
    kept.close()
    assert site.posted == [1]


def test_a_token_is_made_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    token = kept_token(path)
    assert len(token) >= 32
    assert kept_token(path) == token
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("short")
    assert len(kept_token(path)) >= 32
