"""From a list of keys and a warehouse with pictures of many sizes to a pack in several shapes, and what it is refused for."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pleinair.cli.places import shipped
from pleinair.curation import images_table
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Database, Table
from pleinair.model.pixels import to_signed_unit
from pleinair.packing.arrangement import Listed, arrange, read_list
from pleinair.packing.buckets import BucketConfig, resize_to
from pleinair.packing.latents import CAPTION_NAMES, PackConfig, write_latents
from pleinair.packing.pictures import CAPTION_COLUMNS
from pleinair.packing.pixels import write_pixels
from pleinair.packing.warehouse import reader, still_kept
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.records.errors import PackError
from pleinair.sampling.shipped import load_autoencoder
from tests.packs.small_packs import Letters, listed, read

STAGE = BucketConfig(resolution=64, step=16, max_lost_share=0.25)
SIZES = ((64, 64), (90, 70), (70, 90), (150, 80), (80, 150), (128, 128))
DRAWINGS = Path(__file__).parents[2] / "docs" / "images" / "drawings-64.png"


def piece(number: int) -> Image.Image:
    """A cut-out of the published drawings, another one for each number."""
    width, height = SIZES[number % len(SIZES)]
    left, top = 13 * number % 600, 17 * number % 590
    return Image.open(DRAWINGS).convert("RGB").crop((left, top, left + width, top + height))


@pytest.fixture
def images(database: Database, tmp_path: Path) -> Table:
    """30 pictures in the warehouse, the last one dropped after the list was made."""
    table, store = images_table(database), ObjectStore(tmp_path / "store")
    rows = []
    for number in range(30):
        buffer = io.BytesIO()
        piece(number).save(buffer, "PNG")
        captions = (f"cut-out {number} of a page of drawings", f"cut-out {number}", str(number))
        facts = {"image_name": f"p{number}", "image_path": store.put(buffer.getvalue()), "style": "noto"}
        drop = {"captions_drop": "takedown" if number == 29 else ""}
        rows.append({**facts, **dict(zip(CAPTION_COLUMNS, captions, strict=True)), **drop})
    table.upsert(rows)
    return table


def write_list(path: Path, **changed: object) -> Path:
    sizes = [SIZES[number % len(SIZES)] for number in range(30)]
    columns = {
        "key": [f"p{number}" for number in range(30)],
        "source": ["pages"] * 30,
        "repeats": [2] + [1] * 29,
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
        "caption_weights": [[0.5, 0.25, 0.25]] * 30,
    }
    pq.write_table(pa.table({**columns, **changed}), path)
    return path


def test_a_list_becomes_a_pack_whose_latents_are_those_of_the_cropped_pictures(images: Table, tmp_path: Path) -> None:
    autoencoder = load_autoencoder(shipped("autoencoder"))
    kept = still_kept(read_list(write_list(tmp_path / "list.parquet")), images, "captions_drop = ''")
    assert len(kept) == 29
    arrangement = arrange(kept, [STAGE], seed=0)
    manifest = write_latents(
        arrangement,
        tmp_path / "pack",
        reader(images, ObjectStore(tmp_path / "store"), [STAGE], CAPTION_COLUMNS),
        codec=autoencoder,
        autoencoder_sha256="a",
        text_encoder=Letters(),
        config=PackConfig(text_dim=4),
    )
    loader = LatentLoader(Pack(tmp_path / "pack"), 64, LoaderConfig(batch_size=4, remainder="short"))
    seen: list[str] = []
    shapes = set()
    for step in range(len(loader)):
        batch = loader.batch(step)
        seen += batch.keys
        shapes.add(batch.latents_BCHW.shape[2:])
        for key, latents_CHW in zip(batch.keys, batch.latents_BCHW, strict=True):
            [bucket] = [
                of
                for of in arrangement_buckets(kept)
                if (of.height // autoencoder.downscale, of.width // autoencoder.downscale) == latents_CHW.shape[1:]
            ]
            pixels_HWC, _ = resize_to(piece(int(key[1:])), bucket)
            with torch.inference_mode():
                expected_CHW = autoencoder.encode(to_signed_unit(pixels_HWC[None].copy()))[0]
            assert latents_CHW.numpy() == pytest.approx(expected_CHW.numpy(), abs=0.02)
    assert sorted(seen) == sorted(["p0", *[f"p{number}" for number in range(29)]])
    assert len(shapes) == 3
    assert manifest.left_out == {}
    shards = [pq.read_table(tmp_path / "pack" / shard.name).to_pylist() for shard in manifest.shards]
    rows = {row["key"]: row for shard in shards for row in shard}
    assert (rows["p1"]["width"], rows["p1"]["height"]) == (90, 70)
    assert max(row["lost_share"] for row in rows.values()) <= STAGE.max_lost_share


def arrangement_buckets(kept: Listed) -> list:  # type: ignore[type-arg]
    return [rows.bucket for rows in arrange(kept, [STAGE], seed=0).shapes]


def test_a_picture_that_is_gone_or_of_another_size_stops_packing_and_leaves_no_pack(
    images: Table, tmp_path: Path
) -> None:
    wrong = write_list(tmp_path / "list.parquet", width=[64] * 30, height=[64] * 30)
    gone = write_list(tmp_path / "gone.parquet", key=[f"q{number}" for number in range(30)])
    source = reader(images, ObjectStore(tmp_path / "store"), [STAGE], CAPTION_COLUMNS)
    for path, sentence in ((wrong, "it is not the picture that was listed"), (gone, "was to be packed and is gone")):
        with pytest.raises(PackError, match=sentence):
            write_latents(
                arrange(read_list(path), [STAGE], seed=0),
                tmp_path / "pack",
                source,
                codec=load_autoencoder(shipped("autoencoder")),
                autoencoder_sha256="a",
                text_encoder=Letters(),
                config=PackConfig(text_dim=4),
            )
        assert not (tmp_path / "pack").exists()


def test_the_order_of_a_pack_depends_on_list_and_seed_alone() -> None:
    one, again, other = (arrange(listed(100, [4]), [STAGE_32], seed) for seed in (1, 1, 2))
    assert one.digest == again.digest != other.digest
    for mine, same, different in zip(one.shapes, again.shapes, other.shapes, strict=True):
        assert mine.selected.tolist() == same.selected.tolist() != different.selected.tolist()
        assert sorted(mine.selected) == sorted(different.selected)
    copies = [
        (int(number), int(copy))
        for shape in one.shapes
        for number, copy in zip(shape.selected, shape.copies, strict=True)
    ]
    assert sorted(copies) == sorted([(0, copy) for copy in range(4)] + [(number, 0) for number in range(1, 100)])


STAGE_32 = BucketConfig(resolution=32, step=8, max_lost_share=0.25)


def test_pictures_that_fit_no_shape_are_told_in_the_manifest() -> None:
    long = Listed(
        pa.chunked_array([["long", "square"]]), *np.array([[1, 1], [900, 90], [90, 90]]), np.ones((2, 3), np.float32)
    )
    assert arrange(long, [STAGE_32], seed=0).left_out == {"32 px: more than 25% would be cut off": 1}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"width": [0] * 30}, "width of p0 in the list .* is 0: at least 1 is needed"),
        ({"repeats": [0] * 30}, "repeats of p0 in the list .* is 0"),
        ({"key": ["p1"] * 30}, "has a key twice: use repeats"),
        ({"caption_weights": [[0.0, 0.0, 0.0]] * 30}, "caption_weights of p0 .*: give chances from 0 on, not all 0"),
    ],
)
def test_a_list_that_cannot_be_is_refused(tmp_path: Path, changed: dict[str, object], sentence: str) -> None:
    with pytest.raises(PackError, match=sentence):
        read_list(write_list(tmp_path / "list.parquet", **changed))


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "short.parquet")
    with pytest.raises(PackError, match="has no column repeats, only key"):
        read_list(tmp_path / "short.parquet")
    (tmp_path / "text.parquet").write_text("key")
    with pytest.raises(PackError, match="is not a list of pictures"):
        read_list(tmp_path / "text.parquet")


def test_captions_and_weights_of_other_number_are_refused(tmp_path: Path) -> None:
    short = listed(30)
    halves = Listed(short.keys, short.repeats_N, short.widths_N, short.heights_N, short.caption_weights_NV[:, :2])
    with pytest.raises(PackError, match="has 3 captions and 2 weights: give one for each of long, medium, short"):
        write_pixels(arrange(halves, [STAGE_32], seed=0), tmp_path / "pack", read, caption_names=CAPTION_NAMES)
