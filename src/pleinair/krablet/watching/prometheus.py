"""What a warehouse looks like to Prometheus: the text format, served over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pleinair.krablet.addresses import parse_address
from pleinair.krablet.watching.gauges import StageGauge, StageWork, Watched
from pleinair.krablet.watching.shard_status import ShardStatus
from pleinair.records.errors import ConfigError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Sample = tuple[Mapping[str, object], float]


def metrics_text(watched: Watched, shards: Iterable[ShardStatus]) -> str:
    """Every metric with its help, in the text exposition format."""
    return "".join([*_stage_families(watched), *_shard_families(list(shards))])


def _stage_families(watched: Watched) -> Iterator[str]:
    yield family("stage_depth_rows", "Rows a stage still has to do, by state.", _depths(watched.gauges))
    for name, told, of_gauge in _STAGE_GAUGES:
        yield family(f"stage_{name}", told, [(_labels(gauge), of_gauge(gauge)) for gauge in watched.gauges])
    for name, told, of_work in _STAGE_WORK:
        yield family(f"stage_{name}", told, [(_of(label), of_work(work)) for label, work in watched.work.items()])
    yield family("stage_eta_seconds", "Depth over the rate of five minutes.", _etas(watched))
    yield family("workers", "Workers seen in the last seconds.", [({}, len(watched.workers))])


def _shard_families(shards: Sequence[ShardStatus]) -> Iterator[str]:
    for name, told, of_shard in _SHARD_GAUGES:
        known = [(shard, of_shard(shard)) for shard in shards]
        yield family(f"shard_{name}", told, [({"shard": s.number}, value) for s, value in known if value is not None])


_STAGE_GAUGES: list[tuple[str, str, Callable[[StageGauge], float]]] = [
    ("depth_estimated", "Whether the depth is the planner's estimate.", lambda gauge: float(gauge.estimated)),
    ("stuck_rows", "Rows that failed again and again; they are retried.", lambda gauge: gauge.stuck),
    ("attempts_max", "Most attempts of a row still to do.", lambda gauge: gauge.most_attempts),
    ("oldest_attempt_seconds", "Age of the oldest attempt still to do.", lambda gauge: gauge.oldest_seconds or 0.0),
]
_STAGE_WORK: list[tuple[str, str, Callable[[StageWork], float]]] = [
    ("rows_per_second", "Rows completed a second, over five minutes.", lambda work: work.completed_per_second),
    ("failures_per_second", "Rows failed a second, over five minutes.", lambda work: work.failed_per_second),
    ("completed_rows", "Rows completed in the last seven days.", lambda work: work.completed),
    ("failed_rows", "Rows failed in the last seven days.", lambda work: work.failed),
    ("lost_rows", "Results that came after their lease had passed on.", lambda work: work.lost),
]
_SHARD_GAUGES: list[tuple[str, str, Callable[[ShardStatus], float | None]]] = [
    ("up", "Whether a server answers.", lambda shard: not shard.error),
    ("slots", "Slots on a server, of 1024.", lambda shard: shard.slots),
    ("size_bytes", "Size of its database.", lambda shard: shard.size_bytes),
    ("connections", "Connections to it.", lambda shard: shard.connections),
    ("lag_seconds", "How far its slowest replica is behind.", lambda shard: shard.lag_seconds),
]


def _depths(gauges: Iterable[StageGauge]) -> list[Sample]:
    states = ("claimable", "leased", "waiting", "expired")
    return [({**_labels(gauge), "state": state}, getattr(gauge, state)) for gauge in gauges for state in states]


def _etas(watched: Watched) -> list[Sample]:
    etas = [(label, watched.eta_seconds(label)) for label in watched.work]
    return [(_of(label), eta) for label, eta in etas if eta is not None]


def _labels(gauge: StageGauge) -> dict[str, object]:
    return {"table": gauge.table, "stage": gauge.stage, "shard": gauge.shard}


def _of(label: str) -> dict[str, object]:
    table, stage = label.split(".", 1)
    return {"table": table, "stage": stage}


def family(name: str, told: str, samples: Iterable[Sample], kind: str = "gauge") -> str:
    """One metric. What stages do is a gauge: it is counted in Postgres, over a window."""
    lines = [f"# HELP pleinair_{name} {told}", f"# TYPE pleinair_{name} {kind}"]
    lines += [f"pleinair_{name}{_label_text(labels)} {float(value):.10g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _label_text(labels: Mapping[str, object]) -> str:
    # Names of tables and stages are [a-z0-9_]: nothing to escape.
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}" if labels else ""


@contextmanager
def metrics_served(listen: str | None, text: Callable[[], str]) -> Iterator[str | None]:
    """Serve /metrics on HOST:PORT inside the block, which is given its URL; nothing without an address."""
    if listen is None:
        yield None
        return
    address = parse_address(listen)
    try:
        server = serve_metrics(address.host, address.port, text)
    except OSError as error:
        raise ConfigError(f"metrics cannot be served on {listen}: {error}; give another HOST:PORT") from error
    try:
        yield f"http://{replace(address, port=server.server_port)}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def serve_metrics(host: str, port: int, text: Callable[[], str]) -> ThreadingHTTPServer:
    """An HTTP server, running in a thread, that answers /metrics with `text()`; call its `shutdown` to end it.

    `text` is called by one request at a time.
    """
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404, "only /metrics is here")
                return
            with lock:
                body = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """A line per scrape would be noise."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="pleinair-metrics", daemon=True).start()
    return server
