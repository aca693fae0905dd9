"""From files to curated rows, through real Postgres and real worker processes; stopped, changed and run again."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pleinair.cli.main import main
from pleinair.curation import (
    KEPT,
    Curated,
    CurationConfig,
    StageDrops,
    curate,
    find_source,
    images_table,
    ingest,
    mark_duplicates,
)
from pleinair.curation.curate import Ingested
from pleinair.curation.duplicates import DuplicateLimits
from pleinair.curation.probe import ProbeLimits
from pleinair.krablet import Database

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="3" fill="#c00"/></svg>'


def photo(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def save(folder: Path, name: str, image: Image.Image, caption: bytes | None = b"A picture, made here.") -> None:
    image.save(folder / name)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_bytes(caption)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures: four good ones, a copy, and one for every way to be dropped."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        save(folder, f"good-{seed}.png", photo(seed))
    (folder / "good-drawing.svg").write_text(SVG)
    (folder / "good-drawing.json").write_text('{"label": "red ball", "style": "ink"}')
    save(folder, "copy.jpg", photo(0, (80, 80)))
    save(folder, "small.png", photo(4, (20, 20)))
    save(folder, "long.png", photo(5, (64, 640)))
    save(folder, "blank.png", Image.new("RGB", (64, 64), "white"))
    save(folder, "mute.png", photo(6), caption=None)
    save(folder, "latin.png", photo(7), caption=b"Stra\xdfe")
    (folder / "cut.png").write_bytes((folder / "good-1.png").read_bytes()[:900])
    (folder / "broken.svg").write_text(SVG[:50])
    return folder


def ingested(database: Database, folder: Path) -> Ingested:
    return ingest(database, find_source(str(folder), folder.parent / "cache"))


def curated(database: Database, folder: Path, **more: Any) -> Curated:
    return curate(database, cache=folder.parent / "cache", store=folder.parent / "store", processes=1, **more)


def reasons(drops: tuple[StageDrops, ...]) -> dict[str, dict[str, int]]:
    return {stage.stage: {reason.kind: reason.count for reason in stage.reasons} for stage in drops}


def rows(database: Database, where: str = "TRUE") -> dict[str, dict[str, Any]]:
    found = [row for batch in images_table(database).read(where=where) for row in batch.to_pylist()]
    return {row["image_name"].partition("/")[2]: row for row in found}


def test_every_picture_is_kept_or_dropped_with_its_reason(database: Database, pictures: Path) -> None:
    assert ingested(database, pictures) == Ingested(12, 12, 0)
    done = curated(database, pictures)
    assert done.run.stuck == {name: [] for name in done.run.stuck}
    assert reasons(done.drops) == {
        "fetch": {"broken": 1},
        "probe": {"aspect": 1, "broken": 1, "small": 1},
        "hashes": {},
        "pixels": {"entropy": 1},
        "captions": {"caption": 2},
        "duplicate": {"duplicate": 1},
    }
    assert [(stage.num_in, stage.num_dropped) for stage in done.drops] == [
        (12, 1),
        (11, 3),
        (8, 0),
        (8, 1),
        (7, 2),
        (7, 1),
    ]
    assert sorted(rows(database, KEPT)) == ["good-0.png", "good-1.png", "good-2.png", "good-drawing.svg"]
    found = rows(database)
    assert found["copy.jpg"]["duplicate_of"] == found["good-0.png"]["image_name"]
    assert found["latin.png"]["captions_drop"].endswith("latin.txt is not UTF-8 (byte 4 is 0xdf): save it as UTF-8")
    assert found["good-drawing.svg"]["caption_short"].startswith("a red ball")
    assert (found["good-drawing.svg"]["format"], found["good-drawing.svg"]["width"]) == ("PNG", 128)


def test_the_drop_report_shows_examples_and_what_was_kept_instead(database: Database, pictures: Path) -> None:
    ingested(database, pictures)
    drops = {stage.stage: stage for stage in curated(database, pictures).drops}
    (example,) = drops["duplicate"].reasons[0].shown
    assert example.duplicate_of is not None
    assert example.duplicate_of.endswith("/good-0.png")
    assert example.image_path is not None
    assert (pictures.parent / "store" / example.image_path).exists()
    assert drops["fetch"].reasons[0].shown[0].image_path is None


def test_a_second_run_does_nothing(database: Database, pictures: Path) -> None:
    ingested(database, pictures)
    curated(database, pictures)
    before = rows(database)
    assert ingested(database, pictures) == Ingested(12, 0, 0)
    assert set(curated(database, pictures).run.completed.values()) == {0}
    assert rows(database) == before


def test_rows_that_know_only_the_first_fingerprints_get_the_second_and_keep_their_verdicts(
    database: Database, pictures: Path
) -> None:
    """A warehouse of the time before: its `hashes` stage wrote other columns, and was ready for other rows."""
    ingested(database, pictures)
    columns = {**images_table(database).columns, "phash12_v1": "text"}
    images = database.table("images", key="image_name", columns=columns)
    images.stage("hashes", ready="hashes_drop IS NULL AND probe_drop = ''", writes=["hashes_drop", "phash12_v1"])
    curated(database, pictures)
    fresh = rows(database)
    with_hashes = [row["image_name"] for row in fresh.values() if row["hashes_drop"] == ""]
    gone: dict[str, Any] = {"phash12_v2": None, "colour_v2": None, "thumb16_v2": None, "phash12_v1": "00" * 18}
    images.update({"image_name": name, **gone, "caption_short": "as it was"} for name in with_hashes)
    done = curated(database, pictures)
    assert done.run.completed["images.hashes"] == len(with_hashes) > 5
    assert done.run.completed["images.pixels"] == done.run.completed["images.captions"] == 0
    again = rows(database)
    for name in gone.keys() - {"phash12_v1"}:
        assert {row: again[row][name] for row in again} == {row: fresh[row][name] for row in fresh}
    assert again["copy.jpg"]["duplicate_of"].endswith("good-0.png")
    assert again["good-1.png"]["caption_short"] == "as it was"


def test_a_corrected_caption_file_is_taken_up_by_the_next_ingest(database: Database, pictures: Path) -> None:
    ingested(database, pictures)
    curated(database, pictures)
    (pictures / "latin.txt").write_text("Stra\u00dfe", encoding="utf-8")
    assert ingested(database, pictures) == Ingested(12, 0, 1)
    done = curated(database, pictures)
    assert done.run.completed["images.captions"] == 1
    assert done.run.completed["images.fetch"] == 0
    assert rows(database, KEPT)["latin.png"]["caption_long"] == "Stra\u00dfe"


def test_changed_limits_are_applied_to_columns_and_only_pictures_that_come_back_go_on(
    database: Database, pictures: Path
) -> None:
    ingested(database, pictures)
    curated(database, pictures)
    done = curated(database, pictures, config=CurationConfig(probe=ProbeLimits(min_side=16, max_aspect=20)))
    assert {name.partition(".")[2]: number for name, number in done.run.completed.items()} == {
        "fetch": 0,
        "probe": 0,
        "hashes": 2,
        "pixels": 2,
        "captions": 2,
    }
    assert {"small.png", "long.png"} <= set(rows(database, KEPT))


def test_a_picture_replaced_on_disk_is_seen_when_fetched_again(database: Database, pictures: Path) -> None:
    ingested(database, pictures)
    curated(database, pictures)
    save(pictures, "cut.png", photo(9))
    ingested(database, pictures)
    assert reasons(curated(database, pictures).drops)["probe"]["broken"] == 1
    assert "broken" not in reasons(curated(database, pictures, fetch_again=True).drops)["probe"]
    assert "cut.png" in rows(database, KEPT)


def test_a_picture_held_out_later_takes_over_its_group(database: Database, pictures: Path) -> None:
    ingested(database, pictures)
    curated(database, pictures)
    images = images_table(database)
    copy = rows(database)["copy.jpg"]["image_name"]
    images.update([{"image_name": copy, "held_out": True}])
    assert mark_duplicates(images, DuplicateLimits()) == 2
    assert rows(database)["good-0.png"]["duplicate_of"] == copy
    assert mark_duplicates(images, DuplicateLimits()) == 0


CURATE = """
import sys
from pathlib import Path
from pleinair import krablet
from pleinair.curation import curate
folder = Path(sys.argv[2])
with krablet.connect(sys.argv[1]) as database:
    curate(database, cache=folder / "cache", store=folder / "store", on_progress=lambda p: print("going", flush=True))
"""


@pytest.mark.slow
def test_a_curation_killed_at_any_moment_goes_on_to_the_same_rows(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(150):
        save(folder, f"{seed:03d}.png", photo(seed // 2, (96 - 8 * (seed % 2),) * 2))
    ingested(database, folder)
    for wait_seconds in (0.3, 1.0):
        command = [sys.executable, "-c", CURATE, database.dsn, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(wait_seconds)
            os.killpg(process.pid, signal.SIGKILL)
    # The killed workers' leases would hold their rows for two minutes: end them, as time would.
    with database.connection() as connection:
        for stage in ("fetch", "probe", "hashes", "pixels", "captions"):
            connection.execute(f"UPDATE images SET {stage}_leased_until = now() WHERE {stage}_leased_until IS NOT NULL")  # type: ignore[arg-type]
    done = curated(database, folder)
    assert [(stage.stage, stage.num_in) for stage in done.drops] == [
        (name, 150) for name in ("fetch", "probe", "hashes", "pixels", "captions", "duplicate")
    ]
    assert sorted(rows(database, KEPT)) == [f"{seed:03d}.png" for seed in range(0, 150, 2)]
    stored = {path.name for path in (tmp_path / "store").rglob("*.png")}
    assert stored == {Path(row["image_path"]).name for row in rows(database).values()}


def test_the_command_line_ingests_and_curates_and_prints_the_drops(
    database: Database,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLEINAIR_CACHE", str(tmp_path / "cache"))
    where = ["--dsn", database.dsn, "--home", str(tmp_path / "home")]
    assert main(["ingest", str(pictures), *where]) == 0
    assert main(["curate", "drawings", "--processes", "1", "--set", "probe.min_side=16", *where]) == 0
    out = capsys.readouterr().out
    assert "12 pictures listed, 12 new, 0 changed" in out
    assert "captions" in out
    assert "caption 2" in out


def test_a_picture_gone_from_its_place_is_stuck_and_named(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLEINAIR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    save(folder, "a.png", photo(0))
    save(folder, "b.png", photo(1))
    ingested(database, folder)
    shutil.move(folder / "b.png", tmp_path / "b.png")
    done = curate(database, cache=tmp_path / "cache", store=tmp_path / "store", processes=1, give_up_after=1)
    (stuck,) = done.run.stuck["images.fetch"]
    assert "b.png cannot be read (No such file or directory): put the file back" in str(stuck.error)
    assert list(rows(database, KEPT)) == ["a.png"]
    shutil.move(tmp_path / "b.png", folder / "b.png")
    curate(database, cache=tmp_path / "cache", store=tmp_path / "store", processes=1)
    assert sorted(rows(database, KEPT)) == ["a.png", "b.png"]


def test_bad_input_on_the_command_line_is_one_sentence(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--dsn", database.dsn, "--home", str(tmp_path)]
    assert main(["ingest", str(tmp_path / "nothing"), *where]) == 1
    assert main(["curate", "--set", "probe.min_sise=3", *where]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("pleinair: no source ")
    assert "did you mean 'min_side'?" in second


def test_pictures_stored_are_png_when_they_were_vectors(database: Database, pictures: Path) -> None:
    ingested(database, pictures)
    curated(database, pictures)
    path = pictures.parent / "store" / rows(database)["good-drawing.svg"]["image_path"]
    image = Image.open(io.BytesIO(path.read_bytes()))
    assert (image.mode, image.size) == ("RGBA", (128, 128))
