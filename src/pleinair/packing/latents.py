"""Writing packs: resize, encode to latents, encode captions to text features, stream to shards.

    Arrangement --keys of a shape, chunk by chunk--> Read --PackPicture-- --LatentCodec--> latents  \\
                                                                --captions--CaptionEncoder--> tokens --> PackWriter

A chunk is in memory at a time. Killed and started again, it goes on after the last whole shard.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from pleinair.config import config_digest
from pleinair.model.autoencoder import LatentCodec
from pleinair.model.digest import part_digest
from pleinair.model.pixels import to_signed_unit
from pleinair.model.text_encoder import FeatureProjection, TextEncoder
from pleinair.packing.arrangement import Arrangement, Listed, checked, shuffled
from pleinair.packing.buckets import Bucket
from pleinair.packing.pictures import CuratedPicture
from pleinair.packs.writer import SHARD_BYTES, PackRow, PackWriter
from pleinair.records.errors import PackError
from pleinair.records.packs import PackManifest
from pleinair.tensor_files import save_tensors

CAPTION_NAMES = ("long", "medium", "short")
CAPTION_WEIGHTS = (0.5, 0.25, 0.25)
"""Mostly long captions, always some shorter ones."""
ENCODE_BATCH = 64
ENCODE_PIXELS = 2**22
"""Most that go through the autoencoder together: 64 pictures at 256 px, 4 at 1024."""
ENCODE_CAPTIONS = 256
FIT_CAPTIONS = 8192
"""Distinct captions that the text projection is fitted to, or all where there are fewer."""
CACHE_BYTES = 2**30
"""Text features kept, for captions that come again at another resolution or for another picture."""

Progress = Callable[[str, int, int], None]


def quiet(what: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class PackPicture:
    """One picture at the size of its bucket."""

    key: str
    pixels_HWC: npt.NDArray[np.uint8]
    width: int
    """Before resizing."""
    height: int
    lost_share: float
    captions: tuple[str, ...]
    style: str | None = None
    concept: str | None = None


Read = Callable[[Sequence[str], Bucket], Sequence[PackPicture]]
"""Pictures of some keys, in their order, resized to a bucket."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """The form of a pack; see `pack_config`."""

    caption_names: tuple[str, ...] = CAPTION_NAMES
    """Meaning of each picture's captions, in order."""
    text_dim: int = 192
    """Text features per layer after projection."""
    dtype: Literal["float16", "bfloat16"] = "float16"
    """Type of latents and text features."""
    group_rows: int = 64
    """Rows of a row group, the run that is read together."""
    shard_bytes: int = SHARD_BYTES
    """A shard ends with the row group that reaches this size."""


def pack_config(
    projection: FeatureProjection | None, text_dim: int, caption_names: tuple[str, ...] = CAPTION_NAMES
) -> PackConfig:
    """The form that fits a projection; `text_dim` is for one that is still to be fitted.

    Features as they are have a language model's range, which float16 may not hold: bfloat16, in which it computes.
    """
    if projection is None or not projection.passes_on:
        return PackConfig(caption_names=caption_names, text_dim=text_dim)
    return PackConfig(caption_names=caption_names, text_dim=projection.width, dtype="bfloat16")


def write_latents(
    arrangement: Arrangement,
    directory: Path,
    read: Read,
    *,
    codec: LatentCodec,
    autoencoder_sha256: str,
    text_encoder: TextEncoder,
    config: PackConfig,
    projection: FeatureProjection | None = None,
    on_progress: Progress = quiet,
) -> PackManifest:
    """Write a pack of latents and text features and return its manifest; `directory` appears whole, by rename.

    Text features go through `projection`, for a model that was trained on it or that takes them as they are; None fits one
    to the captions. Raises PackError for a picture that is gone, of another size than listed, or without its captions.
    """
    latent_space = codec.describe().identity
    encoders = [autoencoder_sha256, latent_space, text_encoder.name, text_encoder.layers, text_encoder.digest]
    given = [] if projection is None else [part_digest(projection)]
    made_of = [arrangement.digest, config, *encoders, *given]
    manifest = PackManifest(
        plan=config_digest(made_of),
        dtype=config.dtype,
        group_rows=config.group_rows,
        downscale=codec.downscale,
        autoencoder_sha256=autoencoder_sha256,
        latent_space=latent_space,
        text_encoder=text_encoder.name,
        text_layers=text_encoder.layers,
        text_dim=config.text_dim,
        caption_names=config.caption_names,
        left_out=arrangement.left_out,
    )
    writer = PackWriter(directory, manifest, config.shard_bytes)
    captions = _caption_encoder(writer.staging, arrangement, read, text_encoder, config, projection, on_progress)

    def encode(pictures: Sequence[PackPicture]) -> list[bytes]:
        pixels_BHWC = np.stack([picture.pixels_HWC for picture in pictures])
        pictures_BCHW = to_signed_unit(pixels_BHWC)
        at_once = max(1, ENCODE_PIXELS // pictures_BCHW[0, 0].numel())
        return [
            row for some in pictures_BCHW.split(at_once) for row in stored_rows(codec.encode(some).cpu(), config.dtype)
        ]

    write_shapes(writer, arrangement, codec.latent_channels, read, encode, captions, on_progress)
    files = [writer.staging / "feature_projection.safetensors", writer.write_empty_prompt(captions.encode([""])[0])]
    return writer.finish(files, text_variance_kept=captions.variance_kept)


@torch.inference_mode()
def write_shapes(
    writer: PackWriter,
    arrangement: Arrangement,
    channels: int,
    read: Read,
    encode: Callable[[Sequence[PackPicture]], list[bytes]],
    captions: CaptionEncoder | None,
    on_progress: Progress,
) -> None:
    """All rows, each shape from where its last whole shard ends; `encode` gives the bytes that are stored."""
    for rows in arrangement.shapes:
        bucket, total = rows.bucket, len(rows.selected)
        sides = (bucket.height // writer.manifest.downscale, bucket.width // writer.manifest.downscale)
        shape = (channels, *sides)
        done = writer.rows_done(bucket.resolution, shape)
        # From the start of its chunk, so that every picture is encoded beside the same others as without a kill.
        for start in range(done - done % ENCODE_BATCH, total, ENCODE_BATCH):
            chunk = slice(start, start + ENCODE_BATCH)
            pictures = _read_checked(read, arrangement.keys(rows.selected[chunk]), bucket)
            texts = captions.encode_rows([of.captions for of in pictures]) if captions else [()] * len(pictures)
            weights_NV = arrangement.listed.caption_weights_NV[rows.selected[chunk]]
            ready = [
                _row(*parts)
                for parts in zip(pictures, encode(pictures), texts, weights_NV, rows.copies[chunk], strict=True)
            ]
            writer.write(bucket.resolution, shape, ready[max(0, done - start) :])
            on_progress(f"pictures packed at {bucket.width} x {bucket.height} px", start + len(ready), total)
        writer.end_shape(bucket.resolution, shape)


def _row(
    picture: PackPicture, data: bytes, text: tuple[bytes, ...], weights_V: npt.NDArray[np.float32], copy: np.int64
) -> PackRow:
    return PackRow(
        key=picture.key,
        data=data,
        width=picture.width,
        height=picture.height,
        lost_share=picture.lost_share,
        style=picture.style,
        concept=picture.concept,
        captions=picture.captions,
        caption_weights=tuple(weights_V.tolist()),
        text_features=text,
        repeat=int(copy),
    )


def _read_checked(read: Read, keys: Sequence[str], bucket: Bucket) -> Sequence[PackPicture]:
    pictures = read(keys, bucket)
    found = [picture.key for picture in pictures]
    if found != list(keys):
        missing = sorted(set(keys) - set(found)) or list(keys)
        raise PackError(f"{missing[0]} was to be packed and is gone: make the list again, then pack")
    return pictures


def stored_rows(values: Tensor, dtype: str) -> list[bytes]:
    """Each row of a tensor in the pack's type, as bytes."""
    stored = values.float().to(getattr(torch, dtype)).contiguous()
    return [row.numpy().tobytes() for row in stored.flatten(1).view(torch.uint8)] if len(stored) else []


class CaptionEncoder:
    """Captions to projected text features, each distinct one once as long as the cache holds it."""

    def __init__(
        self,
        text_encoder: TextEncoder,
        projection: FeatureProjection,
        variance_kept: float,
        dtype: str,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.text_encoder, self.projection, self.variance_kept = text_encoder, projection, variance_kept
        self.dtype, self.cache_bytes = dtype, cache_bytes
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached_bytes = 0

    def encode_rows(self, captions: Sequence[tuple[str, ...]]) -> list[tuple[bytes, ...]]:
        """Features of all captions of each row."""
        encoded = iter(self.encode([caption for row in captions for caption in row]))
        return [tuple(islice(encoded, len(row))) for row in captions]

    def encode(self, captions: Sequence[str]) -> list[bytes]:
        """Tokens of each caption, (tokens, layers, dim)."""
        found = {caption: self._cache[caption] for caption in captions if caption in self._cache}
        new = [caption for caption in dict.fromkeys(captions) if caption not in found]
        for caption, raw_TLD in raw_features(new, self.text_encoder, self.dtype):
            found[caption] = self.add(caption, raw_TLD)
        return [found[caption] for caption in captions]

    def add(self, caption: str, raw_TLD: Tensor) -> bytes:
        """Project the raw features of a caption and keep them."""
        tokens = stored_rows(self.projection(raw_TLD[None]), self.dtype)[0]
        self._cache[caption] = tokens
        self._cached_bytes += len(tokens)
        while self._cached_bytes > self.cache_bytes:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1])
        return tokens


def raw_features(
    captions: Sequence[str], text_encoder: TextEncoder, dtype: str = "float16"
) -> Iterator[tuple[str, Tensor]]:
    """Each caption with its raw features (tokens, layers, width), on the CPU.

    Sorted by length, so that a chunk has few distinct lengths and the encoder's batches of equal length are full.
    """
    ordered = sorted(captions, key=len)
    for start in range(0, len(ordered), ENCODE_CAPTIONS):
        chunk = ordered[start : start + ENCODE_CAPTIONS]
        encoded = text_encoder.encode(chunk)
        features_BTLD = encoded.features_BTLD.to("cpu", getattr(torch, dtype))
        for caption, row_TLD, mask_T in zip(chunk, features_BTLD, encoded.mask_BT.cpu(), strict=True):
            yield caption, row_TLD[mask_T]


@torch.inference_mode()
def _caption_encoder(
    staging: Path,
    arrangement: Arrangement,
    read: Read,
    text_encoder: TextEncoder,
    config: PackConfig,
    given: FeatureProjection | None,
    on_progress: Progress,
) -> CaptionEncoder:
    """With the projection given, that of the writer that was killed, or a new one fitted to the pack's first captions."""
    path = staging / "feature_projection.safetensors"
    if path.exists():
        with safe_open(path, "pt") as file:
            projection = FeatureProjection.of({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            return CaptionEncoder(text_encoder, projection, float(file.metadata()["variance_kept"]), config.dtype)
    if given is not None and given.passes_on:
        _save_projection(given, 1.0, path)
        return CaptionEncoder(text_encoder, given, 1.0, config.dtype)
    captions = first_captions(arrangement, read, FIT_CAPTIONS)
    raw: dict[str, Tensor] = {}
    for caption, raw_TLD in raw_features(captions, text_encoder):
        raw[caption] = raw_TLD
        on_progress("captions encoded", len(raw), len(captions))
    rows_NLD = torch.cat([raw[caption] for caption in captions]).float()
    projection = FeatureProjection(len(text_encoder.layers), text_encoder.width, config.text_dim)
    if given is None:
        kept = projection.fit(rows_NLD)
    else:
        projection.load_state_dict(given.state_dict())
        kept = variance_kept(projection, rows_NLD)
    _save_projection(projection, kept, path)
    encoder = CaptionEncoder(text_encoder, projection, kept, config.dtype)
    for caption, raw_TLD in raw.items():
        encoder.add(caption, raw_TLD)
    return encoder


def _save_projection(projection: FeatureProjection, kept: float, path: Path) -> None:
    hidden = path.with_name(f".{path.name}")
    save_tensors(projection.state_dict(), hidden, {"variance_kept": repr(kept)})
    hidden.rename(path)


@torch.inference_mode()
def variance_kept(projection: FeatureProjection, rows_NLD: Tensor) -> float:
    """Share of the standardised rows' variance along the projection's directions, mean over layers."""
    standard_NLD = ((rows_NLD - projection.mean_LD) / projection.std_LD).clamp(-8, 8)
    directions_LDK = F.normalize(projection.basis_LDK, dim=1)
    along_NLK = torch.einsum("nld,ldk->nlk", standard_NLD, directions_LDK)
    shares_L = along_NLK.square().sum((0, 2)) / standard_NLD.square().sum((0, 2))
    return float(shares_L.mean())


def first_captions(arrangement: Arrangement, read: Read, most: int) -> list[str]:
    """Distinct captions in the order of the pack, the empty prompt first. Rows are shuffled: the first are a sample."""
    captions = {"": None}
    for rows in arrangement.shapes:
        for start in range(0, len(rows.selected), ENCODE_BATCH):
            selected = rows.selected[start : start + ENCODE_BATCH]
            for picture in _read_checked(read, arrangement.keys(selected), rows.bucket):
                captions |= dict.fromkeys(picture.captions)
            if len(captions) >= most:
                return list(captions)[:most]
    return list(captions)


def write_pack(
    rows: Sequence[CuratedPicture],
    directory: Path,
    *,
    codec: LatentCodec,
    autoencoder_sha256: str,
    text_encoder: TextEncoder,
    text_dim: int,
    seed: int = 0,
    projection: FeatureProjection | None = None,
    on_progress: Progress = quiet,
) -> PackManifest:
    """Write a pack of square pictures in memory, at every resolution they have; `projection` as for `write_latents`.

    Raises PackError when there are no rows, or when their captions or resolutions differ in number.
    """
    by_key = {row.key: row for row in rows}

    def read(keys: Sequence[str], bucket: Bucket) -> list[PackPicture]:
        return [
            PackPicture(
                row.key, row.pixels[bucket.resolution], bucket.width, bucket.height, 0.0, row.captions,
                row.style, row.concept,
            )
            for row in (by_key[key] for key in keys)
        ]  # fmt: skip

    return write_latents(
        squares(rows, seed),
        directory,
        read,
        codec=codec,
        autoencoder_sha256=autoencoder_sha256,
        text_encoder=text_encoder,
        config=pack_config(projection, text_dim),
        projection=projection,
        on_progress=on_progress,
    )


def squares(rows: Sequence[CuratedPicture], seed: int) -> Arrangement:
    """All rows at all their resolutions, in shuffled order. Raises PackError when there are none."""
    sides = np.full(len(rows), max(rows[0].pixels) if rows else 0)
    weights = np.tile(np.array(CAPTION_WEIGHTS, np.float32), (len(rows), 1))
    keys = pa.chunked_array([[row.key for row in rows]], pa.string())
    listed = checked(Listed(keys, np.ones(len(rows), np.int64), sides, sides, weights), "the selection of pictures")
    buckets = [Bucket(side, side, side) for side in sorted(rows[0].pixels)]
    shapes = tuple(shuffled(bucket, np.arange(len(rows)), listed, seed) for bucket in buckets)
    content = config_digest([[[row.key, *row.captions] for row in rows], [bucket.width for bucket in buckets], seed])
    return Arrangement(listed, shapes, {}, content)
