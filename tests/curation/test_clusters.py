"""Embeddings, clusters, tags and reviews through a real warehouse: what is written, and what a person's word does."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pleinair import krablet
from pleinair.cli.cluster import ask_for_decision
from pleinair.cli.main import main
from pleinair.curation import ObjectStore
from pleinair.curation.clusters.hierarchy import HierarchyConfig
from pleinair.curation.clusters.names import ClusterName, name_by_model, name_by_words, read_answer
from pleinair.curation.clusters.reviews import (
    apply_reviews,
    decide,
    read_clusters,
    read_events,
    record_flags,
    to_review,
)
from pleinair.curation.clusters.semantic import CandidateLimits, Judged, candidates, judge, near_pairs
from pleinair.curation.clusters.warehouse import (
    ClusterConfig,
    ClusterRow,
    FlagLimits,
    cluster_pictures,
    clustered_table,
    leading_directions,
    levels_for,
)
from pleinair.curation.embeddings import (
    embed_rows,
    embed_stage,
    embedded_table,
    get_vectors,
    put_vectors,
    read_embeddings,
)
from pleinair.krablet import Database
from pleinair.model.image_encoder import Embeddings, Picture
from pleinair.records.errors import ConfigError, SourceError

KINDS = {
    "fox": (30, (200, 80, 20)),
    "boat": (20, (30, 60, 200)),
    "tree": (8, (20, 160, 40)),
    "blank": (6, (250, 250, 250)),
}
LEVELS = HierarchyConfig(num_clusters=(8, 4), resample_points=(2, 0), num_resamples=2, iterations=10)


class MeanColour:
    """A real, tiny encoder: mean colour and its spread."""

    width = 6

    def __init__(self, name: str = "mean-colour-v1") -> None:
        self.name = name

    def embed(self, pictures: Sequence[Picture]) -> Embeddings:
        flat = [picture.reshape(-1, 3).astype(np.float32) / 255 for picture in pictures]
        return np.stack([np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]) for pixels in flat])


def png(colour: tuple[int, int, int], seed: int) -> bytes:
    noise = np.random.default_rng(seed).normal(0, 8, (24, 24, 3))
    written = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(written, "PNG")
    return written.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store")


@pytest.fixture
def warehouse(database: Database, store: ObjectStore) -> Database:
    """Sixty-four kept pictures of four kinds, embedded by the stage."""
    rows = [
        {
            "image_name": f"{kind}-{number:02d}",
            "uri": f"made:{kind}-{number}",
            "source": "made",
            "image_path": store.put(png(colour, number)),
            "pixels_drop": "",
            "captions_drop": "",
            "duplicate_drop": "",
            "caption_long": f"a picture of a {kind}",
            "licence": "CC0-1.0",
            "entropy": 0.2 if kind == "blank" else 5.0,
            "border_flatness": 0.5,
        }
        for kind, (count, colour) in KINDS.items()
        for number in range(count)
    ]
    embedded_table(database).upsert(rows)
    work(database, store, MeanColour())
    return database


def work(database: Database, store: ObjectStore, encoder: MeanColour) -> None:
    stage = embed_stage(embedded_table(database), encoder.name)
    krablet.work([stage], {"embed": lambda batch: embed_rows(batch, encoder, store)})


def clustered(database: Database, store: ObjectStore, **more: object) -> list[ClusterRow]:
    return cluster_pictures(database, store, ClusterConfig(hierarchy=LEVELS, **more))  # type: ignore[arg-type]


def columns(database: Database, *names: str) -> dict[str, tuple[object, ...]]:
    found = clustered_table(database).read(columns=["image_name", *names])
    return {row["image_name"]: tuple(row[name] for name in names) for batch in found for row in batch.to_pylist()}


def test_the_stage_keeps_one_file_per_claim_and_reading_gives_every_vector_back(
    warehouse: Database, store: ObjectStore
) -> None:
    embedded = read_embeddings(embedded_table(warehouse), store)
    assert embedded.names == sorted(f"{kind}-{n:02d}" for kind, (count, _) in KINDS.items() for n in range(count))
    assert embedded.vectors_ND.shape == (64, 6)
    fox = embedded.vectors_ND[embedded.names.index("fox-03")]
    np.testing.assert_allclose(fox[:3], np.array(KINDS["fox"][1]) / 255, atol=0.02)
    paths = {place[0].partition("#")[0] for place in columns(warehouse, "embedding_path").values()}  # type: ignore[attr-defined]
    assert len(paths) == 1


def test_another_encoder_makes_the_stage_look_at_every_picture_again(warehouse: Database, store: ObjectStore) -> None:
    again = MeanColour("mean-colour-v2")
    assert embed_stage(embedded_table(warehouse), again.name).depth().ready == 64
    claim = embed_stage(embedded_table(warehouse), again.name).claim(1)
    assert len(claim.rows) == 1
    embed_stage(embedded_table(warehouse), again.name).complete(claim, embed_rows(claim.rows, again, store))
    with pytest.raises(SourceError, match="embeddings of 2 encoders are mixed: run 'pleinair embed' to the end"):
        read_embeddings(embedded_table(warehouse), store)


def test_a_picture_gone_from_the_store_fails_alone(store: ObjectStore) -> None:
    rows = [
        {"image_path": store.put(png((9, 9, 9), 0))},
        {"image_path": "00/gone.png"},
        {"image_path": store.put(b"no")},
    ]
    first, second, third = embed_rows(rows, MeanColour(), store)
    assert isinstance(first, dict)
    assert first["embedding_name"] == "mean-colour-v1"
    assert isinstance(second, SourceError)
    assert "not a picture" in str(third)


def test_vectors_come_back_at_half_precision_or_whole_where_half_cannot_hold_them(store: ObjectStore) -> None:
    small = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    large = small * 1e6
    places = put_vectors(store, small) + put_vectors(store, large)
    order = [7, 0, 4, 9]
    np.testing.assert_allclose(
        get_vectors(store, [places[n] for n in order]), np.concatenate([small, large])[order], rtol=1e-3, atol=1e-6
    )
    with pytest.raises(ValueError, match="infinities or NaN"):
        put_vectors(store, np.array([[1.0, np.inf]], np.float32))


def test_clusters_are_written_named_and_flagged(warehouse: Database, store: ObjectStore) -> None:
    rows = clustered(warehouse, store, flags=FlagLimits(max_similarity=1.0, max_share=1.0))
    top = sorted((row.size, row.name, row.flags) for row in rows if row.level == 1)
    assert top == [
        (6, "blank", ["plain: median entropy 0.20 bits, under 0.5"]),
        (8, "tree", []),
        (20, "boat", []),
        (30, "fox", []),
    ]
    paths = {row.cluster: row for row in rows if row.level == 0}
    assert {path for (path,) in columns(warehouse, "cluster").values()} == set(paths)
    for row in rows:
        kinds = {name.partition("-")[0] for name in row.nearest}
        assert kinds == {row.name} or row.name == "no common word"
    assert read_clusters(warehouse, rows[0].run) == sorted(rows, key=lambda row: (-row.size, row.cluster))


def test_the_same_pictures_give_the_same_run_and_new_settings_another(warehouse: Database, store: ObjectStore) -> None:
    first, again, other = clustered(warehouse, store), clustered(warehouse, store), clustered(warehouse, store, dims=3)
    assert first == again
    assert first[0].run != other[0].run


def test_a_person_drops_a_cluster_and_keeps_a_leaf_of_it(warehouse: Database, store: ObjectStore) -> None:
    rows = clustered(warehouse, store)
    boats = next(row for row in rows if row.level == 1 and row.name == "boat")
    leaf = next(row for row in rows if row.level == 0 and row.cluster.startswith(f"{boats.cluster}/"))
    apply_reviews(warehouse)
    assert decide(warehouse, boats.cluster, "drop", "no boats here") == 20
    assert decide(warehouse, leaf.cluster, "keep", "") == leaf.size
    verdicts = columns(warehouse, "cluster", "cluster_drop")
    reason = f"cluster: boat ({boats.cluster}), dropped by a person: no boats here"
    for name, (cluster, drop) in verdicts.items():
        assert drop == (reason if name.startswith("boat") and cluster != leaf.cluster else "")
    assert decide(warehouse, boats.cluster, "keep", "") == 20 - leaf.size
    assert [event.origin for event in read_events(warehouse)] == ["human"] * 3
    with pytest.raises(ConfigError, match="has no cluster '99'"):
        decide(warehouse, "99", "keep", "")


def test_pictures_of_an_earlier_run_lose_their_cluster_when_they_are_no_longer_kept(
    warehouse: Database, store: ObjectStore
) -> None:
    clustered(warehouse, store)
    clustered_table(warehouse).update([{"image_name": "fox-00", "duplicate_drop": "duplicate: of another"}])
    clustered(warehouse, store)
    assert columns(warehouse, "cluster_run", "cluster")["fox-00"] == (None, None)


def test_flags_are_recorded_once_and_wait_for_a_person(warehouse: Database, store: ObjectStore) -> None:
    rows = clustered(warehouse, store, flags=FlagLimits(max_similarity=1.0, max_share=1.0))
    flagged = to_review(rows, {})
    assert {name.partition("-")[0] for row in flagged for name in row.nearest} == {"blank"}
    assert record_flags(warehouse, rows) == len(flagged)
    assert record_flags(warehouse, rows) == 0
    assert {(event.origin, event.decision) for event in read_events(warehouse)} == {("rule", "flag")}
    assert apply_reviews(warehouse) == 64
    assert set(columns(warehouse, "cluster_drop").values()) == {("",)}


def answers(*lines: str) -> object:
    given = iter(lines)
    return lambda prompt: next(given)


ROW = ClusterRow("r:1", "r", "1", 0, 3, "fox", ["fox"], ["alike: so"], ["a", "b"])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("d all the same",), ("drop", "all the same")),
        (("x", "keep"), ("keep", "")),
        (("s",), ("skip", "")),
        (("q",), None),
    ],
)
def test_the_terminal_asks_until_it_understands(lines: tuple[str, ...], expected: object) -> None:
    assert ask_for_decision(ROW, answers(*lines)) == expected  # type: ignore[arg-type]


def test_the_commands_cluster_review_and_tag(
    warehouse: Database, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--dsn", warehouse.dsn, "--home", str(tmp_path)]
    page = tmp_path / "clusters.html"
    assert main(["cluster", "--page", str(page), "--set", "dims=6", *where]) == 0
    text = page.read_text()
    assert "pleinair review drop" in text
    assert "CC0-1.0" in text
    assert "<script" not in text
    flagged = text.partition("pleinair review drop ")[2].split()[0]
    assert main(["review", "drop", flagged, "--reason", "nothing to see", *where]) == 0
    assert main(["review", "keep", *where]) == 1
    tags = [
        "tags",
        "--page",
        str(tmp_path / "tags.html"),
        "--set",
        "active=2",
        "--set",
        "features=8",
        "--set",
        "epochs=60",
    ]
    assert main([*tags, *where]) == 0
    assert "named features" in capsys.readouterr().out
    from pleinair.curation.tags import tagged_table

    found = tagged_table(warehouse).read(where="'fox' = ANY(sae_tags)", columns=["image_name"])
    names = [name for batch in found for name in batch.column("image_name").to_pylist()]
    assert len(names) >= 24
    assert all(name.startswith("fox") for name in names)
    assert not (tmp_path / "training" / "sparse-autoencoder").exists()


def test_a_models_answer_names_and_flags_and_nonsense_falls_back_to_words() -> None:
    assert read_answer('```json\n{"name": "stock  photos", "flag": "watermarks"}\n```') == ClusterName(
        "stock photos", "watermarks"
    )
    assert read_answer('{"name": "foxes"}') == ClusterName("foxes")
    for nonsense in ("", "I see foxes.", "{}", '{"name": ""}', "[1, 2]", '{"name": "x"'):
        assert read_answer(nonsense) is None
    asked: list[tuple[str, int]] = []

    def ask(question: str, pictures: Sequence[bytes]) -> str:
        asked.append((question, len(pictures)))
        return "sorry"

    assert name_by_model(ask)([b"1", b"2"], ["fox", "red"]) == ClusterName("fox red", "the model gave no usable name")
    assert asked[0][1] == 2
    assert "fox, red" in asked[0][0]
    assert name_by_words([], []) == ClusterName("no common word")


def test_every_near_pair_is_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pleinair.curation.clusters.semantic._BLOCK", 7)
    unit = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    naive = [(i, j) for i in range(40) for j in range(i + 1, 40) if unit[i] @ unit[j] >= 0.9]
    assert sorted(map(tuple, near_pairs(unit, 0.9).tolist())) == naive


def on_circle(*degrees: float) -> Embeddings:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def asked(
    unit: Embeddings, cluster: list[int], limits: CandidateLimits, grey: Sequence[int] = ()
) -> set[tuple[int, int]]:
    colours = np.zeros((len(unit), 28), np.int16)
    colours[: len(grey), 0] = grey
    found = candidates(unit, colours, np.array(cluster), limits)
    np.testing.assert_allclose(found.similarity, [unit[a] @ unit[b] for a, b in found.pairs], rtol=1e-5)
    return {(int(a), int(b)) for a, b in found.pairs}


def test_candidates_are_near_in_vector_and_colour_in_one_cluster_and_few_for_each() -> None:
    unit, limits = on_circle(0, 1, 3, 60, 2), CandidateLimits(min_similarity=0.9, nearest=6)
    assert asked(unit, [0] * 5, limits) == {(0, 1), (0, 2), (0, 4), (1, 2), (1, 4), (2, 4)}
    assert asked(unit, [0, 1, 0, 0, 0], limits) == {(0, 2), (0, 4), (2, 4)}
    assert asked(unit, [0] * 5, limits, grey=[17, 17, 0, 0, 0]) == {(0, 1), (2, 4)}
    assert asked(unit, [0] * 5, limits, grey=[16, 16, 0, 0, 0]) == asked(unit, [0] * 5, limits)
    # Each one's nearest: 0-1, 1-0 (before 1-4, as far), 2-4, 4-1 (before 4-2, as far).
    one = asked(on_circle(0, 1, 3.5, 60, 2.1), [0] * 5, CandidateLimits(min_similarity=0.9, nearest=1))
    assert one == {(0, 1), (1, 4), (2, 4)}


def test_a_chain_of_parts_keeps_what_no_keeper_shows() -> None:
    chain = np.array([[0, 1], [1, 2], [3, 4]])
    rank = np.arange(6)
    assert judge(6, chain, rank) == [Judged(0, 0), Judged(1, 0), Judged(3, 3), Judged(4, 3)]
    assert judge(6, chain, rank[::-1]) == [Judged(1, 2), Judged(2, 2), Judged(3, 4), Judged(4, 4)]
    assert judge(6, chain, np.array([1, 0, 2, 3, 4, 5])) == [
        Judged(0, 1), Judged(1, 1), Judged(2, 1), Judged(3, 3), Judged(4, 3)
    ]  # fmt: skip
    assert judge(3, np.empty((0, 2), np.int64), rank) == []


def test_pictures_in_directions_that_are_left_out_stay_as_far_from_others_as_they_were() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=(400, 4)) * (4, 4, 4, 0.1)
    rare = rng.normal(size=(8, 4)) * 0.3 + (0, 0, 0.3, 5)
    vectors = np.concatenate([common, rare]).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    projected = leading_directions(unit, 3)
    assert projected.shape == (408, 3)
    np.testing.assert_allclose(np.linalg.norm(projected, axis=1), 1, atol=1e-6)
    assert leading_directions(unit, 4) is unit


def test_default_levels_suit_the_number_of_pictures() -> None:
    assert levels_for(15_558).num_clusters == (1037, 345)
    assert levels_for(20).num_clusters == (1,)
    assert levels_for(45).num_clusters == (3, 1)
    assert levels_for(45).resample_points == (7, 2)
    assert levels_for(10_000_000).num_clusters == (666_666, 222_222, 22_222, 2_222)
