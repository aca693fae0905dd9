"""Takedowns: bytes leave the store, rows are emptied, and no source brings the picture back."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pleinair.cli.main import main
from pleinair.curation import KEPT, curate, find_source, hashes_v1, images_table, ingest
from pleinair.curation.curate import Ingested
from pleinair.curation.takedowns import (
    Refusals,
    Takedown,
    add_takedown,
    read_snapshot,
    read_takedowns,
    takedowns_table,
    write_snapshot,
)
from pleinair.krablet import Database
from pleinair.records.errors import ConfigError, SourceError


def photo(seed: int, side: int = 120) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def save(folder: Path, name: str, image: Image.Image, **how: Any) -> Path:
    folder.mkdir(exist_ok=True)
    image.save(folder / name, **how)
    (folder / name).with_suffix(".txt").write_text(f"A picture called {name}, by somebody.")
    return folder / name


def curated(database: Database, folder: Path) -> None:
    ingest(database, find_source(str(folder), folder.parent / "cache"))
    curate(database, cache=folder.parent / "cache", store=folder.parent / "store", processes=1)


def rows(database: Database, where: str = "TRUE") -> dict[str, dict[str, Any]]:
    found = [row for batch in images_table(database).read(where=where) for row in batch.to_pylist()]
    return {os.path.basename(row["image_name"]): row for row in found}


def stored(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "store").rglob("*.*") if len(path.stem) == 64}


def take_down(database: Database, folder: Path, what: str, *more: str) -> int:
    where = ["--dsn", database.dsn, "--home", str(folder)]
    return main(["takedown", "add", what, "--reason", "the owner asks", *more, *where])


def test_a_picture_taken_down_leaves_store_and_row_and_does_not_come_back(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    gone = save(folder, "gone.png", photo(0))
    save(folder, "near.jpg", photo(0).resize((90, 90)), quality=40)
    save(folder, "stays.png", photo(1))
    curated(database, folder)
    assert len(stored(tmp_path)) == 3
    # What a stage that nobody here knows of wrote about it goes too.
    later = database.table("images", key="image_name", columns={"image_name": "text", "seen_by_others": "text"})
    assert (
        later.update({"image_name": row["image_name"], "seen_by_others": "a fox"} for row in rows(database).values())
        == 3
    )

    assert take_down(database, tmp_path, str(gone)) == 0
    assert "is refused from now on; pictures taken out: 2" in capsys.readouterr().out
    assert stored(tmp_path) == {hashlib.sha256((folder / "stays.png").read_bytes()).hexdigest()}
    row = rows(database)["gone.png"]
    assert row["fetch_drop"].startswith("takedown: the owner asks (")
    kept = {name for name, value in row.items() if value is not None}
    assert "seen_by_others" in row
    assert kept == {"image_name", "uri", "source", "held_out", "fetch_drop"}
    assert "of 144 bits apart" in rows(database)["near.jpg"]["fetch_drop"]

    # The same folder again, the same pictures under another name, and one more look-alike.
    before = rows(database)
    assert ingest(database, find_source(str(folder), tmp_path / "cache")) == Ingested(3, 0, 0)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    save(other, "again.jpg", photo(0).resize((100, 100)), quality=70)
    curated(database, other)
    assert rows(database, f"{KEPT}").keys() == {"stays.png"}
    assert rows(database, "fetch_drop LIKE 'takedown:%'").keys() == {"gone.png", "near.jpg", "again.jpg"}
    assert before.keys() <= rows(database).keys()
    assert stored(tmp_path) == {hashlib.sha256((folder / "stays.png").read_bytes()).hexdigest()}


def test_an_md5_of_a_picture_here_refuses_its_look_alikes_and_near_0_only_itself(
    database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    save(folder, "a.png", photo(0))
    save(folder, "a-small.png", photo(0, 80))
    curated(database, folder)
    md5 = hashlib.md5((folder / "a.png").read_bytes()).hexdigest()
    assert take_down(database, tmp_path, md5, "--near", "0") == 0
    assert rows(database, "fetch_drop <> ''").keys() == {"a.png"}
    md5 = hashlib.md5((folder / "a-small.png").read_bytes()).hexdigest()
    assert take_down(database, tmp_path, md5) == 0
    assert rows(database, "fetch_drop <> ''").keys() == {"a.png", "a-small.png"}


def test_a_picture_taken_down_before_it_came_is_never_stored(database: Database, tmp_path: Path) -> None:
    gone = save(tmp_path / "mine", "gone.png", photo(0))
    add_takedown(database, images_table(database), str(gone), "known before")
    ingest(database, find_source(str(tmp_path / "mine"), tmp_path / "cache"))
    done = curate(database, cache=tmp_path / "cache", store=tmp_path / "store", processes=1)
    assert (done.run.completed["images.fetch"], done.run.completed["images.probe"]) == (1, 0)
    assert stored(tmp_path) == set()


def test_fetching_everything_again_does_not_bring_a_picture_back(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    gone = save(folder, "gone.png", photo(0))
    curated(database, folder)
    take_down(database, tmp_path, str(gone))
    curate(database, cache=tmp_path / "cache", store=tmp_path / "store", processes=1, fetch_again=True)
    assert rows(database)["gone.png"]["fetch_drop"].startswith("takedown: ")
    assert stored(tmp_path) == set()


def test_another_picture_under_a_name_taken_down_is_looked_at_anew(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    gone = save(folder, "gone.png", photo(0))
    curated(database, folder)
    take_down(database, tmp_path, str(gone))
    images = images_table(database)
    name = rows(database)["gone.png"]["image_name"]
    save(tmp_path / "new", "gone.png", photo(5))
    images.update([{"image_name": name, "uri": f"file:{tmp_path}/new/gone.png"}])
    assert ingest(database, find_source(str(folder), tmp_path / "cache")).num_changed == 1
    assert rows(database)["gone.png"]["fetch_drop"] is None


def test_a_flat_picture_is_refused_by_its_bytes_alone(database: Database, tmp_path: Path) -> None:
    white = save(tmp_path / "mine", "white.png", Image.new("RGB", (90, 90), "white"))
    added = add_takedown(database, images_table(database), str(white), "blank")
    assert (added.near, added.phash12_v2) == (0, None)


def test_the_list_names_reason_and_radius(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "https://example.com/a.png"
    take_down(database, tmp_path, url)
    assert main(["takedown", "list", "--dsn", database.dsn, "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"{url}  near 0  the owner asks")
    assert [one.url for one in read_takedowns(database)] == [url]


def test_colours_keep_a_recoloured_picture_apart_and_the_nearest_takedown_is_named() -> None:
    one = Takedown(takedown="one", reason="r", phash12_v2="00" * 18, colour_v2="f" + "0" * 27, near=10)
    two = Takedown(takedown="two", reason="r", phash12_v2="07" + "00" * 17, colour_v2="f" + "0" * 27, near=2)
    refusals = Refusals.of([one, two])
    assert refusals.of_looks("03" + "00" * 17, "f" + "0" * 27) == "takedown: r (two), 1 of 144 bits apart"
    assert refusals.of_looks("ff" + "00" * 17, "f" + "0" * 27) == "takedown: r (one), 8 of 144 bits apart"
    assert refusals.of_looks("00" * 18, "0" * 27 + "f") == ""
    assert refusals.of_looks("ff" * 18, "f" + "0" * 27) == ""
    assert Refusals().of_looks("00" * 18, "0" * 28) == ""


def test_cells_keep_apart_what_hash_and_colours_take_for_one_and_a_change_of_light_does_not() -> None:
    looks = {"phash12_v2": "00" * 18, "colour_v2": "f" + "0" * 27}
    thumb = np.random.default_rng(0).integers(20, 150, 768, np.uint8)
    known = Refusals.of([Takedown(takedown="new", reason="r", near=10, thumb16_v2=thumb.tobytes(), **looks)])
    other, lit = thumb.copy(), (thumb * 1.3).astype(np.uint8)
    other[:30] = thumb[:30] + 100
    assert known.of_looks(*looks.values(), thumb.tobytes()) == "takedown: r (new), 0 of 144 bits apart"
    assert known.of_looks(*looks.values(), lit.tobytes()) != ""
    assert known.of_looks(*looks.values(), (thumb // 2).tobytes()) == "", "twice as dark"
    assert known.of_looks(*looks.values(), other.tobytes()) == ""
    assert known.of_looks(*looks.values()) != "", "a row that has no cells"
    before = Refusals.of([Takedown(takedown="old", reason="r", near=10, **looks)])
    assert before.of_looks(*looks.values(), other.tobytes()) == "takedown: r (old), 0 of 144 bits apart"


def test_the_snapshot_for_workers_keeps_the_cells(tmp_path: Path) -> None:
    known = Takedown(
        takedown="x", reason="r", near=10, phash12_v2="0a" * 18, colour_v2="1" * 28, thumb16_v2=b"\x07" * 768
    )
    write_snapshot(tmp_path, [known])
    assert read_snapshot(tmp_path).takedowns == [known]


def test_a_picture_taken_down_by_the_first_hashes_stays_out_and_its_bytes_leave(
    database: Database, tmp_path: Path
) -> None:
    old = hashes_v1.fingerprints(np.asarray(photo(0)))
    long_gone = Takedown(
        takedown="before", reason="r", phash12_v1=old.phash12_v1, colour_v1=old.colour_v1, near=14,
        added_at=datetime.datetime.now(datetime.UTC),
    )  # fmt: skip
    takedowns_table(database).upsert([dataclasses.asdict(long_gone)])
    save(tmp_path / "mine", "near.jpg", photo(0).resize((90, 90)), quality=40)
    save(tmp_path / "mine", "stays.png", photo(1))
    curated(database, tmp_path / "mine")
    assert rows(database, "fetch_drop <> ''").keys() == {"near.jpg"}
    assert stored(tmp_path) == {hashlib.sha256((tmp_path / "mine" / "stays.png").read_bytes()).hexdigest()}


def test_a_takedown_of_nothing_is_answered(database: Database, tmp_path: Path) -> None:
    images = images_table(database)
    with pytest.raises(SourceError, match="is no takedown .*: give a picture's file, its MD5"):
        add_takedown(database, images, str(tmp_path / "nothing.png"), "why")
    with pytest.raises(ConfigError, match="needs a reason"):
        add_takedown(database, images, "0" * 32, " ")
    with pytest.raises(ConfigError, match="near is 99 bits"):
        add_takedown(database, images, "0" * 32, "why", near=99)
    assert read_takedowns(database) == []


def test_a_file_that_is_no_picture_is_refused_by_its_bytes(database: Database, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"no picture")
    added = add_takedown(database, images_table(database), str(tmp_path / "x.bin"), "why")
    assert (added.md5, added.near) == (hashlib.md5(b"no picture").hexdigest(), 0)
    assert Refusals.of([added]).of_bytes("", added.sha256 or "") == added.drop
