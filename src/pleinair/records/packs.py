"""The pack format: what crosses from the warehouse to training.

    PACK/
      pack.json        PackManifest
      rows.parquet     one row per picture and resolution: key, labels, latents, the ids of its captions
      captions.parquet one row per distinct caption: text, number of tokens, projected text features
      feature_projection.safetensors

Latents and features are float16 bytes in C order. Rows are shuffled when written, so a sequential scan is random enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

PACK_VERSION = 1

ROWS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("style", pa.string()),
        pa.field("concept", pa.string()),
        pa.field("resolution", pa.int32(), nullable=False),
        pa.field("latents", pa.binary(), nullable=False),
        pa.field("caption_ids", pa.list_(pa.int32()), nullable=False),
    ]
)

CAPTIONS_SCHEMA = pa.schema(
    [
        pa.field("caption_id", pa.int32(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("features", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PackManifest:
    """What a pack holds and what made it."""

    version: int
    """Format version."""
    num_rows: int
    """Rows, over all resolutions."""
    resolutions: tuple[int, ...]
    """Picture sizes in pixels, ascending."""
    latent_channels: int
    """Channels of the latents."""
    downscale: int
    """Pixels per latent, per side."""
    autoencoder_sha256: str
    """The autoencoder whose latents these are."""
    text_encoder: str
    """Name of the language model."""
    text_layers: tuple[int, ...]
    """Its hidden states used."""
    text_dim: int
    """Features per layer after projection."""
    text_variance_kept: float
    """Share of the features' variance that the projection keeps."""
    caption_names: tuple[str, ...]
    """Meaning of the entries of `caption_ids`, in order."""
    files: dict[str, str]
    """SHA-256 of every other file."""
