"""Packs of pictures alone, for autoencoders and judges: raw bytes that load at once, or files as small as PNG makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pleinair.config import config_digest
from pleinair.packing.arrangement import Arrangement
from pleinair.packing.latents import PackPicture, Progress, Read, quiet, write_shapes
from pleinair.packing.pictures import png_bytes
from pleinair.packs.writer import SHARD_BYTES, PackWriter
from pleinair.records.packs import PackManifest


def write_pixels(
    arrangement: Arrangement,
    directory: Path,
    read: Read,
    *,
    caption_names: tuple[str, ...] = (),
    encoded: bool = False,
    group_rows: int = 64,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Progress = quiet,
) -> PackManifest:
    """Write a pack of raw or `encoded` (PNG) pictures; `directory` appears whole, by rename. Raises PackError."""
    manifest = PackManifest(
        plan=config_digest([arrangement.digest, encoded, group_rows, caption_names]),
        kind="encoded" if encoded else "pixels",
        dtype="uint8",
        group_rows=group_rows,
        caption_names=caption_names,
        left_out=arrangement.left_out,
    )

    def to_bytes(pictures: Sequence[PackPicture]) -> list[bytes]:
        return [png_bytes(of.pixels_HWC) if encoded else of.pixels_HWC.tobytes() for of in pictures]

    writer = PackWriter(directory, manifest, shard_bytes)
    write_shapes(writer, arrangement, 3, read, to_bytes, None, on_progress)
    return writer.finish()
