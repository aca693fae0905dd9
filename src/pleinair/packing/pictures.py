"""Curated rows of the warehouse as pictures in memory, resized for training."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pleinair.curation.pictures import decode
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Table
from pleinair.packs.pictures import PictureSet

CAPTION_COLUMNS = ("caption_long", "caption_medium", "caption_short")
COLUMNS = ("image_name", "style", "concept", "label", "held_out", "image_path", *CAPTION_COLUMNS)


@dataclass(frozen=True)
class CuratedPicture:
    """One picture that passed curation, with its captions and pixels."""

    key: str
    style: str | None
    concept: str | None
    label: str | None
    held_out: bool
    captions: tuple[str, ...]
    """Long, medium, short."""
    pixels: Mapping[int, npt.NDArray[np.uint8]]
    """Resolution to (resolution, resolution, 3), on white."""


def read_curated(
    images: Table,
    store: ObjectStore,
    resolutions: Sequence[int],
    *,
    where: str,
    params: Sequence[Any] = (),
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[CuratedPicture]:
    """Pictures of the rows that satisfy `where`, in key order, at each resolution."""
    pictures = []
    for row in _rows(images, where, params):
        picture = Image.fromarray(decode(store.get(row["image_path"])))
        pixels = {side: resize_square(picture, side) for side in resolutions}
        captions = tuple(row[column] for column in CAPTION_COLUMNS)
        labels = (row["style"], row["concept"], row["label"], bool(row["held_out"]))
        pictures.append(CuratedPicture(row["image_name"], *labels, captions, pixels))
        on_progress(len(pictures))
    return pictures


def _rows(images: Table, where: str, params: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for batch in images.read(where=where, columns=list(COLUMNS), order_by="image_name", params=params or None):
        yield from batch.to_pylist()


def resize_square(picture: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    """The picture padded to a square on white, then resampled to `side` (Lanczos)."""
    longest = max(picture.size)
    if picture.size != (longest, longest):
        square = Image.new("RGB", (longest, longest), "white")
        square.paste(picture, ((longest - picture.width) // 2, (longest - picture.height) // 2))
        picture = square
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))


def picture_set(pictures: Sequence[CuratedPicture], resolution: int) -> PictureSet:
    """Labelled pictures of one resolution, those without a style or a concept left out."""
    labelled = [picture for picture in pictures if picture.style and picture.concept]
    return PictureSet(
        [picture.key for picture in labelled],
        np.stack([picture.pixels[resolution] for picture in labelled]),
        [picture.style or "" for picture in labelled],
        [picture.concept or "" for picture in labelled],
        np.array([picture.held_out for picture in labelled], bool),
    )


def png_bytes(pixels_HWC: npt.NDArray[np.uint8]) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()
