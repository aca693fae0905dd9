"""What a takedown by looks finds, and what it takes along: real photographs, their copies, and thousands of bystanders.

Photographs of gcompris are taken down one by one; five kinds of copies of each should go, the other photographs and a
sample of the drawings should stay. Drawings are taken down as well, against all other drawings of the sample.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.krablet.rounds import Result, result
from pleinair.cli.places import cache_dir
from pleinair.curation.hashes import Fingerprints, fingerprints
from pleinair.curation.pictures import decode
from pleinair.curation.sources import find_source, open_image
from pleinair.curation.takedowns import Refusals, Takedown

RADII = (2, 6, 10, 14, 18)
NUM_DRAWINGS = 4000

COPIES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg 50": lambda image: _jpeg(image, 50),
    "jpeg 20": lambda image: _jpeg(image, 20),
    "half size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter 15%": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "cropped 2%": lambda image: image.crop((image.width // 50, image.height // 50, image.width, image.height)),
}


def measure() -> list[Result]:
    """Recall per radius over all copies, and bystanders taken along per thousand takedowns."""
    photos = [decode(open_image(row.uri, cache_dir())) for row in find_source("gcompris", cache_dir()).list()]
    originals = [fingerprints(pixels) for pixels in photos]
    copies = {
        name: [fingerprints(np.asarray(change(Image.fromarray(pixels)))) for pixels in photos]
        for name, change in COPIES.items()
    }
    drawings = _drawings()
    found = []
    for radius in RADII:
        recall = {name: _recall(originals, of_kind, radius) for name, of_kind in copies.items()}
        print(f"radius {radius}: " + ", ".join(f"{name} {value:.3f}" for name, value in recall.items()), flush=True)
        kept = [value for name, value in recall.items() if not name.startswith("cropped")]
        along = {"photos": _bystanders(originals, radius), "drawings": _bystanders(drawings, radius)}
        print(f"radius {radius}: bystanders per takedown {along}", flush=True)
        found += [
            result(f"takedown_recall_{radius}", sum(kept) / len(kept), "of copies re-encoded, resized or brightened"),
            result(f"takedown_recall_crop_{radius}", recall["cropped 2%"], "of copies cropped by 2%"),
            result(f"takedown_bystanders_photos_{radius}", along["photos"], f"of {len(photos) - 1} per takedown"),
            result(f"takedown_bystanders_drawings_{radius}", along["drawings"], f"of {len(drawings) - 1} per takedown"),
        ]
    return found


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def _drawings() -> list[Fingerprints]:
    """Every fourth or so of the drawings, at random but always the same."""
    rows = list(find_source("drawings", Path(cache_dir())).list())
    chosen = np.random.default_rng(0).permutation(len(rows))[:NUM_DRAWINGS]
    return [fingerprints(decode(open_image(rows[number].uri, cache_dir()))) for number in chosen]


def _refusals(of: Fingerprints, radius: int) -> Refusals:
    return Refusals.of([_takedown("x", of, radius)])


def _takedown(name: str, of: Fingerprints, radius: int) -> Takedown:
    return Takedown(takedown=name, reason="x", near=radius, **asdict(of))


def _recall(originals: Sequence[Fingerprints], copies: Sequence[Fingerprints], radius: int) -> float:
    hits = [
        bool(_refusals(original, radius).of_looks(copy.phash12_v2, copy.colour_v2, copy.thumb16_v2))
        for original, copy in zip(originals, copies, strict=True)
    ]
    return sum(hits) / len(hits)


def _bystanders(pictures: Sequence[Fingerprints], radius: int) -> float:
    """How many other pictures go with one, on average; pictures of equal fingerprints count as the same."""
    everything = Refusals.of([_takedown(str(number), one, radius) for number, one in enumerate(pictures)])
    along = 0
    for one in pictures:
        along += everything.count_near(one.phash12_v2, one.colour_v2, one.thumb16_v2)
    same = sum(a.phash12_v2 == b.phash12_v2 and a.colour_v2 == b.colour_v2 for a in pictures for b in pictures)
    return (along - same) / len(pictures)
