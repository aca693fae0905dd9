import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.packs.version1 import convert
from pleinair.records.errors import PackError


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A pack as version 1 wrote it: 12 pictures at 8 and at 16 px; captions of 1 to 4 tokens; 2 layers of 3 features."""
    directory, rng = tmp_path / "old", np.random.default_rng(0)
    directory.mkdir()
    counts = [1] + [1 + number % 4 for number in range(24)]
    captions = {
        "caption_id": pa.array(range(25), pa.int32()),
        "caption": ["", *[f"caption {number}" for number in range(24)]],
        "num_tokens": pa.array(counts, pa.int32()),
        "features": [rng.standard_normal((count, 2, 3)).astype(np.float16).tobytes() for count in counts],
    }
    pq.write_table(pa.table(captions), directory / "captions.parquet")
    rows = [
        {
            "key": f"p{number}",
            "style": "ink",
            "concept": None,
            "resolution": side,
            "latents": np.full((5, side // 4, side // 4), number + side, np.float16).tobytes(),
            "caption_ids": [2 * number + 1, 2 * number + 2],
        }
        for side in (8, 16)
        for number in range(12)
    ]
    pq.write_table(pa.Table.from_pylist(rows), directory / "rows.parquet")
    (directory / "feature_projection.safetensors").write_bytes(b"weights")
    document = {
        "version": 1,
        "num_rows": 24,
        "resolutions": [8, 16],
        "latent_channels": 5,
        "downscale": 4,
        "autoencoder_sha256": "a",
        "text_encoder": "letters",
        "text_layers": [1, 2],
        "text_dim": 3,
        "text_variance_kept": 0.9,
        "caption_names": ["long", "short"],
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()},
    }
    (directory / "pack.json").write_text(json.dumps(document))
    return directory


def test_a_pack_of_version_1_is_converted_bit_for_bit(old: Path, tmp_path: Path) -> None:
    manifest = convert(old, tmp_path / "new")
    assert (manifest.version, manifest.num_rows, manifest.text_variance_kept) == (2, 24, 0.9)
    features = pq.read_table(old / "captions.parquet")["features"].to_pylist()
    for side in (8, 16):
        loader = LatentLoader(
            Pack(tmp_path / "new"), side, LoaderConfig(batch_size=4, drop_caption=0.2, dtype="stored")
        )
        seen = []
        for step in range(len(loader)):
            batch, chosen = loader.batch(step), loader.plan.chosen(step)
            for place, (key, caption) in enumerate(zip(batch.keys, chosen.captions, strict=True)):
                number = int(key[1:])
                assert (batch.latents_BCHW[place] == number + side).all()
                real = batch.text_features_BTLD[place][batch.text_mask_BT[place]]
                assert real.numpy().tobytes() == features[0 if caption < 0 else 2 * number + 1 + caption]
            seen += batch.keys
        assert sorted(seen) == sorted(f"p{number}" for number in range(12))


def test_a_damaged_old_pack_and_one_of_today_are_not_converted(old: Path, tmp_path: Path) -> None:
    convert(old, tmp_path / "new")
    with pytest.raises(PackError, match="has format version 2: only version 1 is converted"):
        convert(tmp_path / "new", tmp_path / "newer")
    (old / "rows.parquet").write_bytes(b"cut")
    with pytest.raises(PackError, match="damaged: rows.parquet is missing or does not match its hash"):
        convert(old, tmp_path / "newer")
    assert not (tmp_path / "newer").exists()
