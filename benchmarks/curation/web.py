"""What politeness and checks cost: pictures a second from a server on this machine, against bare urllib.

Both use the same threads. Ours checks addresses, robots.txt and headers, takes turns (without a pause) and sniffs.
"""

from __future__ import annotations

import http.server
import io
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.krablet.rounds import Result, interleaved, ratio, result
from pleinair.curation.web import FetchPolicy, fetch_picture

NUM_PICTURES, THREADS, ROUNDS = 400, 8, 5


def measure() -> list[Result]:
    """CPU milliseconds of this process per picture, the server's own included in both."""
    with _server() as port, tempfile.TemporaryDirectory() as folder:
        urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(NUM_PICTURES)]
        policy = FetchPolicy(
            contact="mailto:bench@lab.example",
            allow_networks=("127.0.0.0/8",),
            allow_ports=(port,),
            delay_seconds=0.0,
            per_host=THREADS,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        runs: dict[str, Callable[[], float]] = {
            "ours": lambda: _cost(lambda url: len(fetch_picture(url, Path(folder), policy).data or b""), urls),
            "urllib": lambda: _cost(lambda url: len(opener.open(url, timeout=30).read()), urls),
        }
        values = interleaved(ROUNDS, runs)
    median = float(np.median(values["ours"]))
    return [result("fetch_cpu_ms", median, "ms per picture", "urllib", ratio(values["ours"], values["urllib"]))]


def _cost(fetch: Callable[[str], int], urls: list[str]) -> float:
    began = time.process_time()
    with ThreadPoolExecutor(THREADS) as threads:
        sizes = list(threads.map(fetch, urls))
    assert min(sizes) > 1000
    return 1000 * (time.process_time() - began) / len(urls)


@contextmanager
def _server() -> Iterator[int]:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((512, 512)).save(out, "JPEG")
    data = out.getvalue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.endswith(".jpg")
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(data) if found else 0))
            self.end_headers()
            self.wfile.write(data if found else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
