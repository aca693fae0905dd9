"""What a picture costs: bytes at rest, log and time per claim, in the real table of the curation and its five stages.

Rows are as long as those of web pictures; results are made up and of the true size. `docs/krablet-sizing.md` is derived
from these figures.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.krablet.rounds import Result, result
from pleinair import krablet
from pleinair.curation.stages import declare_stages, images_table
from pleinair.krablet import Database

ROWS = 100_000
WORDS = (
    "a small red boat lies on the beach below white houses under a clear evening sky seen from the old harbour wall "
)

Outcome = dict[str, object]


def measure(database: Database, rows: int = ROWS) -> list[Result]:
    """`picture_bytes`, `picture_bytes_fresh`, `picture_wal_bytes_per_claim`, `picture_claims_per_second`."""
    images = images_table(database)
    stages = declare_stages(images)
    with database.connection() as connection:
        for start in range(0, rows, 10_000):
            images.insert_missing(picture(number) for number in range(start, min(start + 10_000, rows)))
        fresh = size(connection) / rows
        connection.execute("VACUUM ANALYZE images")
        logged, began = log_position(connection), time.monotonic()
        done = krablet.work(list(stages.values()), FUNCTIONS).completed
        seconds, logged = time.monotonic() - began, log_position(connection) - logged
        assert done == rows * len(stages), "every picture went through every stage"
        end = size(connection) / rows
        connection.execute("VACUUM FULL images")
        compact = size(connection) / rows
    print(
        f"a picture: {fresh:.0f} bytes, {end:.0f} after all stages, {compact:.0f} compact; log {logged / done:.0f} a claim"
    )
    return [
        result("picture_bytes_fresh", fresh, "bytes"),
        result("picture_bytes", end, "bytes", "compact", end / compact),
        result("picture_wal_bytes_per_claim", logged / done, "bytes"),
        result("picture_claims_per_second", done / seconds, "rows/s"),
    ]


def picture(number: int) -> dict[str, object]:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return {
        "image_name": f"{digest[:40]}.jpg",
        "uri": f"https://pictures.example.org/{digest[:2]}/{digest[2:4]}/{digest}.jpg",
        "source": "web-2026-11",
        "licence": "CC-BY-4.0",
        "author": f"author {number % 9973}",
        "provenance": f"dump of 2026-11, file {number // 10_000}, line {number % 10_000}",
        "caption": WORDS[:80],
        "held_out": False,
    }


def size(connection: Any) -> int:
    return int(connection.execute("SELECT pg_total_relation_size('images')").fetchone()[0])


def log_position(connection: Any) -> int:
    return int(connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()[0])


def fetch(rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    names = [row["image_name"] for row in rows]
    return [
        {"fetch_drop": "", "image_path": f"pictures/{name[:2]}/{name}", "md5": name[:32], "num_bytes": 250_000}
        for name in names
    ]


def probe(rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    return [{"probe_drop": "", "format": "JPEG", "width": 1920, "height": 1080, "aspect": 1.7778} for _ in rows]


def hashes(rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    names = [row["image_name"] for row in rows]
    return [
        {"hashes_drop": "", "phash12_v2": name[:36], "colour_v2": name[:24], "thumb16_v2": bytes(768)} for name in names
    ]


def pixels(rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    found = {"entropy": 7.1, "white_ratio": 0.02, "black_ratio": 0.04, "border_flatness": 0.3}
    return [{"pixels_drop": "", **found} for _ in rows]


def captions(rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    texts = {"caption_long": 6 * WORDS, "caption_medium": 2 * WORDS, "caption_short": WORDS[:60]}
    return [{"captions_drop": "", **texts} for _ in rows]


FUNCTIONS: Mapping[str, Any] = {
    "fetch": fetch,
    "probe": probe,
    "hashes": hashes,
    "pixels": pixels,
    "captions": captions,
}
