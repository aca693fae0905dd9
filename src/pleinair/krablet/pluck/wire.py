"""What a worker and its function process say to each other: frames over a socket, and what became of each row.

    worker   -- setup (JSON), the function (bytes), then rows (pickled) -->  function process
             <-- {"ready"} | {"refused"} | {"failed"}, then outcomes (JSON) --

The function process runs foreign code, so nothing that comes from it is unpickled: only JSON travels back.
"""

from __future__ import annotations

import base64
import datetime
import json
import socket
import struct
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

LARGEST_FRAME_BYTES = 1 << 30
_HEAD = struct.Struct(">Q")
_LONGEST_MESSAGE, _LONGEST_TRACEBACK = 2000, 8000


@dataclass(frozen=True)
class Failure:
    """Why a row failed: the exception's type, its text, and where it was raised."""

    exception: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.exception}: {self.message}"


Outcome = Failure | list[Any]
"""What became of one row: the values to write, in the order of the output's columns, or why there are none."""


def failure_of(error: BaseException) -> Failure:
    """An exception as text that any text column can hold, shortened from the outside in."""
    kind = type(error)
    name = (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )
    trace = "".join(traceback.format_exception(error))
    return Failure(storable(name)[:200], storable(str(error))[:_LONGEST_MESSAGE], storable(trace)[-_LONGEST_TRACEBACK:])


def storable(text: str) -> str:
    """`text` without what Postgres cannot store: NUL and lone surrogates."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def encode_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    packed = [
        {"failure": asdict(outcome)} if isinstance(outcome, Failure) else {"values": [_tagged(v) for v in outcome]}
        for outcome in outcomes
    ]
    return json.dumps({"outcomes": packed}).encode()


def decode_outcomes(message: dict[str, Any], num_rows: int, num_columns: int) -> list[Outcome]:
    """The outcomes in a message of a function process. Raises ValueError if they are not what was asked for."""
    packed = message["outcomes"]
    if len(packed) != num_rows:
        raise ValueError(f"{len(packed)} outcomes for {num_rows} rows")
    return [_decoded(item, num_columns) for item in packed]


def _decoded(item: dict[str, Any], num_columns: int) -> Outcome:
    if "failure" in item:
        return Failure(**{name: storable(str(item["failure"][name])) for name in ("exception", "message", "traceback")})
    values = [_untagged(value) for value in item["values"]]
    if len(values) != num_columns:
        raise ValueError(f"{len(values)} values for {num_columns} columns")
    return list(values)


def _tagged(value: object) -> object:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, datetime.datetime):
        return {"datetime": value.isoformat()}
    if isinstance(value, datetime.date):
        return {"date": value.isoformat()}
    return value


def _untagged(value: Any) -> object:
    if not isinstance(value, dict):
        return value
    [(tag, text)] = value.items()
    if tag == "bytes":
        return base64.b64decode(text)
    return datetime.datetime.fromisoformat(text) if tag == "datetime" else datetime.date.fromisoformat(text)


def send_frame(link: socket.socket, data: bytes) -> None:
    link.sendall(_HEAD.pack(len(data)))
    link.sendall(data)


class FrameReader:
    """Frames out of a socket; a socket with a timeout may raise TimeoutError between two calls and go on later."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._unread = bytearray()

    def read(self) -> bytes | None:
        """The next frame, or None at the end of the stream. Raises ValueError for a frame too large to be honest."""
        while len(self._unread) < _HEAD.size or len(self._unread) < self._wanted():
            received = self._link.recv(1 << 20)
            if not received:
                return None
            self._unread += received
        end = self._wanted()
        frame = bytes(self._unread[_HEAD.size : end])
        del self._unread[:end]
        return frame

    def _wanted(self) -> int:
        size: int = _HEAD.unpack_from(self._unread)[0]
        if size > LARGEST_FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes; at most {LARGEST_FRAME_BYTES} are read")
        return _HEAD.size + size
