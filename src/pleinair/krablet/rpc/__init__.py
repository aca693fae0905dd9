"""Reading through the service: a client whose streams every Arrow library takes.

images = rpc.connect("grpc+tls://rpc.example:8815", token=...)
images.read("images", where="contains_text", columns=["image_name", "length"]).to_table()
images.get("images", ["a.png", "b.png"])
images.sql("SELECT image_name FROM images WHERE length > 1000")
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import flight

from pleinair.krablet.addresses import Address
from pleinair.krablet.closing import Closing
from pleinair.krablet.connections import UnreachableError
from pleinair.krablet.reading.requests import (
    CancelledError,
    GetRequest,
    LimitError,
    ReadError,
    Request,
    ScanRequest,
    SqlRequest,
    to_json,
)
from pleinair.records.errors import ConfigError, DatabaseError

_KINDS: dict[str, type[DatabaseError]] = {
    "limit": LimitError,
    "cancelled": CancelledError,
    "unreachable": UnreachableError,
    "refused": ReadError,
    "database": DatabaseError,
}
_TAGGED = re.compile(r"\[(" + "|".join(_KINDS) + r")\] (.*)", re.DOTALL)
_TAIL = re.compile(r"(\. Detail: |\. gRPC client debug context: |\. Client context: ).*", re.DOTALL)


class Reading(Closing):
    """A running read: an iterator of Arrow batches, and an Arrow stream for any library that takes one.

    `to_table` and `to_reader` serve pandas, polars and DuckDB. Leaving a `with` block, or `close`, ends the queries.
    """

    def __init__(self, reader: flight.FlightStreamReader, address: str) -> None:
        self._reader = reader
        self._address = address
        self.schema: pa.Schema = reader.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        try:
            return self._reader.read_chunk().data
        except StopIteration:
            raise
        except pa.ArrowException as error:
            raise _ours(error, self._address) from error

    def close(self) -> None:
        """End the read, on the shards too. Does nothing after the last batch."""
        self._reader.cancel()

    def to_table(self) -> pa.Table:
        """All rows, in memory."""
        return pa.Table.from_batches(list(self), self.schema)

    def to_reader(self) -> pa.RecordBatchReader:
        """What DuckDB scans by its variable's name."""
        return pa.RecordBatchReader.from_batches(self.schema, self)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.to_reader().__arrow_c_stream__(requested_schema)


class Client(Closing):
    """A connection to the read service, made by `connect`; any thread may call, and it is a context manager."""

    def __init__(self, client: flight.FlightClient, address: str, options: flight.FlightCallOptions) -> None:
        self._client = client
        self._address = address
        self._options = options

    def close(self) -> None:
        self._client.close()

    def read(
        self,
        table: str,
        *,
        where: str = "TRUE",
        columns: Sequence[str] | None = None,
        order_by: str | Sequence[str] = (),
        limit: int | None = None,
        aggregate: Mapping[str, str] | None = None,
        group_by: str | Sequence[str] = (),
        params: Any = None,
    ) -> Reading:
        """The rows of all shards that match, or aggregates of them; the arguments are those of ScanRequest."""
        request = ScanRequest(
            table=table, where=where, columns=columns, order_by=order_by, limit=limit, aggregate=aggregate or {},
            group_by=group_by, params=params,
        )  # fmt: skip
        return self._start(request)

    def get(self, table: str, keys: Sequence[Any], columns: Sequence[str] | None = None) -> pa.Table:
        """The rows with these keys in the order asked; a key that does not exist gives no row."""
        wanted = None if columns is None else tuple(columns)
        return self._start(GetRequest(table=table, keys=tuple(keys), columns=wanted)).to_table()

    def sql(self, query: str) -> Reading:
        """What one SELECT gives; over several shards, filtered rows of one table."""
        return self._start(SqlRequest(query=query))

    def schema(self, table: str) -> pa.Schema:
        try:
            return self._client.get_flight_info(flight.FlightDescriptor.for_path(table), self._options).schema
        except pa.ArrowException as error:
            raise _ours(error, self._address) from error

    def tables(self) -> list[dict[str, Any]]:
        """Declared tables: name, key, columns, stages."""
        tables: list[dict[str, Any]] = self._action("tables")
        return tables

    def stats(self) -> dict[str, Any]:
        """What the service has done: reads, rows, bytes, rows_per_second, shards."""
        stats: dict[str, Any] = self._action("stats")
        return stats

    def _action(self, name: str) -> Any:
        try:
            [answer] = self._client.do_action(flight.Action(name, b""), self._options)
        except pa.ArrowException as error:
            raise _ours(error, self._address) from error
        return json.loads(answer.body.to_pybytes())

    def _start(self, request: Request) -> Reading:
        try:
            reader = self._client.do_get(flight.Ticket(to_json(request)), self._options)
            return Reading(reader, self._address)
        except pa.ArrowException as error:
            raise _ours(error, self._address) from error


def connect(address: str, *, token: str | None = None, tls_roots: Path | None = None, insecure: bool = False) -> Client:
    """Connect to the service at `grpc://host:port` or `grpc+tls://host:port`.

    `tls_roots` is a file with the certificate that signed the service's, if the system does not know it. A token is
    sent without TLS only within this machine, unless `insecure`. Raises ConfigError; whether the service is there shows
    at the first read.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("grpc", "grpc+tls") or not parts.hostname or not parts.port:
        raise ConfigError(
            f"{address!r} is not an address of a read service: write grpc+tls://host:port or grpc://host:port"
        )
    if token is not None and parts.scheme == "grpc" and not Address(parts.hostname).is_local and not insecure:
        raise ConfigError(f"the token would be sent to {address} in the clear: use grpc+tls://, or say insecure")
    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
    try:
        roots = {} if tls_roots is None else {"tls_root_certs": Path(tls_roots).read_bytes()}
    except OSError as error:
        raise ConfigError(f"the certificate {tls_roots} cannot be read: {error.strerror}; correct its path") from error
    return Client(flight.FlightClient(address, **roots), address, flight.FlightCallOptions(headers=headers))


def _ours(error: pa.ArrowException, address: str) -> DatabaseError:
    """The error the service raised, by the kind in front of its message."""
    message = str(error)
    if tagged := _TAGGED.search(message):
        return _KINDS[tagged[1]](_TAIL.sub("", tagged[2]))
    first = _TAIL.sub("", message).splitlines()[0]
    if isinstance(error, flight.FlightUnauthenticatedError):
        return ReadError(f"the service at {address} refuses this client: {first}")
    if isinstance(error, flight.FlightUnavailableError):
        return UnreachableError(f"the service at {address} cannot be reached: {first}; start it or correct the address")
    return DatabaseError(f"the service at {address} failed: {first}; see its log")
