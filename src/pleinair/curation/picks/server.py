"""The picker's page and its few addresses, served by `pages.loopback`.

    GET  /<token>/                    the page; /<token>/pick.js, /<token>/pick.css
    GET  /<token>/state, /news        what is shown and picked; what changed since
    GET  /<token>/thumb|view|full/ID  pictures, by an id the state named
    POST /<token>/events              wishes, as JSON

Pictures are named by ids made from rows of the warehouse: no path is ever read from an address.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from pleinair.curation.picks.board import Board
from pleinair.curation.picks.events import Wish
from pleinair.curation.store import ObjectStore
from pleinair.curation.thumbnails import THUMB_SIDE, thumbnail_file
from pleinair.pages.loopback import File, Query, RefusedRequestError, served
from pleinair.records.errors import PleinairError

VIEW_SIDE = 1280
_SHOWN_AS_IS = {"png": "image/png", "jpg": "image/jpeg", "gif": "image/gif", "webp": "image/webp", "avif": "image/avif"}


class PickSite:
    """What the picker serves."""

    command = "pleinair pick"
    page = files(__package__).joinpath("page")

    def __init__(self, board: Board, store: ObjectStore) -> None:
        self._board, self._store = board, store

    def get(self, path: Sequence[str], query: Query) -> object | None:
        """State, news or a picture."""
        match path:
            case ["state"]:
                return self._board.state()
            case ["news"]:
                return self._board.news(query["boot"][0], int(query["version"][0]))
            case ["thumb" | "view" | "full" as size, picture]:
                return self._picture(size, picture)
        return None

    def post(self, path: Sequence[str], document: Any) -> object | None:
        """What wishes changed."""
        if list(path) != ["events"]:
            return None
        return {"picks": self._board.wish([Wish(**wish) for wish in document])}

    def _picture(self, size: str, picture: str) -> File:
        path = self._board.path_of(picture)
        if path is None:
            raise RefusedRequestError(HTTPStatus.NOT_FOUND, "no picture of this name is shown")
        suffix = path.rpartition(".")[2]
        if size == "full" and suffix in _SHOWN_AS_IS:
            return File(self._store.get(path), _SHOWN_AS_IS[suffix], keep=True)
        side = THUMB_SIDE if size == "thumb" else VIEW_SIDE
        return File(thumbnail_file(self._store, path, side).read_bytes(), "image/webp", keep=True)


@contextmanager
def board_served(board: Board, store: ObjectStore, token: str, port: int) -> Iterator[str]:
    """Serve the page inside the block, which is given its address. Raises ConfigError when the port is taken."""
    with served(PickSite(board, store), token, port) as address:
        stopping = threading.Event()
        making = threading.Thread(target=_make_thumbnails, args=(board, store, stopping), daemon=True)
        making.start()
        try:
            yield address
        finally:
            stopping.set()
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
