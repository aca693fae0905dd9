"""From WordNet's names to a proven sample, through real Postgres, real workers and the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pleinair.cli.main import main
from pleinair.curation.entities.build import entities_table
from pleinair.curation.entities.matching import Name, build_matcher, save_matcher
from pleinair.curation.entities.report import read_pool, sampled
from pleinair.curation.entities.stage import declare, match_all
from pleinair.krablet import Database
from pleinair.records.errors import CoverageError, SourceError

CAPTIONS = {
    "a": ("two foxes in a forest", "a fox", None),
    "b": ("A fox and an owl on a branch", None, None),
    "c": ("nothing of note", None, None),
    "d": ("An apple", "an apple, painted", "apple"),
    "e": ("the flag of Turkey", None, None),
    "dropped": ("a giraffe", None, None),
    "copy": ("a zebra", None, None),
}


@pytest.fixture
def captioned(database: Database) -> Database:
    """Pictures as the curation leaves them: captioned, one dropped for its caption, one a duplicate."""
    images, _ = declare(database)
    images.upsert(
        {
            "image_name": name,
            "caption_long": long,
            "caption_medium": medium,
            "caption_short": short,
            "captions_drop": "caption: wrong" if name == "dropped" else "",
            "duplicate_drop": "duplicate: of a" if name == "copy" else "",
        }
        for name, (long, medium, short) in CAPTIONS.items()
    )
    return database


def run(database: Database, home: Path, *words: str) -> int:
    return main(["entities", *words, "--dsn", database.dsn, "--home", str(home)])


def found(database: Database) -> dict[str, set[str]]:
    rows = entities_table(database).read(columns=["entity", "title"])
    title = {row["entity"]: row["title"] for batch in rows for row in batch.to_pylist()}
    images, _ = declare(database)
    given = images.read(where="entity_ids IS NOT NULL", columns=["image_name", "entity_ids"])
    pictures = [row for batch in given for row in batch.to_pylist()]
    return {row["image_name"]: {title[key] for key in row["entity_ids"]} for row in pictures}


@pytest.fixture
def matched(captioned: Database, tmp_path: Path) -> Database:
    assert run(captioned, tmp_path, "build", "wordnet", "--share", "0.95") == 0
    assert run(captioned, tmp_path, "match", "--processes", "1") == 0
    return captioned


def test_captions_are_matched_counted_sampled_and_proven(
    matched: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(matched) == {
        "a": {"fox", "forest"},
        "b": {"fox", "owl", "branch"},
        "c": set(),
        "d": {"apple"},
        "e": {"flag", "Turkey"},
        "copy": {"zebra"},
    }
    capsys.readouterr()
    page, keys = tmp_path / "coverage.html", tmp_path / "keys.txt"
    assert run(matched, tmp_path, "coverage", "--sample", "4", "--page", str(page), "--keys", str(keys)) == 0
    said = capsys.readouterr().out
    assert re.search(r"^1 +6 +6$", said, re.MULTILINE)
    assert re.search(r"^2-3 +1 +1$", said, re.MULTILINE)
    assert "4 pictures, 4 of them required: no entity was lost" in said
    assert keys.read_text().split() == ["a", "b", "d", "e"]
    assert "entities lost" in page.read_text()
    assert run(matched, tmp_path, "coverage", "--sample", "3") == 1
    assert "3 pictures cannot keep every entity: 4 are needed" in capsys.readouterr().err

    _check_rows(matched)
    _check_tampering(matched, tmp_path / "entities" / "names.npz")


def _check_rows(matched: Database) -> None:
    """Every concept has its row, with rank, kind and why it goes."""
    table = entities_table(matched)
    assert table.count() == 82192
    assert table.count("kept") + table.count("NOT kept") == 82192
    assert table.count("kept AND NOT representable") == 0
    assert table.count("rank < 78083 AND representable AND NOT kept") == 0
    assert table.count("reason = 'a time' AND kind = 'time'") > 500
    [row] = [row for batch in table.read(where="title = 'fox' AND kind = 'animal'") for row in batch.to_pylist()]
    assert (row["entity"][:5], row["aliases"], row["kept"]) == ("wn31:", ["fox"], True)


def _check_tampering(matched: Database, names: Path) -> None:
    """The second analysis reads captions, not the first one's result: what changed in between is found."""
    pool = read_pool(matched, names)
    assert sampled(matched, names, pool, 5).counts.sum() == 8
    declare(matched)[0].update([{"image_name": "e", "caption_long": "a flag"}])
    with pytest.raises(CoverageError, match="1 entities lost too many pictures: Turkey \\(1 before, 0 after\\)"):
        sampled(matched, names, pool, 5)


def test_other_names_make_every_picture_be_matched_again(captioned: Database, tmp_path: Path) -> None:
    names = tmp_path / "names.npz"
    for entity in ("fox", "owl"):
        version = save_matcher(build_matcher([Name(0, 0, entity)], [entity]), names)
        if entity == "owl":
            with pytest.raises(SourceError, match="5 kept pictures are not matched with the present names"):
                read_pool(captioned, names)
        match_all(captioned, names, processes=1)
        images, _ = declare(captioned)
        assert images.count("entities_version = %(now)s", params={"now": version}) == 6
        assert images.count("entity_ids = ARRAY[%(entity)s]", params={"entity": entity}) == (
            2 if entity == "fox" else 1
        )


def test_without_names_one_is_told_to_build_them(
    captioned: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(captioned, tmp_path, "match") == 1
    assert "run `pleinair entities build` first" in capsys.readouterr().err
