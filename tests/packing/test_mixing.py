"""Mixes through a real warehouse: the same list everywhere, only what was kept, nothing half-written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pleinair import krablet
from pleinair.cli.main import main
from pleinair.curation import curate, find_source, ingest
from pleinair.curation.clusters.warehouse import clustered_table
from pleinair.curation.entities.matching import Name, build_matcher, save_matcher
from pleinair.curation.entities.stage import declare
from pleinair.krablet import Database
from pleinair.model.autoencoders.qwen_image import QwenImageCodec
from pleinair.model.text_encoders.qwen3_vl import K2_LAYERS
from pleinair.packing.lists import PART_ROWS, list_digest
from pleinair.packing.mix import parse_mix
from pleinair.packing.mixing import MixManifest, make_mix, read_manifest
from pleinair.packs.pack import Pack
from pleinair.records.errors import ConfigError, CoverageError, PackError, SourceError
from tests.model.test_autoencoder_codecs import qwen_image
from tests.model.tiny_language_models import qwen_like_tokenizer, tiny_qwen3_vl

RNG = np.random.default_rng(11)
SCORE = "aesthetic_score"
KINDS = ("fox", "owl", "boat", "tree", "giraffe")
MIX = """
name = "balanced"
pictures = 60
seed = 3
[[sources]]
name = "clip"
weight = 1.0
[[sources]]
name = "photo"
weight = 2.0
[stage]
resolution = 64
[clusters]
[entities]
keep = 1
"""
PLAIN = 'name = "plain"\n[[sources]]\nname = "clip"\n[[sources]]\nname = "photo"\n[stage]\nresolution = 64\n'


def made_rows() -> list[dict[str, Any]]:
    """240 kept pictures of two sources, five kinds, one of them named by a single picture; and some that may not go in."""
    rows = [row(number, KINDS[4] if number == 77 else KINDS[number % 4]) for number in range(240)]
    bad = (
        {"duplicate_drop": "duplicate: of another"},
        {"captions_drop": "caption: none"},
        {"captions_drop": None},
        {"check_drop": "claims: wrong"},
        {"cluster_drop": "review: bad"},
        {"fetch_drop": "takedown: asked for"},
        {"held_out": True},
        {"width": 40},
        {"source": "elsewhere"},
        {"caption_long": "", "caption_medium": None, "caption_short": None},
    )
    return rows + [{**row(1000 + place, "zebra"), **wrong} for place, wrong in enumerate(bad)]


def row(number: int, kind: str) -> dict[str, Any]:
    source = "photo" if number % 3 else "clip"
    return {
        "image_name": f"{source}/{kind}-{number}",
        "source": source,
        "style": "ink" if source == "clip" else None,
        "licence": "CC0-1.0" if number % 2 else "MIT",
        "author": f"author {number % 7}",
        "consent": "allowed",
        "width": 64 + number % 5,
        "height": 64 + number % 3,
        "entropy": float(number % 8),
        "held_out": False,
        "captions_drop": "",
        "duplicate_drop": "",
        "caption_long": f"A long picture of a {kind}, number {number}",
        "caption_medium": f"a picture of a {kind}" if number % 4 else None,
        "caption_short": kind,
        "caption": f"my {kind}" if number % 2 else None,
        "cluster": f"{KINDS.index(kind) if kind in KINDS else 0}/{number % 10}",
        "entity_ids": [kind],
        "entities_version": "one",
        "cluster_drop": None,
        "check_drop": None,
        "fetch_drop": "",
        SCORE: float(number % 10),
    }


def fill(database: Database, rows: list[dict[str, Any]]) -> None:
    clustered_table(database)
    declare(database)
    images = database.table("images", key="image_name", columns={"image_name": "text", SCORE: "real"})
    images.upsert(rows)


@pytest.fixture
def three_shards(postgres: Database) -> Iterator[Database]:
    names = [f"mix_shard_{number}" for number in range(3)]
    with postgres.connection() as connection:
        for name in names:
            connection.execute(f'CREATE DATABASE "{name}"')
        with krablet.connect([postgres.dsn.replace("/postgres?", f"/{name}?") for name in names]) as database:
            yield database
        for name in names:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def made(database: Database, text: str, folder: Path, **more: Any) -> MixManifest:
    return make_mix(database, parse_mix(text), text, folder, code="test", **more)


def listed(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "list.parquet").to_pylist()


def bytes_of(folder: Path) -> str:
    return hashlib.sha256((folder / "list.parquet").read_bytes()).hexdigest()


def test_the_list_is_the_same_on_one_shard_and_on_three_in_any_order_of_rows(
    database: Database, three_shards: Database, tmp_path: Path
) -> None:
    rows = made_rows()
    fill(database, rows)
    fill(three_shards, [rows[place] for place in RNG.permutation(len(rows))])
    one, three = (made(db, MIX, tmp_path / name) for name, db in (("one", database), ("three", three_shards)))
    assert one == three
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "three")
    assert read_manifest(tmp_path / "one") == one
    assert one.num_rows == len(listed(tmp_path / "one")) == 60
    other_seed = made(database, MIX.replace("seed = 3", "seed = 4"), tmp_path / "other")
    assert other_seed.digest != one.digest
    assert other_seed.sources == one.sources


def test_the_list_holds_only_kept_pictures_that_are_not_held_out(database: Database, tmp_path: Path) -> None:
    rows = made_rows()
    fill(database, rows)
    assert made(database, PLAIN, tmp_path / "m").num_rows == 240
    assert {row["key"] for row in listed(tmp_path / "m")} == {row["image_name"] for row in rows[:240]}


def test_weights_are_met_and_a_picture_belongs_to_the_first_source_that_takes_it(
    database: Database, tmp_path: Path
) -> None:
    fill(database, made_rows())
    text = PLAIN.replace('"clip"\n', '"mit"\ncondition = "licence = \'MIT\'"\nweight = 1\n').replace(
        '"photo"\n', '"photo"\nweight = 3\n'
    )
    manifest = made(database, f"pictures = 101\n{text}", tmp_path / "m")
    assert manifest.sources == {"mit": 25, "photo": 76}
    assert all(row["source"] == "photo" or int(row["key"].split("-")[1]) % 2 == 0 for row in listed(tmp_path / "m"))


def test_an_entity_of_one_picture_is_kept_and_proven(database: Database, tmp_path: Path) -> None:
    fill(database, made_rows())
    names = [Name(0, place, kind) for place, kind in enumerate((*KINDS, "zebra"))]
    matcher = build_matcher(names, [*KINDS, "zebra"])
    save_matcher(matcher, tmp_path / "names.npz")
    manifest = made(database, MIX, tmp_path / "m", names=tmp_path / "names.npz")
    assert (manifest.num_entities, manifest.matched_anew) == (5, True)
    assert "photo/giraffe-77" in {row["key"] for row in listed(tmp_path / "m")}


def test_a_list_whose_captions_no_longer_name_an_entity_is_refused_and_leaves_nothing(
    database: Database, tmp_path: Path
) -> None:
    fill(database, made_rows())
    save_matcher(build_matcher([Name(0, 0, "giraffe")], ["giraffe"]), tmp_path / "names.npz")
    declare(database)[0].update(
        [{"image_name": "photo/giraffe-77", "caption_long": "a horse", "caption_medium": "", "caption_short": "horse"}]
    )
    with pytest.raises(CoverageError, match=r"entities lost too many pictures: .*giraffe \(1 before, 0 after\)"):
        made(database, MIX, tmp_path / "m", names=tmp_path / "names.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"names.npz"}


def test_caption_weights_leave_out_captions_a_picture_lacks(database: Database, tmp_path: Path) -> None:
    fill(database, made_rows())
    made(database, PLAIN + "[captions]\nlong = 6\nmedium = 2\nshort = 2\nown = 10", tmp_path / "m")
    weights = {int(row["key"].split("-")[1]): row["caption_weights"] for row in listed(tmp_path / "m")}
    assert weights[1] == pytest.approx([0.3, 0.1, 0.1, 0.5])
    assert weights[2] == pytest.approx([0.6, 0.2, 0.2, 0.0])
    assert weights[4] == pytest.approx([0.75, 0.0, 0.25, 0.0])


def test_a_mix_that_fails_leaves_the_one_that_was_there(database: Database, tmp_path: Path) -> None:
    fill(database, made_rows())
    folder = tmp_path / "m"
    before = made(database, MIX, folder)

    def broken(path: Path, record: Any) -> None:
        path.write_text("half")
        raise RuntimeError("no more paper")

    with pytest.raises(RuntimeError, match="no more paper"):
        made(database, MIX.replace("60", "50"), folder, write_sheet=broken)
    assert read_manifest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert sorted(path.name for path in folder.iterdir()) == ["list.parquet", "manifest.json", "mix.toml"]


def test_a_warehouse_that_changes_between_the_passes_is_noticed(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database, made_rows())
    passes: list[str] = []

    def take_one_away(what: str, done: int, total: int) -> None:
        if done == total and not passes:
            passes.append(what)
            name = [row["image_name"] for row in made_rows() if row["entity_ids"] == ["giraffe"]]
            declare(database)[0].update([{"image_name": name[0], "duplicate_drop": "duplicate: now"}])

    with pytest.raises(SourceError, match="60 pictures were chosen and 59 of them read again: the warehouse changed"):
        made(database, MIX, tmp_path / "m", on_progress=take_one_away)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "[stage.limits]\nocr_share = {max = 0.1}",
            "stage.limits.ocr_share: 239 kept pictures have no ocr_share yet; run",
        ),
        ("[stage.limits]\nlicence = {max = 1}", "stage.limits.licence is on a column of text: limit one of"),
        ("[stage.limits]\nentropi = {max = 1}", "stage.limits.entropi names 'entropi', .*: did you mean 'entropy'"),
        ("[stage.limits]\nentropy = {max = -1}", "no picture fits the mix"),
        ("max_aspect = 1.0\n[stage.limits]\nentropy = {max = 0}\n[entities]", None),
    ],
)
def test_limits_are_checked_against_the_warehouse(
    database: Database, tmp_path: Path, change: str, sentence: str | None
) -> None:
    fill(database, made_rows()[:239])
    if sentence is None:
        assert made(database, PLAIN + change, tmp_path / "m").num_rows == 6
        return
    with pytest.raises(ConfigError, match=sentence):
        made(database, PLAIN + change, tmp_path / "m")


def test_a_floor_under_quality_may_cut_failures_and_not_choose(database: Database, tmp_path: Path) -> None:
    rows = [{**row, "width": 512, "height": 512} for row in made_rows()[:240]]
    rows[0][SCORE] = -5.0
    fill(database, rows)
    text = PLAIN.replace("resolution = 64", "resolution = 512\nlimits.aesthetic_score = { min = %s }")
    assert made(database, text % "-1", tmp_path / "m").num_rows == 239
    with pytest.raises(
        ConfigError, match=r"the floors under quality cut 120 of 240 pictures, over 5%: that is choosing"
    ):
        made(database, text % "5", tmp_path / "n")


def test_clusters_and_entities_that_nobody_looked_for_name_the_command(database: Database, tmp_path: Path) -> None:
    fill(database, [{**row, "cluster": None, "entities_version": None} for row in made_rows()])
    with pytest.raises(SourceError, match="no picture of the mix is in a cluster: run 'pleinair cluster'"):
        made(database, PLAIN + "[clusters]", tmp_path / "m")
    with pytest.raises(SourceError, match="not every picture of the mix is matched .*: run 'pleinair entities match'"):
        made(database, PLAIN + "[entities]", tmp_path / "m")


def test_a_list_that_was_changed_is_not_read(database: Database, tmp_path: Path) -> None:
    fill(database, made_rows())
    made(database, PLAIN, tmp_path / "m")
    table = pq.read_table(tmp_path / "m" / "list.parquet")
    pq.write_table(table.slice(1), tmp_path / "m" / "list.parquet")
    with pytest.raises(PackError, match="is not the list that its manifest tells of: run 'pleinair mix' again"):
        read_manifest(tmp_path / "m")
    with pytest.raises(PackError, match="is not the folder of a mix"):
        read_manifest(tmp_path)


def test_parts_on_disk_change_nothing(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(database, made_rows())
    made(database, PLAIN, tmp_path / "whole")
    monkeypatch.setattr("pleinair.packing.lists.PART_ROWS", 37)
    parts = made(database, PLAIN, tmp_path / "parts")
    assert PART_ROWS > 240
    assert listed(tmp_path / "parts") == listed(tmp_path / "whole")
    assert list_digest(tmp_path / "parts" / "list.parquet") == parts.digest
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["list.parquet", "manifest.json", "mix.toml"]


def picture(folder: Path, number: int) -> None:
    coarse = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 88), Image.Resampling.BICUBIC).save(folder / f"p{number}.png")
    facts = {"caption": f"<b>picture</b> {number}", "licence": "CC0-1.0", "author": f"A. Painter {number}"}
    (folder / f"p{number}.json").write_text(json.dumps(facts))


def test_from_a_folder_to_a_datasheet_by_the_command_line_where_only_curate_ran(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        picture(folder, number)
    source = find_source(str(folder), tmp_path / "cache")

    def curated() -> None:
        ingest(database, source)
        curate(database, cache=tmp_path / "cache", store=tmp_path / "store", processes=1)

    curated()
    text = f'name = "small"\npictures = 8\n[[sources]]\nname = "{source.name}"\n[stage]\nresolution = 64\n'
    (tmp_path / "small.toml").write_text(text)
    words = [
        "mix",
        str(tmp_path / "small.toml"),
        "--dsn",
        database.dsn,
        "--home",
        str(tmp_path),
        "--out",
        str(tmp_path),
    ]
    assert main(words) == 0
    digest = read_manifest(tmp_path / "small").digest
    page = (tmp_path / "small" / "datasheet.html").read_text()
    assert page.count("<img") == 8
    for said in ("A. Painter", "CC0-1.0", "&lt;b&gt;picture", digest, "names of no entity", "name = &quot;small&quot;"):
        assert said in page
    assert "<b>picture" not in page

    with database.connection() as connection:
        connection.execute("TRUNCATE images")
    curated()
    assert main([*words, "--expect", digest]) == 0, "ingested anew, the list is the same"
    assert main([*words, "--expect", "00"]) == 1
    assert main([*words, "--explain"]) == 0
    assert "12  kept by every stage" in capsys.readouterr().out

    tiny_qwen3_vl().save_pretrained(tmp_path / "k2" / "text_encoder")
    qwen_like_tokenizer().save_pretrained(tmp_path / "k2" / "tokenizer")
    qwen_image().save_pretrained(tmp_path / "k2" / "vae")
    named = ["--text-encoder", str(tmp_path / "k2"), "--autoencoder", str(tmp_path / "k2")]
    assert main(["pack", str(tmp_path / "small"), *words[2:6], *named]) == 0
    manifest = Pack(tmp_path / "small.pack").manifest
    assert manifest.latent_space == QwenImageCodec(qwen_image()).describe().identity
    assert (manifest.num_rows, manifest.text_layers, manifest.text_dim) == (8, K2_LAYERS, 16)


def test_a_file_that_cannot_be_read_is_told_with_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text(PLAIN + "wait = 1")
    assert main(["mix", str(tmp_path / "bad.toml")]) == 1
    assert "bad.toml: unknown key 'wait' for ResolutionStage" in capsys.readouterr().err
    assert main(["mix", str(tmp_path / "none.toml")]) == 1
    assert (
        "none.toml cannot be read (No such file or directory): give the path of a mix file" in capsys.readouterr().err
    )
