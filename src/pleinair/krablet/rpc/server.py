"""The read service: Arrow Flight in front of the shards, in place of a connection pooler.

    client --gRPC, token, TLS--> do_get(ticket = request as JSON) --> scan | get | sql --> pools to every shard
                                 get_flight_info(path or request): the schema        actions: tables, stats

Flight was taken because its batches are Arrow on the wire: nothing is converted between the shards' COPY data and the
reader, and gRPC's flow control is the back-pressure. The price is a thread per running read.

    serving --SIGTERM: new reads are refused--> draining --all ended, or drain_seconds--> stopped
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import flight

from pleinair.krablet.addresses import Address
from pleinair.krablet.connections import UnreachableError
from pleinair.krablet.reading.catalog_list import list_tables
from pleinair.krablet.reading.limits import Limits, Run
from pleinair.krablet.reading.ownership import SlotPlaces
from pleinair.krablet.reading.pools import ReadPools
from pleinair.krablet.reading.reader import require_readers
from pleinair.krablet.reading.requests import (
    CancelledError,
    LimitError,
    ReadError,
    Request,
    ScanRequest,
    SqlRequest,
    from_json,
    to_json,
)
from pleinair.krablet.reading.scan import BatchStream, get, scan, sql
from pleinair.krablet.rpc.stats import ServiceStats
from pleinair.krablet.rpc.tokens import RequireToken, TokenFile
from pleinair.records.errors import ConfigError, DatabaseError, PleinairError

SERVICE_LIMITS = Limits(rows=100_000_000, bytes=64 * 2**30, seconds=600.0)
STOP_SECONDS = 3.0
_LONGEST_MESSAGE = 4000  # gRPC sends errors in trailers, which hold 8 kB


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """How the service listens and what it allows."""

    host: str = "127.0.0.1"
    port: int = 8815
    """0 takes a free port."""
    token_file: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    limits: Limits = SERVICE_LIMITS
    insecure: bool = False
    """Listen beyond this machine without tokens or TLS."""
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError("one of TLS certificate and key is given: give both, or neither")
        if not self.address.is_local and not self.insecure and not (self.token_file and self.tls_key):
            raise ConfigError(
                f"the service would listen on {self.host} without {'TLS' if self.token_file else 'tokens'}: give "
                "--token-file, --tls-cert and --tls-key, listen on 127.0.0.1, or say --insecure"
            )

    @property
    def address(self) -> Address:
        return Address(self.host, self.port)

    @property
    def location(self) -> str:
        """As Flight writes it."""
        return f"grpc{'+tls' if self.tls_key else ''}://{self.address}"


class ReadService(flight.FlightServerBase):  # type: ignore[misc]
    """A running service; it listens once it is made. `close` drains it.

    Raises ReadError when a login of the pools is more than a reader, unless `trusted`.
    """

    def __init__(self, pools: ReadPools, config: ServiceConfig, *, trusted: bool = False) -> None:
        if not trusted:
            require_readers(pools)
        self.config = config
        self._pools = pools
        self._places = SlotPlaces()
        self.stats = ServiceStats(pools)
        self._draining = False
        try:
            super().__init__(config.location, **_security(config))
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(
                f"the service cannot listen on {config.location}: {error}; give another --listen"
            ) from error

    @property
    def address(self) -> str:
        """What a client connects to."""
        return replace(self.config, port=self.port).location

    def close(self) -> bool:
        """Refuse new reads, let running ones end for `drain_seconds`, then end them. Call it from one thread.

        False when a reader that neither reads nor leaves still holds its thread; its queries have ended all the same.
        """
        self._draining = True
        self.stats.wait_until_idle(self.config.drain_seconds)
        self.stats.stop_all()
        # gRPC waits for such a reader without end, so the wait is left to a thread.
        stopping = threading.Thread(target=self.shutdown, name="stop the read service", daemon=True)
        stopping.start()
        stopping.join(STOP_SECONDS)
        self._pools.close()
        return not stopping.is_alive()

    def do_get(self, context: flight.ServerCallContext, ticket: flight.Ticket) -> flight.FlightDataStream:
        with _explained():
            self._refuse_when_draining()
            run = Run(self.config.limits, gone=context.is_cancelled)
            stream = self._opened(from_json(ticket.ticket), run)
            return flight.GeneratorStream(stream.schema, self._served(stream))

    def get_flight_info(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        with _explained():
            self._refuse_when_draining()
            request = _described(descriptor)
            with self._opened(request, Run(self.config.limits, gone=context.is_cancelled)) as stream:
                endpoint = flight.FlightEndpoint(flight.Ticket(to_json(request)), [])
                return flight.FlightInfo(stream.schema, descriptor, [endpoint], -1, -1)

    def get_schema(self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor) -> flight.SchemaResult:
        return flight.SchemaResult(self.get_flight_info(context, descriptor).schema)

    def list_actions(self, context: flight.ServerCallContext) -> list[tuple[str, str]]:
        return [
            ("tables", "tables with columns, key and stages, as JSON"),
            ("stats", "reads, rows/s, bytes and pool use, as JSON"),
        ]

    def do_action(self, context: flight.ServerCallContext, action: flight.Action) -> list[bytes]:
        with _explained():
            if action.type == "tables":
                return [json.dumps(list_tables(self._pools)).encode()]
            if action.type == "stats":
                return [json.dumps(self.stats.snapshot()).encode()]
            raise ReadError(f"there is no action {action.type!r}: use tables or stats")

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise UnreachableError("the service is stopping: connect again when it is back")

    def _opened(self, request: Request, run: Run) -> BatchStream:
        if isinstance(request, ScanRequest):
            return scan(self._pools, request, run)
        if isinstance(request, SqlRequest):
            return sql(self._pools, request, run)
        table = get(self._pools, request, run, places=self._places)
        return BatchStream(table.schema, (batch for batch in table.to_batches()), run)

    def _served(self, stream: BatchStream) -> Iterator[pa.RecordBatch]:
        with _explained(), closing(stream), self.stats.counting(stream.run) as count:
            for batch in stream:
                count(batch)
                yield batch


def _security(config: ServiceConfig) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if config.token_file is not None:
        given["middleware"] = {"token": RequireToken(TokenFile(config.token_file))}
    if config.tls_certificate is not None and config.tls_key is not None:
        try:
            given["tls_certificates"] = [(config.tls_certificate.read_bytes(), config.tls_key.read_bytes())]
        except OSError as error:
            raise ConfigError(
                f"{error.filename} cannot be read: {error.strerror}; correct --tls-cert, --tls-key"
            ) from error
    return given


def _described(descriptor: flight.FlightDescriptor) -> Request:
    if descriptor.command:
        return from_json(descriptor.command)
    if len(descriptor.path) != 1:
        raise ReadError("the path of a descriptor is one table name, such as ['images']")
    return ScanRequest(table=descriptor.path[0].decode())


@contextmanager
def _explained() -> Iterator[None]:
    """Our errors as Flight's; the kind goes in front, for the client to raise the same again."""
    try:
        yield
    except LimitError as error:
        raise flight.FlightServerError(_tagged("limit", error)) from error
    except CancelledError as error:
        raise flight.FlightCancelledError(_tagged("cancelled", error)) from error
    except UnreachableError as error:
        raise flight.FlightUnavailableError(_tagged("unreachable", error)) from error
    except ReadError as error:
        raise pa.ArrowInvalid(_tagged("refused", error)) from error
    except DatabaseError as error:
        raise flight.FlightServerError(_tagged("database", error)) from error


def _tagged(kind: str, error: PleinairError) -> str:
    return f"[{kind}] {str(error)[:_LONGEST_MESSAGE]}"


def serve(service: ReadService, stop: threading.Event) -> bool:
    """Serve until `stop` is set, then drain; False as in `ReadService.close`."""
    while not stop.wait(0.5):  # in pieces, for signals are handled between them
        pass
    return service.close()
