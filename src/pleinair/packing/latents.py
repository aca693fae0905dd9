"""From curated rows to a pack: resize, encode to latents, encode captions to text features, shuffle, write.

    CuratedPicture --pixels-- --LatentCodec--> latents  \
               --captions------> TextEncoder --FeatureProjection-->    PACK/ (by rename, with hashes)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pleinair.checkpoint.tensors import save_tensors
from pleinair.config import to_document
from pleinair.model.autoencoder import LatentCodec
from pleinair.model.pixels import to_signed_unit
from pleinair.model.text_encoder import FeatureProjection, TextEncoder
from pleinair.packing.pictures import CuratedPicture
from pleinair.records.errors import PackError
from pleinair.records.packs import CAPTIONS_SCHEMA, PACK_VERSION, ROWS_SCHEMA, PackManifest

CAPTION_NAMES = ("long", "medium", "short")
ENCODE_BATCH = 64
ENCODE_CAPTIONS = 256


def write_pack(
    rows: Sequence[CuratedPicture],
    directory: Path,
    *,
    codec: LatentCodec,
    autoencoder_sha256: str,
    text_encoder: TextEncoder,
    text_dim: int,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> PackManifest:
    """Write a pack and return its manifest; `directory` appears whole, by rename.

    Raises PackError when there are no rows, or when their captions or resolutions differ in number.
    """
    if not rows:
        raise PackError(
            "there is nothing to pack: no curated picture matches the mix; run 'pleinair report' to see why"
        )
    captions = distinct_captions(rows)
    features, projection, kept = encode_captions(captions, text_encoder, text_dim, on_progress)

    staging = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        pq.write_table(_captions_table(captions, features), staging / "captions.parquet")
        pq.write_table(_rows_table(rows, captions, codec, seed, on_progress), staging / "rows.parquet")
        save_tensors(projection.state_dict(), staging / "feature_projection.safetensors")
        manifest = PackManifest(
            version=PACK_VERSION,
            num_rows=len(rows) * len(rows[0].pixels),
            resolutions=tuple(sorted(rows[0].pixels)),
            latent_channels=codec.latent_channels,
            downscale=codec.downscale,
            autoencoder_sha256=autoencoder_sha256,
            text_encoder=text_encoder.name,
            text_layers=text_encoder.layers,
            text_dim=text_dim,
            text_variance_kept=kept,
            caption_names=CAPTION_NAMES,
            files={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(staging.iterdir())},
        )
        (staging / "pack.json").write_text(json.dumps(to_document(manifest), indent=2) + "\n")
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def distinct_captions(rows: Iterable[CuratedPicture]) -> dict[str, int]:
    """Caption to id, in order of appearance; id 0 is the empty prompt."""
    captions = {"": 0}
    for row in rows:
        for caption in row.captions:
            captions.setdefault(caption, len(captions))
    return captions


def encode_captions(
    captions: Iterable[str],
    text_encoder: TextEncoder,
    text_dim: int,
    on_progress: Callable[[str, int, int], None],
) -> tuple[list[Tensor], FeatureProjection, float]:
    """Projected features (T, L, text_dim) float16 of each caption, the projection fitted to them, and its kept variance."""
    texts = list(captions)
    # Sorted, so that a chunk has few distinct lengths and the encoder's batches of equal length are full.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    raw: list[Tensor] = [torch.empty(0)] * len(texts)
    for start in range(0, len(order), ENCODE_CAPTIONS):
        chunk = order[start : start + ENCODE_CAPTIONS]
        encoded = text_encoder.encode([texts[index] for index in chunk])
        for index, row_TLD, mask_T in zip(chunk, encoded.features_BTLD.half(), encoded.mask_BT, strict=True):
            raw[index] = row_TLD[mask_T]
        on_progress("captions encoded", start + len(chunk), len(texts))
    projection = FeatureProjection(len(text_encoder.layers), text_encoder.width, text_dim)
    kept = projection.fit(torch.cat(raw).float())
    return [projection(row_TLD[None])[0].half() for row_TLD in raw], projection, kept


def _captions_table(captions: Mapping[str, int], features: Sequence[Tensor]) -> pa.Table:
    columns = {
        "caption_id": list(captions.values()),
        "caption": list(captions),
        "num_tokens": [len(feature_TLK) for feature_TLK in features],
        "features": [feature_TLK.numpy().tobytes() for feature_TLK in features],
    }
    return pa.table(columns, schema=CAPTIONS_SCHEMA)


@torch.inference_mode()
def _rows_table(
    rows: Sequence[CuratedPicture],
    captions: Mapping[str, int],
    codec: LatentCodec,
    seed: int,
    on_progress: Callable[[str, int, int], None],
) -> pa.Table:
    shuffled = [rows[index] for index in np.random.default_rng(seed).permutation(len(rows))]
    tables = []
    for resolution in sorted(shuffled[0].pixels):
        latents: list[bytes] = []
        for start in range(0, len(shuffled), ENCODE_BATCH):
            pixels_BHWC = np.stack([row.pixels[resolution] for row in shuffled[start : start + ENCODE_BATCH]])
            encoded = codec.encode(to_signed_unit(pixels_BHWC))
            latents += [latent_CHW.half().numpy().tobytes() for latent_CHW in encoded.float()]
            on_progress(f"pictures encoded at {resolution} px", len(latents), len(shuffled))
        columns = {
            "key": [row.key for row in shuffled],
            "style": [row.style for row in shuffled],
            "concept": [row.concept for row in shuffled],
            "resolution": [resolution] * len(shuffled),
            "latents": latents,
            "caption_ids": [[captions[caption] for caption in row.captions] for row in shuffled],
        }
        tables.append(pa.table(columns, schema=ROWS_SCHEMA))
    return pa.concat_tables(tables)
