"""A list of URLs from ingest to the last stage, through real workers, real Postgres and a real web server."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pleinair.cli.main import main
from pleinair.curation import KEPT, CurationConfig, curate, find_source, images_table, ingest
from pleinair.krablet import Database
from pleinair.records.errors import ConfigError
from tests.curation.web_site import Site, answer

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="3" fill="#c00"/></svg>'


def jpeg(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((120, 120), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    made.routes |= {f"/{seed}.jpg": answer(body=jpeg(seed)) for seed in range(3)}
    made.routes["/ball.svg"] = answer(body=SVG)
    made.routes["/noai.jpg"] = answer(body=jpeg(7), X_Robots_Tag="noai")
    made.routes["/page.jpg"] = answer(body=b"<html>nothing here</html>")
    made.routes["/robots.txt"] = answer(body=b"User-agent: *\nDisallow: /private/\n")
    yield made
    made.close()


def listed(folder: Path, *urls: str) -> Path:
    path = folder / "urls.csv"
    path.write_text("url,caption,licence\n" + "".join(f"{url},A picture of something.,CC0-1.0\n" for url in urls))
    return path


def rows(database: Database) -> dict[str, dict[str, Any]]:
    found = [row for batch in images_table(database).read() for row in batch.to_pylist()]
    return {os.path.basename(row["uri"]): row for row in found}


def test_urls_become_curated_rows_each_kept_or_dropped_with_its_reason(
    database: Database, site: Site, tmp_path: Path
) -> None:
    paths = ("/0.jpg", "/1.jpg", "/ball.svg", "/noai.jpg", "/page.jpg", "/private/x.jpg", "/gone.jpg")
    disguised = (f"http://2130706433:{site.port}/0.jpg", f"http://[::1]:{site.port}/1.jpg")
    ingest(database, find_source(str(listed(tmp_path, *(site.url + path for path in paths), *disguised)), tmp_path))
    config = CurationConfig(fetch=site.policy)
    done = curate(database, config, cache=tmp_path / "cache", store=tmp_path / "store", processes=1)
    assert done.run.stuck == {name: [] for name in done.run.stuck}

    found = [row for batch in images_table(database).read() for row in batch.to_pylist()]
    kinds = {row["uri"]: row["fetch_drop"].partition(":")[0] for row in found}
    assert kinds == {
        **dict.fromkeys((site.url + path for path in paths[:3]), ""),
        site.url + "/noai.jpg": "consent",
        site.url + "/page.jpg": "type",
        site.url + "/private/x.jpg": "consent",
        site.url + "/gone.jpg": "gone",
        **dict.fromkeys(disguised, "refused"),
    }
    assert sorted(site.asked) == ["/0.jpg", "/1.jpg", "/ball.svg", "/gone.jpg", "/noai.jpg", "/page.jpg"]
    for row in found:
        written = {name for name in ("image_path", "md5", "num_bytes", "fetched_at") if row[name] is not None}
        assert len(written) == (0 if row["fetch_drop"] else 4)
        assert row["consent_at"] is not None
    by_name = rows(database)
    assert by_name["0.jpg"]["consent"] == "allowed"
    assert by_name["0.jpg"]["consent_signal"] == "licence CC0-1.0"
    assert by_name["noai.jpg"]["consent"] == "refused: it is marked noai"
    assert by_name["noai.jpg"]["consent_signal"] == "X-Robots-Tag: noai"
    assert by_name["ball.svg"]["format"] == "PNG"
    assert images_table(database).count(KEPT) == 3


def test_a_host_that_is_away_leaves_its_picture_stuck_and_the_next_run_takes_it(
    database: Database, site: Site, tmp_path: Path
) -> None:
    good = site.routes.pop("/0.jpg")
    site.routes["/0.jpg"] = answer(502)
    ingest(database, find_source(str(listed(tmp_path, site.url + "/0.jpg", site.url + "/1.jpg")), tmp_path))
    arguments: dict[str, Any] = {"cache": tmp_path / "cache", "store": tmp_path / "store", "processes": 1}
    config = CurationConfig(fetch=site.policy)
    done = curate(database, config, **arguments, give_up_after=1)
    (stuck,) = done.run.stuck["images.fetch"]
    assert "answered 502: it is tried again later" in str(stuck.error)
    site.routes["/0.jpg"] = good
    curate(database, config, **arguments)
    assert images_table(database).count(KEPT) == 2


def test_urls_are_not_fetched_before_somebody_signs_for_it(
    database: Database, site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(tmp_path, site.url + "/0.jpg")
    where = ["--dsn", database.dsn, "--home", str(tmp_path)]
    assert main(["ingest", str(path), *where]) == 0
    assert main(["curate", "--processes", "1", *where]) == 1
    assert "pleinair: fetch.contact is empty" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"fetch\.allow_networks holds 'here'"):
        replace(site.policy, allow_networks=("here",))
    assert site.log == []
