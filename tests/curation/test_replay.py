"""Verdicts made again from columns, through real Postgres and real workers: no picture may be opened for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pleinair.cli.main import main
from pleinair.curation import KEPT, Curated, CurationConfig, curate, find_source, images_table, ingest
from pleinair.curation.filter_costs import filter_costs
from pleinair.curation.limits import LimitTable, Override
from pleinair.curation.pixels import PixelLimits
from pleinair.curation.probe import ProbeLimits
from pleinair.curation.replay import Judged, judge_again, judge_where_limits_changed, last_limits, read_measures
from pleinair.krablet import Database

STRICT = CurationConfig(probe=ProbeLimits(min_side=80), pixels=PixelLimits(max_white_ratio=0.5))


def paper(seed: int, white: float, size: int) -> Image.Image:
    """A scene of which so much, from the top, is white."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 240, (9, 9, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((size, size), Image.Resampling.BILINEAR)).copy()
    pixels[: round(white * size)] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def judged(database: Database, tmp_path: Path) -> Database:
    """Six pictures, more and more of them white, the first of them small; curated by the default limits."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        paper(number, number / 6, 72 if number == 0 else 96).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    (folder / "broken.png").write_bytes(b"nothing")
    ingest(database, find_source(str(folder), tmp_path / "cache"))
    curated(database, tmp_path)
    return database


def curated(database: Database, tmp_path: Path, config: CurationConfig | None = None) -> Curated:
    return curate(database, config, cache=tmp_path / "cache", store=tmp_path / "store", processes=1)


def verdicts(database: Database) -> dict[str, dict[str, Any]]:
    columns = ["image_name", *(f"{stage}_drop" for stage in ("probe", "hashes", "pixels", "captions", "duplicate"))]
    rows = [row for batch in images_table(database).read(columns=columns) for row in batch.to_pylist()]
    return {row.pop("image_name").partition("/")[2]: row for row in rows}


def kept(database: Database) -> list[str]:
    batches = images_table(database).read(where=KEPT, columns=["image_name"], order_by="image_name")
    return [name.partition("/")[2] for batch in batches for name in batch.column("image_name").to_pylist()]


def test_other_limits_judge_anew_without_any_picture_and_as_if_they_had_held_from_the_start(
    judged: Database, tmp_path: Path
) -> None:
    first = verdicts(judged)
    shutil.move(tmp_path / "store", tmp_path / "away")
    done = curated(judged, tmp_path, STRICT)
    assert (set(done.run.completed.values()), done.run.stuck["images.pixels"]) == ({0}, [])
    assert kept(judged) == ["1.png", "2.png", "3.png"]
    replayed = verdicts(judged)
    assert replayed["0.png"] == {
        "probe_drop": "small: 72 x 72, under 80 pixels",
        **dict.fromkeys(("hashes_drop", "pixels_drop", "captions_drop", "duplicate_drop")),
    }
    assert replayed["5.png"]["pixels_drop"] == "white: 0.833, over 0.5"

    shutil.move(tmp_path / "away", tmp_path / "store")
    with judged.connection() as connection:
        connection.execute("TRUNCATE images, curation_limits")
    ingest(judged, find_source(str(tmp_path / "pictures"), tmp_path / "cache"))
    curated(judged, tmp_path, STRICT)
    assert verdicts(judged) == replayed

    done = curated(judged, tmp_path)
    assert {name.partition(".")[2]: number for name, number in done.run.completed.items()} == {
        "fetch": 0,
        "probe": 0,
        "hashes": 1,
        "pixels": 1,
        "captions": 3,
    }
    assert verdicts(judged) == first


def test_a_share_exactly_at_its_limit_is_judged_alike_by_worker_and_replay(judged: Database, tmp_path: Path) -> None:
    # 0.83333... is no real number: judged in double precision, its own column would be over it.
    (share,) = [row["white_ratio"] for row in _rows(judged, "image_name LIKE '%5.png'")]
    assert share != 80 / 96
    limits = LimitTable(pixels=PixelLimits(max_white_ratio=80 / 96))
    assert judge_again(images_table(judged), limits).num_changed == 0


def _rows(database: Database, where: str) -> list[dict[str, Any]]:
    return [row for batch in images_table(database).read(where=where) for row in batch.to_pylist()]


def test_a_row_whose_columns_are_missing_is_measured_again(judged: Database, tmp_path: Path) -> None:
    images = images_table(judged)
    names = [row["image_name"] for row in _rows(judged, "image_name LIKE '%1.png' OR image_name LIKE '%2.png'")]
    images.update([{"image_name": names[0], "laplacian_v1": None}, {"image_name": names[1], "damage": None}])
    first = verdicts(judged)
    assert judge_again(images, LimitTable()) == Judged(7, 2, 2)
    done = curated(judged, tmp_path)
    assert (done.run.completed["images.probe"], done.run.completed["images.pixels"]) == (1, 2)
    assert verdicts(judged) == first


def test_a_judging_that_was_stopped_is_done_again_whatever_the_limits_are(
    judged: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, strict = images_table(judged), STRICT.filters
    before = last_limits(judged)
    assert before == CurationConfig().filters

    def stop(images: object, table: object) -> Judged:
        judge_again(images, table)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr("pleinair.curation.replay.judge_again", stop)
    with pytest.raises(KeyboardInterrupt):
        judge_where_limits_changed(judged, images, strict)
    monkeypatch.undo()
    assert last_limits(judged) is None
    judge_where_limits_changed(judged, images, CurationConfig().filters)
    assert [row["pixels_drop"] for row in verdicts(judged).values() if row["pixels_drop"]] == []


def test_what_captioning_read_is_judged_by_the_next_curation(judged: Database, tmp_path: Path) -> None:
    images = images_table(judged)
    images.update(
        [{"image_name": row["image_name"], "ocr_share": 0.4} for row in _rows(judged, "image_name LIKE '%3.png'")]
    )
    by_source = CurationConfig(overrides=(Override(source="pictures-*", pixels={"max_ocr_share": 0.2}),))
    curated(judged, tmp_path, by_source)
    assert verdicts(judged)["3.png"]["pixels_drop"] == "read text: 0.400, over 0.2"
    images.update(
        [{"image_name": row["image_name"], "ocr_share": 0.3} for row in _rows(judged, "image_name LIKE '%4.png'")]
    )
    curated(judged, tmp_path, by_source)
    assert kept(judged) == ["0.png", "1.png", "2.png", "5.png"]


def test_a_trial_counts_who_would_go_and_who_would_come_back_and_changes_nothing(judged: Database) -> None:
    images, first = images_table(judged), verdicts(judged)
    costs, trial = filter_costs(read_measures(images, more=["image_path"]), STRICT.filters, LimitTable())
    (source,) = {source for cost in costs for source in cost.by_source}
    assert (trial.num_judged, trial.num_kept) == (7, 6)
    assert dict(trial.would_go) == {(source, "small"): 1, (source, "white"): 2}
    assert not trial.would_return
    _, back = filter_costs(read_measures(images, more=["image_path"]), LimitTable(), STRICT.filters)
    assert back.would_return == trial.would_go
    white = next(cost for cost in costs if cost.filter.kind == "white").by_source[source]
    assert [one.image_name.rpartition("/")[2] for one in white.dropped] == ["4.png", "5.png"]
    assert [one.image_name.rpartition("/")[2] for one in white.kept] == ["3.png", "2.png", "1.png", "0.png"]
    assert (white.num_unknown, white.num_dropped) == (1, 2)
    assert verdicts(judged) == first


def test_the_command_line_writes_the_page_and_prints_the_trial(
    judged: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "filters.html"
    where = ["--dsn", judged.dsn, "--home", str(tmp_path)]
    assert main(["filters", "--set", "pixels.max_white_ratio=0.5", "--page", str(page), *where]) == 0
    out = capsys.readouterr().out
    assert "7 pictures judged, 6 stay now: 2 would go, 0 would come back, 0 would be measured first" in out
    assert "2 would go (white)" in out
    text = page.read_text()
    assert 'id="white"' in text
    assert text.count("data:image/webp") > 20
    assert "<script" not in text
    with judged.connection() as connection:
        connection.execute("TRUNCATE images")
    assert main(["filters", "--page", str(page), *where]) == 1
    assert "no picture was measured yet: run `pleinair curate` first" in capsys.readouterr().err
