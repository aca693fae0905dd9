import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pleinair.model.text_encoder import FeatureProjection
from pleinair.packing.buckets import Bucket
from pleinair.packing.latents import PackPicture, variance_kept, write_pack
from pleinair.packing.pixels import write_pixels
from pleinair.packs.loader import LatentLoader, PixelLoader
from pleinair.packs.pack import Pack, read_pack_manifest, verify_pack
from pleinair.packs.plan import LoaderConfig
from pleinair.packs.shards import page_size
from pleinair.records.errors import PackError
from tests.packs.small_packs import (
    STAGE,
    Letters,
    PooledPixels,
    arrange,
    listed,
    make_pack,
    picture,
    read,
    write_shapes_pack,
)

ROOT = Path(__file__).parents[2]


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_nothing_to_pack_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="there is nothing to pack"):
        write_pack(
            [], tmp_path / "pack", codec=PooledPixels(), autoencoder_sha256="a", text_encoder=Letters(), text_dim=4
        )
    assert list(tmp_path.iterdir()) == []


def test_any_tool_reads_a_shard(tmp_path: Path) -> None:
    write_shapes_pack(tmp_path / "pack", count=60)
    shards = read_pack_manifest(tmp_path / "pack").shards
    rows = [row for shard in shards for row in pq.read_table(tmp_path / "pack" / shard.name).to_pylist()]
    assert sorted(row["key"] for row in rows) == sorted(f"p{number}" for number in range(60))
    for row in rows:
        number = int(row["key"][1:])
        assert row["captions"] == list(picture(number).captions)
        assert row["num_tokens"] == [len(caption) + 1 for caption in row["captions"]]
        assert len(row["text_features"]) == sum(row["num_tokens"])
        latents = np.frombuffer(row["latents"], np.float16).astype(float)
        assert (latents[0] + 1) * 127.5 == pytest.approx(number, abs=0.1)


def test_rows_of_a_shape_are_shuffled_and_equal_plans_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shapes_pack(tmp_path / name, count=120)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    shard = read_pack_manifest(tmp_path / "one").shards[0]
    numbers = [int(key[1:]) for key in pq.read_table(tmp_path / "one" / shard.name)["key"].to_pylist()]
    assert numbers != sorted(numbers)


def test_shards_are_bounded_and_hold_one_shape_each(tmp_path: Path) -> None:
    write_shapes_pack(tmp_path / "pack")
    manifest = read_pack_manifest(tmp_path / "pack")
    assert len({shard.shape for shard in manifest.shards}) == 3
    assert len(manifest.shards) > 8
    group_bytes = 16 * 3000
    assert all(shard.num_bytes < 30_000 + group_bytes for shard in manifest.shards)


@pytest.mark.slow
def test_a_killed_writer_goes_on_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    write_shapes_pack(tmp_path / "calm")
    script = (
        "import sys, time; from pathlib import Path; import tests.packs.small_packs as packs\n"
        "read = packs.read\n"
        "def slow(keys, bucket): time.sleep(0.02); return read(keys, bucket)\n"
        "packs.write_shapes_pack(Path(sys.argv[1]), reader=slow)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "killed")], cwd=ROOT, env=environment)
    staging = tmp_path / ".killed.partial"
    while len(list(staging.glob("0*-*.parquet"))) < 4:
        assert writer.poll() is None, "the writer ended before it could be killed"
        time.sleep(0.001)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not (tmp_path / "killed").exists()
    kept = {path.name: path.stat().st_ino for path in staging.glob("0*-*.parquet")}
    write_shapes_pack(tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "calm")
    again = {name for name, inode in kept.items() if (tmp_path / "killed" / name).stat().st_ino != inode}
    assert len(again) <= 1, "finished shards stay; at most the one not yet in the journal is written again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calm", "killed"]


def test_a_writer_interrupted_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    write_shapes_pack(tmp_path / "calm")
    remaining = [0]

    def interrupted(keys: Sequence[str], bucket: Bucket) -> list[PackPicture]:
        remaining[0] -= 1
        if remaining[0] < 0:
            raise KeyboardInterrupt
        return read(keys, bucket)

    for reads in (0, 3, 9, 2, 2, 1):  # chunks of 64 pictures: while captions are sampled, then in every shape
        remaining[0] = reads
        with pytest.raises(KeyboardInterrupt):
            write_shapes_pack(tmp_path / "killed", reader=interrupted)
        assert not (tmp_path / "killed").exists()
    write_shapes_pack(tmp_path / "killed")
    assert content(tmp_path / "killed") == content(tmp_path / "calm")


def test_what_another_plan_left_is_not_taken_up(tmp_path: Path) -> None:
    write_shapes_pack(tmp_path / "calm", count=250)
    calls = count()

    def interrupted(keys: Sequence[str], bucket: Bucket) -> list[PackPicture]:
        if next(calls) > 7:
            raise KeyboardInterrupt
        return read(keys, bucket)

    with pytest.raises(KeyboardInterrupt):
        write_shapes_pack(tmp_path / "pack", count=300, reader=interrupted)
    assert list((tmp_path / ".pack.partial").glob("0*-*.parquet")), "whole shards of the other plan are there"
    write_shapes_pack(tmp_path / "pack", count=250)
    assert content(tmp_path / "pack") == content(tmp_path / "calm")


def test_packing_over_an_old_pack_replaces_it_whole(tmp_path: Path) -> None:
    write_shapes_pack(tmp_path / "pack", count=200)
    write_shapes_pack(tmp_path / "pack", count=60)
    assert read_pack_manifest(tmp_path / "pack").num_rows == 60
    verify_pack(tmp_path / "pack")
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("cut", "it has [0-9]+ bytes, not [0-9]+"),
        ("missing", "it is missing"),
        ("of another pack", "it belongs to another pack"),
        ("of another place", "it belongs to another pack or another place in this one"),
        ("of other columns", "its columns are key, not key, repeat"),
        ("no Parquet", "Parquet magic bytes not found"),
    ],
)
def test_a_wrong_shard_is_refused_by_name_even_where_hashes_are_not_checked(
    tmp_path: Path, damage: str, sentence: str
) -> None:
    write_shapes_pack(tmp_path / "pack", count=200, shard_bytes=9_000)
    directory = tmp_path / "pack"
    first, second = (directory / shard.name for shard in read_pack_manifest(directory).shards[:2])
    whole = first.read_bytes()
    if damage == "cut":
        first.write_bytes(whole[: len(whole) // 2])
    elif damage == "missing":
        first.unlink()
    elif damage == "of another pack":
        write_shapes_pack(tmp_path / "other", count=201, shard_bytes=9_000)
        padded(first, (tmp_path / "other" / first.name).read_bytes())
    elif damage == "of another place":
        padded(first, second.read_bytes())
    elif damage == "of other columns":
        pq.write_table(pq.read_table(first).select(["key"]), first)
        padded(first, first.read_bytes())
    else:
        first.write_bytes(bytes(len(whole)))
    with pytest.raises(PackError, match=f"pack .*pack is damaged: {first.name}: .*{sentence}.*pack again"):
        read_all(directory)
    with pytest.raises(PackError, match=f"damaged: {first.name} is missing or does not match its hash"):
        verify_pack(directory)


def read_all(directory: Path) -> None:
    """An epoch, with no hash checked."""
    loader = LatentLoader(Pack(directory, verify=False), 32, LoaderConfig(batch_size=4, remainder="short"))
    for step in range(len(loader)):
        loader.batch(step)


def padded(path: Path, data: bytes) -> None:
    """Write other content and let the manifest have its size, so that only the content can give it away."""
    path.write_bytes(data)
    manifest = path.parent / "pack.json"
    document = json.loads(manifest.read_text())
    for shard in document["shards"]:
        if shard["name"] == path.name:
            shard["num_bytes"] = len(data)
    manifest.write_text(json.dumps(document))


def test_a_shard_that_another_tool_wrote_again_is_refused(tmp_path: Path) -> None:
    write_shapes_pack(tmp_path / "pack", count=100)
    path = tmp_path / "pack" / read_pack_manifest(tmp_path / "pack").shards[0].name
    table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
    with pq.ParquetWriter(path, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)
    padded(path, path.read_bytes())
    with pytest.raises(PackError, match=f"{path.name}: .*(page|plain values)"):
        read_all(tmp_path / "pack")


def test_no_pack_and_packs_of_other_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="is not a pack: pack.json cannot be read"):
        Pack(tmp_path)
    (tmp_path / "pack.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(PackError, match="format version 1, this code reads 2: convert it with pleinair.packs.version1"):
        Pack(tmp_path)
    (tmp_path / "pack.json").write_text(json.dumps({"version": 7}))
    with pytest.raises(PackError, match="format version 7, this code reads 2: pack again"):
        Pack(tmp_path)


def test_a_page_header_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="does not begin with a page"):
        page_size(bytes(16))


@pytest.mark.parametrize("encoded", [False, True])
def test_a_pack_of_pictures_gives_them_back_pixel_for_pixel(tmp_path: Path, encoded: bool) -> None:
    arrangement = arrange(listed(50), [STAGE], seed=1)
    manifest = write_pixels(
        arrangement, tmp_path / "pack", read, caption_names=("long", "medium", "short"), encoded=encoded, group_rows=16
    )
    loader = PixelLoader(Pack(tmp_path / "pack"), 32, LoaderConfig(batch_size=5, remainder="short"))
    seen = []
    for step in range(len(loader)):
        keys = loader.keys(step)
        for key, pixels_HWC in zip(keys, loader.pixels(step), strict=True):
            assert (pixels_HWC == (int(key[1:]), 0, 7)).all()
        seen += keys
        assert loader.batch(step).shape[1:] == loader.plan.chosen(step).rows.shape
    assert sorted(seen) == sorted(f"p{number}" for number in range(50))
    assert manifest.kind == ("encoded" if encoded else "pixels")


def test_pictures_are_not_read_as_latents(tmp_path: Path) -> None:
    write_pixels(arrange(listed(50), [STAGE], seed=1), tmp_path / "pack", read, caption_names=("a", "b", "c"))
    with pytest.raises(PackError, match="holds pixels, not latents"):
        LatentLoader(Pack(tmp_path / "pack"), 32, LoaderConfig(batch_size=4))


def test_a_pack_takes_the_text_projection_that_it_is_given(tmp_path: Path) -> None:
    first = make_pack(tmp_path / "first")
    projection = FeatureProjection(2, 8, 4)
    projection.load_state_dict(load_file(first.directory / "feature_projection.safetensors"))
    rows = [picture(number) for number in range(700, 740)]
    parts = {"codec": PooledPixels(), "autoencoder_sha256": "a", "text_encoder": Letters(), "text_dim": 4}
    own = write_pack(rows, tmp_path / "own", **parts)
    given = write_pack(rows, tmp_path / "given", projection=projection, **parts)
    stored = load_file(tmp_path / "given" / "feature_projection.safetensors")
    assert all(torch.equal(stored[name], values) for name, values in projection.state_dict().items())
    assert not torch.equal(load_file(tmp_path / "own" / "feature_projection.safetensors")["mean_LD"], stored["mean_LD"])
    assert given.plan != own.plan
    assert 0 < given.text_variance_kept < own.text_variance_kept


def test_the_variance_that_a_projection_keeps_is_what_fitting_it_said() -> None:
    rows_NLD = torch.randn(200, 2, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9.0)
    rows_NLD[:, :, 1] += rows_NLD[:, :, 0]
    projection = FeatureProjection(2, 8, 3)
    assert variance_kept(projection, rows_NLD) != pytest.approx(projection.fit(rows_NLD), abs=1e-3)
    assert variance_kept(projection, rows_NLD) == pytest.approx(projection.fit(rows_NLD), abs=1e-4)
