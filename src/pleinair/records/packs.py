"""The pack format, version 2: what crosses from the warehouse to training.

    PACK/
      pack.json                          PackManifest
      0064-04x04x04-00000.parquet ...    shards: rows of one resolution and one shape, in shuffled order
      empty_prompt.parquet               text features of "", for guidance        } packs of latents only
      feature_projection.safetensors                                              }

A row is one picture with all its captions. Values have two bytes each (float16 or bfloat16), pixels one, in C order,
little endian; every token of every caption is one fixed-size binary of (layers, dim).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

PACK_VERSION = 2

Kind = Literal["latents", "pixels", "encoded"]
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "uint8": 1}


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list(name: str, kind: pa.DataType) -> pa.Field:
    return _required(name, pa.list_(_required("element", kind)))


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One Parquet file of a pack."""

    name: str
    """File name."""
    resolution: int
    """Resolution stage in pixels."""
    shape: tuple[int, ...]
    """Channels, height and width of every row."""
    num_rows: int
    """Rows."""
    num_bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the file."""


@dataclass(frozen=True, kw_only=True)
class PackManifest:
    """What a pack holds and what made it."""

    version: int = PACK_VERSION
    """Format version."""
    plan: str
    """Digest of the rows, their order and all settings: equal plans give equal packs."""
    kind: Kind = "latents"
    """Latents, raw pixels, or pictures as encoded files."""
    dtype: Literal["float16", "bfloat16", "uint8"] = "float16"
    """Type of latents and text features, or of pixels."""
    group_rows: int
    """Rows of a row group: the run of bytes that is read together. The last group of a shard may be shorter."""
    downscale: int = 1
    """Pixels per latent, per side."""
    autoencoder_sha256: str = ""
    """The autoencoder whose latents these are."""
    latent_space: str = ""
    """What the latents are: kind, shape, digest of weights and statistics. Empty in packs that are older than the field."""
    text_encoder: str = ""
    """Name of the language model."""
    text_layers: tuple[int, ...] = ()
    """Its hidden states used."""
    text_dim: int = 0
    """Features per layer after projection."""
    text_variance_kept: float = 0.0
    """Share of the features' variance that the projection keeps."""
    caption_names: tuple[str, ...] = ()
    """Meaning of the captions of a row, in order."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Pictures that were to be packed and fitted no shape, by reason."""
    shards: tuple[ShardEntry, ...] = ()
    """All shards, those of one shape together and in order."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every other file."""

    @property
    def num_rows(self) -> int:
        """Rows over all resolutions."""
        return sum(shard.num_rows for shard in self.shards)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Resolutions, ascending."""
        return tuple(sorted({shard.resolution for shard in self.shards}))

    @property
    def token_shape(self) -> tuple[int, int]:
        """Layers and dimensions of the text features of one token."""
        return len(self.text_layers), self.text_dim

    def row_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of the latents or raw pixels of one row."""
        return math.prod(shape) * ITEM_BYTES[self.dtype]


def shard_schema(manifest: PackManifest, shape: tuple[int, ...], name: str) -> pa.Schema:
    """Columns of a shard. The plan and the name in its metadata tell a shard of another pack from this one's."""
    values = manifest.row_bytes(shape)
    fields = [
        _required("key", pa.string()),
        _required("repeat", pa.int32()),  # which copy of the picture this is, when the mix repeats it
        _required("key_hash", pa.uint64()),  # of key and repeat: what the draw of a caption starts from
        pa.field("style", pa.string()),
        pa.field("concept", pa.string()),
        _required("width", pa.int32()),  # of the picture before resizing
        _required("height", pa.int32()),
        _required("lost_share", pa.float32()),  # of its area, cut off to fit the shape
        _list("captions", pa.string()),
        _list("caption_weights", pa.float32()),
    ]
    if manifest.text_dim:
        fields.append(_list("num_tokens", pa.int32()))  # per caption
    fields.append(_required(manifest.kind, pa.binary() if manifest.kind == "encoded" else pa.binary(values)))
    if manifest.text_dim:
        token = math.prod(manifest.token_shape) * ITEM_BYTES[manifest.dtype]
        fields.append(_list("text_features", pa.binary(token)))  # the tokens of all captions, one after the other
    return pa.schema(fields, metadata={"pleinair.plan": manifest.plan, "pleinair.shard": name})


def empty_prompt_schema(manifest: PackManifest) -> pa.Schema:
    """One row: the text features of the empty prompt."""
    token = math.prod(manifest.token_shape) * ITEM_BYTES[manifest.dtype]
    return pa.schema([_list("text_features", pa.binary(token))])
