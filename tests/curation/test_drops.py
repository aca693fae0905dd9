"""Every drop is two clicks away: verdicts read back, pages of a real curation walked as a person would, one picture told."""

from __future__ import annotations

import html.parser
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pleinair import krablet
from pleinair.cli.main import main
from pleinair.curation import ObjectStore, curate, find_source, images_table, ingest
from pleinair.curation.drops.folder import page_id, reason_addresses, write_drop_pages
from pleinair.curation.drops.reading import ReasonDrops, StageDrops, read_drops, read_rows, why
from pleinair.curation.drops.verdicts import read_verdict
from pleinair.krablet import Database
from pleinair.records.errors import ConfigError

SCRIPT = "<script>alert(1)</script> & 'quoted'"


def photo(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def curated(postgres: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Nine pictures through the real stages, then verdicts of stages that were not run here: the check, and a stranger's.

    The name of the database and a folder with the store; each test has copies.
    """
    home = tmp_path_factory.mktemp("curated")
    folder = home / "mine"
    folder.mkdir()
    for seed in range(3):
        photo(seed).save(folder / f"good-{seed}.png")
    photo(0, (80, 80)).save(folder / "copy.jpg")
    for side in (20, 50, 60):
        photo(side, (side, side)).save(folder / f"small-{side}.png")
    Image.new("RGB", (64, 64), "white").save(folder / "blank.png")
    (folder / "cut.png").write_bytes((folder / "good-1.png").read_bytes()[:900])
    for path in list(folder.iterdir()):
        path.with_suffix(".txt").write_text(f"A picture called {path.stem}. {SCRIPT}")
    with postgres.connection() as connection:
        connection.execute("CREATE DATABASE curated_for_drops")
    with krablet.connect(postgres.dsn.replace("/postgres?", "/curated_for_drops?")) as database:
        ingest(database, find_source(str(folder), home / "cache"))
        curate(database, cache=home / "cache", store=home / "store", processes=1)
        judged_elsewhere(database)
    yield "curated_for_drops", home
    with postgres.connection() as connection:
        connection.execute("DROP DATABASE curated_for_drops WITH (FORCE)")


def judged_elsewhere(database: Database) -> None:
    columns = {"image_name": "text", "frame_drop": "text", "frame_score": "real"}
    images = database.table("images", key="image_name", columns=columns)
    claims = [{"text": "a red dog", "holds": False, "by": "tower", "score": 0.1}, {"text": "grass", "holds": True}]
    images.update(
        [
            {"image_name": named(database, "good-1"), "frame_drop": "frame: 0.93, over 0.5", "frame_score": 0.93},
            {
                "image_name": named(database, "good-2"),
                "check_drop": "claims: 1 of 2 do not hold in description 1: a red dog",
                "description": "A red dog on grass.",
                "claims": claims,
                "failing_claims": ["a red dog"],
            },
        ]
    )


@pytest.fixture
def warehouse(postgres: Database, curated: tuple[str, Path], tmp_path: Path) -> Iterator[Database]:
    template, home = curated
    for part in ("store", "mine"):
        shutil.copytree(home / part, tmp_path / part)
    with postgres.connection() as connection:
        connection.execute(f"CREATE DATABASE drops_copy TEMPLATE {template}")  # type: ignore[arg-type]
        with krablet.connect(postgres.dsn.replace("/postgres?", "/drops_copy?")) as database:
            yield database
        connection.execute("DROP DATABASE drops_copy WITH (FORCE)")


def named(database: Database, part: str) -> str:
    found = images_table(database).read(where=f"image_name LIKE '%/{part}.%'")
    (row,) = [row for batch in found for row in batch.to_pylist()]
    return str(row["image_name"])


def named_rows(database: Database) -> dict[str, dict[str, Any]]:
    images = images_table(database)
    names = [name for batch in images.read(columns=["image_name"]) for name in batch.column("image_name").to_pylist()]
    return {row["image_name"].rpartition("/")[2]: row for row in read_rows(database, images, names)}


@pytest.fixture
def folder(warehouse: Database, tmp_path: Path) -> Path:
    write_drop_pages(warehouse, images_table(warehouse), ObjectStore(tmp_path / "store"), tmp_path / "drops")
    return tmp_path / "drops"


class Page(html.parser.HTMLParser):
    """Links by their text, pictures, text, and tags that must not be."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.links, self.pictures, self.text = path, dict[str, Path](), list[Path](), ""
        self.tags: set[str] = set()
        self._link: tuple[Path, str] | None = None
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = {name: value or "" for name, value in attrs}
        if tag == "a" and not given["href"].startswith("#"):
            self._link = (self.path.parent / given["href"], "")
        if tag in ("img", "link"):
            self.pictures.append(self.path.parent / given.get("src", given.get("href", "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._link:
            self.links[self._link[1]] = self._link[0]
            self._link = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._link:
            self._link = (self._link[0], self._link[1] + data)

    def click(self, text: str) -> Page:
        (path,) = {path for said, path in self.links.items() if text in said}
        return Page(path.resolve())


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("aspect: 7.2, over 4", ("aspect", 7.2, 4.0, 0.8)),
        ("small: 20 x 48, under 64 pixels", ("small", 20.0, 64.0, 0.6875)),
        ("bomb: 20000 x 10000 is 200 megapixels, over 100; scale it down", ("bomb", 200.0, 100.0, 1.0)),
        ("entropy: 0.012, under 0.05", ("entropy", 0.012, 0.05, 0.76)),
        ("semantic: cosine 0.96 to drawings/noto-v1/u1f600, over 0.9", ("semantic", 0.96, 0.9, 0.0667)),
        ("duplicate: 36 of 144 bits from drawings/noto/3-of-4", ("duplicate", 36.0, None, 0.75)),
        ("claims: 2 of 8 do not hold in description 1: a, over 9 dogs", ("claims", 2.0, None, 0.25)),
        ("duplicate: same bytes as drawings/noto/x-2", ("duplicate", None, None, None)),
        ("broken: truncated after 900 bytes; re-export or remove it", ("broken", None, None, None)),
        ("odd", ("odd", None, None, None)),
    ],
)
def test_a_verdict_gives_back_its_value_and_how_far_it_is_from_the_limit(
    reason: str, expected: tuple[Any, ...]
) -> None:
    found = read_verdict(reason)
    distance = None if found.distance is None else round(found.distance, 4)
    assert (found.kind, found.value, found.limit, distance) == expected


def test_two_clicks_lead_from_the_index_to_any_dropped_picture_and_its_whole_row(
    warehouse: Database, folder: Path
) -> None:
    index = Page(folder / "index.html")
    assert {"broken", "small", "entropy", "duplicate", "claims", "frame"} <= index.links.keys()
    for name, row in named_rows(warehouse).items():
        for verdict in [str(value) for column, value in row.items() if column.endswith("_drop") and value]:
            page = index.click(verdict.partition(":")[0]).click(name)
            assert verdict in page.text
            measured = [
                row["md5"],
                row["phash12_v2"],
                row["uri"],
                row["caption_long"],
                row["width"],
                row["frame_score"],
            ]
            for value in (str(round(one, 6) if isinstance(one, float) else one) for one in measured if one is not None):
                assert value in page.text, (name, value)


def test_a_duplicate_is_shown_beside_its_keeper_and_failing_claims_beside_the_caption(folder: Path) -> None:
    index = Page(folder / "index.html")
    duplicates = index.click("duplicate")
    assert len([path for path in duplicates.pictures if path.suffix == ".webp"]) == 2
    assert "kept instead: " in duplicates.click("copy.jpg").text
    checked = index.click("claims")
    assert "A red dog on grass." in checked.text
    assert "does not hold:a red dog" in checked.text
    assert "a red dogdoes not holdtower0.1" in checked.click("good-2").text


def test_pictures_nearest_to_the_limit_come_first(folder: Path) -> None:
    small = (folder / "probe-small.html").read_text()
    assert small.index("small-60.png") < small.index("small-50.png") < small.index("small-20.png")
    assert "60, under 64" in small


def test_the_pages_carry_captions_of_strangers_as_text_and_refer_to_nothing_elsewhere(folder: Path) -> None:
    pages = [Page(path) for path in folder.rglob("*.html")]
    assert len(pages) > 10
    assert SCRIPT in Page(folder / "index.html").click("small").click("small-20").text
    for page in pages:
        assert "script" not in page.tags
        assert "default-src &#x27;none&#x27;; img-src &#x27;self&#x27;" in page.path.read_text()
        for referred in [*page.links.values(), *page.pictures]:
            assert referred.resolve().is_relative_to(folder.resolve())
            assert referred.exists(), (page.path, referred)


def test_a_sample_says_so_and_holds_the_nearest(warehouse: Database, tmp_path: Path) -> None:
    images = images_table(warehouse)
    values = {f"planted/{number:05d}": 0.5 + (5000 - number) / 10_000 for number in range(5000)}
    given = {"uri": "x", "source": "x"}
    rows = ({"image_name": name, **given, "pixels_drop": f"white: {value}, over 0.5"} for name, value in values.items())
    images.upsert(rows)
    (white,) = [r for stage in read_drops(images, 40) for r in stage.reasons if r.kind == "white"]
    nearest = [f"planted/{n:05d}" for n in range(4999, 4979, -1)]
    assert (white.count, len(white.shown)) == (5000, 40)
    assert [drop.image_name for drop in white.shown[:20]] == nearest
    assert min(int(drop.image_name[-5:]) for drop in white.shown[20:]) < 2500
    out = tmp_path / "sampled"
    done = write_drop_pages(warehouse, images, ObjectStore(tmp_path / "store"), out, most=40)
    assert done.num_dropped == 5008
    assert (
        "Shown are 40 of 5,000: the 20 nearest to the limit, the rest drawn from all."
        in Page(out / "pixels-white.html").text
    )
    assert "never fetched" in Page(out / "pictures" / f"{page_id('planted/04999')}.html").text


def test_lists_are_paged(warehouse: Database, tmp_path: Path) -> None:
    images = images_table(warehouse)
    images.upsert(
        {"image_name": f"p/{n:03d}", "uri": "x", "source": "x", "pixels_drop": "white: 1, over 0.5"} for n in range(250)
    )
    write_drop_pages(warehouse, images, ObjectStore(tmp_path / "store"), tmp_path / "d")
    first = Page(tmp_path / "d" / "pixels-white.html")
    assert [path.name for name, path in first.links.items() if name.isdigit()] == [
        "pixels-white-2.html",
        "pixels-white-3.html",
    ]
    assert "p/249" in Page(first.links["3"]).text


def test_a_new_report_takes_the_place_of_the_old_one_and_of_nothing_else(
    warehouse: Database, folder: Path, tmp_path: Path
) -> None:
    images, store = images_table(warehouse), ObjectStore(tmp_path / "store")
    images.update([{"image_name": named(warehouse, "good-1"), "frame_drop": ""}])
    write_drop_pages(warehouse, images, store, folder)
    assert not (folder / "frame-frame.html").exists()
    with pytest.raises(ConfigError, match="is no drop report"):
        write_drop_pages(warehouse, images, store, tmp_path / "mine")
    assert (tmp_path / "mine" / "good-0.png").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_reasons_that_differ_only_in_signs_have_pages_of_their_own() -> None:
    kinds = ("flat border", "flat-border", "flat/border", "../../etc", "\u00e9")
    reasons = tuple(ReasonDrops("pixels", kind, 1, ()) for kind in kinds)
    found = reason_addresses([StageDrops("pixels", 9, reasons)]).values()
    assert list(found) == [
        "pixels-flat-border",
        "pixels-flat-border-b",
        "pixels-flat-border-c",
        "pixels-etc",
        "pixels-reason",
    ]


def test_a_thumbnail_goes_with_the_picture_that_is_taken_out(warehouse: Database, folder: Path, tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "store")
    path = named_rows(warehouse)["small-50.png"]["image_path"]
    copy = store.root / "thumbnails" / "256" / f"{path}.webp"
    assert copy.exists()
    store.remove(path)
    assert not copy.exists()


def told(capsys: pytest.CaptureFixture[str], database: Database, tmp_path: Path, name: str) -> Iterator[str]:
    code = main(["drops", "--picture", name, "--dsn", database.dsn, "--home", str(tmp_path)])
    printed = capsys.readouterr()
    yield from (f"{code}", printed.out + printed.err)


def test_the_terminal_tells_why_one_picture_is_not_in_the_set(
    warehouse: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = told(capsys, warehouse, tmp_path, "copy.jpg")
    assert code == "0"
    assert "dropped by duplicate: duplicate: " in text
    assert "kept instead:" in text
    assert "good-0.png: kept: nothing speaks against it, 96 x 96 PNG" in text
    assert "caption_long" in text
    assert "dropped by check" in next(iter(list(told(capsys, warehouse, tmp_path, "good-2"))[1:]))
    code, text = told(capsys, warehouse, tmp_path, "small")
    assert (code, text.count("small-")) == ("1", 3)
    code, text = told(capsys, warehouse, tmp_path, "no such picture")
    assert code == "1"
    assert "no source listed it" in text


def test_a_picture_that_was_not_judged_or_keeps_failing_is_told_apart_from_a_kept_one() -> None:
    stages = ["fetch", "captions", "duplicate"]
    kept = {"fetch_drop": "", "captions_drop": "", "duplicate_drop": ""}
    assert why(kept, stages) == "kept: nothing speaks against it"
    assert why({**kept, "held_out": True}, stages) == "kept, but held out from training"
    assert why({**kept, "duplicate_drop": None}, stages) == "not yet judged: duplicate is still to look at it"
    failing = {"fetch_drop": None, "captions_drop": None, "duplicate_drop": None, "fetch_error": "gone"}
    assert why(failing, stages) == "fetch keeps failing on it: gone"


def test_the_command_writes_the_pages(warehouse: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pages"
    assert main(["drops", "--out", str(out), "--dsn", warehouse.dsn, "--home", str(tmp_path)]) == 0
    assert f"{out / 'index.html'}: 8 drops, 8 pictures shown" in capsys.readouterr().out
