"""Crops and redraws through a real warehouse: which pairs are looked at, what proves to be one picture, who is kept."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

from pleinair import krablet
from pleinair.cli.main import main
from pleinair.curation import KEPT, ObjectStore, images_table
from pleinair.curation.clusters.alignment import NOWHERE, AlignmentLimits, align
from pleinair.curation.clusters.semantic_pairs import find_semantic_duplicates, pairs_table
from pleinair.curation.clusters.warehouse import clustered_table
from pleinair.curation.embeddings import embed_rows, embed_stage, embedded_table
from pleinair.curation.hashes import fingerprints
from pleinair.krablet import Database
from pleinair.records.errors import SourceError


def scene(seed: int, *, smile: bool = True) -> Image.Image:
    """A drawing of a face before hills; its mouth is two hundredths of the picture."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (240, 200), tuple(rng.integers(120, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, size = rng.integers(0, 240), rng.integers(0, 200), rng.integers(15, 60)
        draw.ellipse((x, y, x + size, y + size), fill=tuple(rng.integers(0, 256, 3).tolist()))
    draw.ellipse((70, 40, 170, 160), fill="#ffcc33")
    draw.ellipse((100, 120, 140, 140), fill="#552200" if smile else "#ffcc33")
    return image


def cropped(image: Image.Image, share: float) -> Image.Image:
    dx, dy = round(image.width * share), round(image.height * share)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


def recompressed(image: Image.Image, quality: int = 50) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same": lambda image: image,
    "cropped 2%": lambda image: cropped(image, 0.02),
    "cropped 5%, recompressed": lambda image: recompressed(cropped(image, 0.05)),
    "cropped 10%, half size": lambda image: cropped(image, 0.1).resize((96, 80)),
    "without its left tenth": lambda image: image.crop((24, 0, 240, 200)),
    "cropped 5%, darker": lambda image: ImageEnhance.Brightness(cropped(image, 0.05)).enhance(0.75),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_lies_on_its_original_in_either_order(kind: str) -> None:
    for seed in range(6):
        whole, part = pixels(scene(seed)), pixels(COPIES[kind](scene(seed)))
        assert align(whole, part).same(AlignmentLimits())
        assert align(part, whole).same(AlignmentLimits())


def test_another_mouth_another_colour_and_another_picture_are_not_the_same() -> None:
    for seed in range(6):
        whole = pixels(scene(seed))
        grey = pixels(scene(seed).convert("L").convert("RGB"))
        for other in (pixels(scene(seed, smile=False)), whole[..., ::-1].copy(), grey, pixels(scene(seed + 1))):
            assert not align(whole, other).same(AlignmentLimits())
    assert align(np.zeros((50, 50, 3), np.uint8), whole) == NOWHERE
    assert not align(whole, pixels(scene(5).rotate(15, fillcolor="white"))).same(AlignmentLimits())


class Corners:
    """A real, tiny encoder: 5 x 5 mean colours. Near for crops and other mouths alike."""

    name, width = "corners-v1", 75

    def embed(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        small = [np.asarray(Image.fromarray(one).resize((5, 5), Image.Resampling.BOX)) for one in pictures]
        return np.stack(small).reshape(len(small), -1).astype(np.float32) / 255


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store")


def added(database: Database, store: ObjectStore, pictures: dict[str, Image.Image], **more: object) -> None:
    rows = []
    for name, image in pictures.items():
        written = io.BytesIO()
        image.save(written, "PNG")
        prints = fingerprints(pixels(image))
        seen = {"phash12_v2": prints.phash12_v2, "colour_v2": prints.colour_v2, "thumb16_v2": prints.thumb16_v2}
        kept = dict.fromkeys(("pixels_drop", "captions_drop", "duplicate_drop"), "")
        size = {"width": image.width, "height": image.height, "image_path": store.put(written.getvalue())}
        source = {"image_name": name, "uri": name, "source": "made", "md5": name, "entropy": 5.0, "cluster": "1/2"}
        rows.append({**source, **seen, **kept, **size, **more})
    clustered_table(database).upsert(rows)
    stage = embed_stage(embedded_table(database), Corners.name)
    krablet.work([stage], {"embed": lambda batch: embed_rows(batch, Corners(), store)})


def originals(num: int = 12) -> dict[str, Image.Image]:
    return {f"scene-{seed:02}": scene(seed) for seed in range(num)}


def verdicts(database: Database) -> dict[str, tuple[str | None, str | None]]:
    found = images_table(database).read(
        where="semantic_of IS NOT NULL", columns=["image_name", "semantic_group", "semantic_of"]
    )
    return {
        row["image_name"]: (row["semantic_group"], row["semantic_of"]) for batch in found for row in batch.to_pylist()
    }


def test_crops_are_dropped_with_keeper_and_reason_and_a_second_run_looks_at_nothing(
    database: Database, store: ObjectStore
) -> None:
    crops = {"crop-03": cropped(scene(3), 0.05), "crop-07": recompressed(cropped(scene(7), 0.08))}
    added(database, store, {**originals(), **crops, "other-mouth-05": scene(5, smile=False)})
    done = find_semantic_duplicates(database, store.root, processes=1)
    assert verdicts(database) == {"crop-03": ("scene-03",) * 2, "crop-07": ("scene-07",) * 2}
    assert (done.num_dropped, done.run.completed["semantic_pairs.confirm"]) == (2, done.num_pairs)
    row = next(images_table(database).read(where="image_name = 'crop-03'", columns=["semantic_drop"])).to_pylist()[0]
    assert row["semantic_drop"].startswith("semantic: cosine 0.9")
    assert " with scene-03, " in row["semantic_drop"]
    assert images_table(database).count(KEPT) == 13
    again = find_semantic_duplicates(database, store.root, processes=1)
    assert (again.run.completed["semantic_pairs.confirm"], again.num_changed, again.num_dropped) == (0, 0, 2)


def test_new_pictures_cost_their_own_pairs_and_the_order_of_arrival_changes_nothing(
    database: Database, store: ObjectStore
) -> None:
    crops = {"crop-03": cropped(scene(3), 0.05), "big-04": scene(4).resize((480, 400))}
    added(database, store, originals())
    first = find_semantic_duplicates(database, store.root, processes=1)
    added(database, store, crops)
    second = find_semantic_duplicates(database, store.root, processes=1)
    assert verdicts(database) == {"crop-03": ("scene-03",) * 2, "scene-04": ("big-04",) * 2}
    new = pairs_table(database).count() - first.num_pairs
    assert 2 <= second.run.completed["semantic_pairs.confirm"] == new <= 12
    # A better keeper arrives: a held-out copy.
    added(database, store, {"test-03": cropped(scene(3), 0.02)}, held_out=True)
    find_semantic_duplicates(database, store.root, processes=1)
    assert verdicts(database)["crop-03"] == verdicts(database)["scene-03"] == ("test-03",) * 2


def test_labels_that_contradict_are_never_compared(database: Database, store: ObjectStore) -> None:
    added(database, store, originals(), concept="a", style="ink")
    added(database, store, {"crop-03": cropped(scene(3), 0.05)}, concept="b", style="ink")
    find_semantic_duplicates(database, store.root, processes=1)
    assert verdicts(database) == {}


def test_a_picture_taken_out_before_its_pairs_were_seen_holds_nobody_up(database: Database, store: ObjectStore) -> None:
    added(database, store, {**originals(), "crop-03": cropped(scene(3), 0.05)})
    find_semantic_duplicates(database, store.root, processes=1)
    pairs, images = pairs_table(database), images_table(database)
    names = [row["pair"] for batch in pairs.read(columns=["pair"]) for row in batch.to_pylist()]
    pairs.update({"pair": name, "difference": None} for name in names)
    path = next(images.read(where="image_name = 'scene-03'", columns=["image_path"])).to_pylist()[0]["image_path"]
    store.remove(path)
    images.update([{"image_name": "scene-03", "captions_drop": None, "image_path": None}])
    done = find_semantic_duplicates(database, store.root, processes=1)
    assert not any(done.run.stuck.values())
    assert verdicts(database) == {}
    assert pairs.count("difference IS NULL AND NOT wanted") > 0


def test_the_command_line_says_what_it_looked_at(
    database: Database, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--dsn", database.dsn, "--home", str(store.root.parent), "--processes", "1"]
    added(database, store, {**originals(), "crop-03": cropped(scene(3), 0.05)})
    assert main(["duplicates", "--semantic", "--set", "candidates.nearest=2", *where]) == 0
    assert "looked at now; 1 pictures are duplicates, 13 verdicts changed" in capsys.readouterr().out
    assert main(["duplicates", *where]) == 0
    assert capsys.readouterr().out.endswith("verdicts changed\n")
    assert main(["duplicates", "--set", "candidates.nearest=2", *where]) == 1
    assert "--set candidates.nearest=2 belongs to --semantic" in capsys.readouterr().err


def test_without_vectors_it_says_what_to_run(database: Database, store: ObjectStore) -> None:
    with pytest.raises(SourceError, match="run 'pleinair embed' to the end first"):
        find_semantic_duplicates(database, store.root, processes=1)
