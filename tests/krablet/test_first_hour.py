"""The data engineer's page, as it stands in the docs: from a CSV of addresses to finished rows."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pleinair import krablet

PAGE = Path(__file__).parents[2] / "docs" / "krablet-first-hour.md"
PAGES = 24


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Requests are no news."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A site of a few pages."""
    site = tmp_path / "site"
    site.mkdir()
    for number in range(PAGES):
        body = f"<html><title> Page {number} </title><body>{'word ' * number}</body></html>"
        (site / f"{number}.html").write_text(body)
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def pipeline_in(folder: Path) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    (folder / "pipeline.py").write_text(code)


def run(folder: Path, dsn: str) -> str:
    done = subprocess.run(
        [sys.executable, "pipeline.py", "urls.csv", dsn],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_runs_as_it_stands_and_goes_on_with_new_rows(
    database: krablet.Database, address: str, tmp_path: Path
) -> None:
    pipeline_in(tmp_path)
    urls = [f"{address}/{number}.html" for number in range(PAGES)]
    (tmp_path / "urls.csv").write_text("\n".join(["url", *urls[:20]]) + "\n")
    first = run(tmp_path, database.dsn)
    assert "{'sites.fetch': 20, 'sites.title': 20, 'sites.count': 20}" in first
    assert "{'title': 'Page 19', 'num_words': 21}" in first
    (tmp_path / "urls.csv").write_text("\n".join(["url", *urls]) + "\n")
    assert "{'sites.fetch': 4, 'sites.title': 4, 'sites.count': 4}" in run(tmp_path, database.dsn)
