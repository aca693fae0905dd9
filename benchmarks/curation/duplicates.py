"""Planted copies among real pictures of four kinds, all searched together: what is found, what is found wrongly.

photos       all of gcompris's photographs, at most 800 pixels wide     drawings      of all styles, 128 pixels
cifar        photographs of 32 pixels                                    openclipart   a quarter of them one family of stars

A pair is false when its pictures have different originals and differ visibly: more than 32 levels in over 1% of 64 x 64 cells
(openclipart has the same picture many times). A recoloured drawing is another picture, so such pairs are false as well.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from benchmarks.curation.hashes import imagehash
from benchmarks.curation.pools import cifar
from benchmarks.krablet.rounds import Result, result
from pleinair.cli.places import cache_dir
from pleinair.curation import hashes_v1
from pleinair.curation.duplicates import DuplicateLimits, Picture, duplicate_pairs
from pleinair.curation.hamming import distances, packed
from pleinair.curation.hashes import DECODED_SIDE, fingerprints
from pleinair.curation.pictures import Pixels, decode
from pleinair.curation.sources import find_source, open_image
from pleinair.records.errors import ImageError, SourceError

NUM_ORIGINALS, NUM_PLANTED = 500, 80
ImageChange = Callable[[Image.Image], bytes]
Bits = npt.NDArray[np.uint64]


def encoded(image: Image.Image, format_: str = "PNG", **how: int) -> bytes:
    out = io.BytesIO()
    image.save(out, format_, **({"compress_level": 1} if format_ == "PNG" else how))
    return out.getvalue()


def resized(image: Image.Image, factor: float) -> Image.Image:
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def cropped(image: Image.Image, share: float) -> Image.Image:
    dx, dy = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.crop((dx, dy, image.width - dx, image.height - dy))


def hue_shifted(image: Image.Image, degrees: int) -> Image.Image:
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(round(degrees * 256 / 360))
    return Image.fromarray(hsv, "HSV").convert("RGB")


def lit(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


CHANGES: Mapping[str, Mapping[str, ImageChange]] = {
    "recompress": {
        "jpeg 30": lambda image: encoded(image, "JPEG", quality=30),
        "jpeg 60": lambda image: encoded(image, "JPEG", quality=60),
        "jpeg 90": lambda image: encoded(image, "JPEG", quality=90),
        "webp 50": lambda image: encoded(image, "WEBP", quality=50),
    },
    "resize": {
        # A quarter of CIFAR's 32 pixels is no picture; it is 0.5 there.
        "quarter": lambda image: encoded(resized(image, 0.25 if image.width > 32 else 0.5)),
        "half": lambda image: encoded(resized(image, 0.5)),
        "double": lambda image: encoded(resized(image, 2), "JPEG", quality=85),
    },
    "brightness": {
        "darker 20": lambda image: encoded(lit(image, 0.8)),
        "brighter 15": lambda image: encoded(lit(image, 1.15)),
        "brighter 30": lambda image: encoded(lit(image, 1.3)),
    },
    "crop": {
        "crop 2": lambda image: encoded(cropped(image, 0.02)),
        "crop 5": lambda image: encoded(cropped(image, 0.05)),
    },
    "recolour": {
        "hue 30": lambda image: encoded(hue_shifted(image, 30)),
        "hue 90": lambda image: encoded(hue_shifted(image, 90)),
        "grey": lambda image: encoded(image.convert("L").convert("RGB")),
    },
}
FOUND_BY_HASHES = ("recompress", "resize", "brightness")


@dataclass(frozen=True)
class Planted:
    """One picture of the search."""

    kind: str
    original: int
    """The same number for a picture and its copies."""
    change: str
    """Empty for an original."""
    group: str
    data: bytes
    star: bool = False
    """Of openclipart's family of stars, which differ in a few points."""


def measure() -> list[Result]:
    """`dup_recall` and `dup_false_pairs`, per kind and change, beside plain phash12 and six hue bins."""
    pictures = list(planted())
    print(f"{len(pictures)} pictures", flush=True)
    seen = [decode(picture.data, at_least=DECODED_SIDE) for picture in pictures]
    prints = [fingerprints(pixels) for pixels in seen]
    cells = np.stack([cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA) for pixels in seen])
    second = packed([one.phash12_v2 for one in prints])
    first = packed([hashes_v1.phash12(Image.fromarray(decode(picture.data))) for picture in pictures])
    with tempfile.TemporaryDirectory() as folder, imagehash() as ask:
        six_bins = peer_colours(pictures, Path(folder), ask)
    truth = Truth.of(pictures, cells)
    rows = [
        Picture(
            name=f"{number:06}", md5=f"{number}", entropy=8.0, num_pixels=1,
            phash12_v2=one.phash12_v2, colour_v2=one.colour_v2, thumb16_v2=one.thumb16_v2,
        )
        for number, one in enumerate(prints)
    ]  # fmt: skip
    pairs = duplicate_pairs(rows, DuplicateLimits())
    colours = np.array([[int(level, 16) for level in one.colour_v2] for one in prints], np.int16)
    return [*ours(pictures, pairs, truth), *plain(first, second, truth, pairs), *hues(second, colours, six_bins, truth)]


def planted() -> Iterator[Planted]:
    """Originals of every kind, and the copies of some."""
    number = 0
    for kind, originals in originals_of().items():
        for place, (image, star) in enumerate(originals):
            number += 1
            yield Planted(kind, number, "", "", encoded(image), star)
            if place < NUM_PLANTED:
                for group, changes in CHANGES.items():
                    for name, change in changes.items():
                        yield Planted(kind, number, name, group, change(image), star)


def originals_of() -> dict[str, list[tuple[Image.Image, bool]]]:
    """Pictures by kind, chosen at random but always the same."""
    tiny = [(Image.fromarray(pixels), False) for pixels, _ in islice(cifar(), NUM_ORIGINALS)]
    return {"photos": some("gcompris"), "drawings": some("drawings"), "openclipart": some("openclipart"), "cifar": tiny}


def some(source: str) -> list[tuple[Image.Image, bool]]:
    listed = list(find_source(source, cache_dir()).list())
    found = list[tuple[Image.Image, bool]]()
    for number in np.random.default_rng(0).permutation(len(listed)).tolist():
        try:
            image = Image.fromarray(decode(open_image(listed[number].uri, cache_dir())))
        except (ImageError, SourceError):
            continue
        large = image.width > 800
        found.append((resized(image, 800 / image.width) if large else image, "star" in listed[number].image_name))
        if len(found) == NUM_ORIGINALS:
            break
    return found


@dataclass(frozen=True)
class Truth:
    """Which pairs are copies."""

    pictures: Sequence[Planted]
    cells: npt.NDArray[np.uint8]
    original: npt.NDArray[np.int64]
    recoloured: npt.NDArray[np.bool_]
    drawn: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, pictures: Sequence[Planted], cells: npt.NDArray[np.uint8]) -> Truth:
        return cls(
            pictures,
            cells,
            np.array([picture.original for picture in pictures]),
            np.array([picture.group == "recolour" for picture in pictures]),
            np.array([picture.kind in ("drawings", "openclipart") for picture in pictures]),
        )

    def false(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which pairs are of different pictures, to the eye; a recoloured drawing is one."""
        first, second = pairs.T
        same = self.original[first] == self.original[second]
        other_colour = same & self.drawn[first] & (self.recoloured[first] | self.recoloured[second])
        wrong = ~same | other_colour
        for place in np.flatnonzero(wrong).tolist():
            wrong[place] = visibly_apart(self.cells[first[place]], self.cells[second[place]])
        return wrong

    def copies(self, groups: Sequence[str] = FOUND_BY_HASHES) -> npt.NDArray[np.int64]:
        """Pairs (original, copy) of these changes."""
        home = {picture.original: place for place, picture in enumerate(self.pictures) if not picture.change}
        found = [(home[p.original], place) for place, p in enumerate(self.pictures) if p.group in groups]
        return np.array(found, dtype=np.int64)


def visibly_apart(first: Pixels, second: Pixels) -> bool:
    return bool((cv2.absdiff(first, second).max(axis=2) > 32).mean() > 0.01)


def ours(pictures: Sequence[Planted], pairs: npt.NDArray[np.int64], truth: Truth) -> list[Result]:
    """Recall per kind and change, false pairs per kind, of the rule for pictures without labels."""
    found = set(map(tuple, pairs.tolist()))
    hit = {place: (home, place) in found for home, place in truth.copies(tuple(CHANGES)).tolist()}
    rows = []
    for kind in dict.fromkeys(picture.kind for picture in pictures):
        for group, changes in CHANGES.items():
            for name in changes:
                own = [hit[n] for n, p in enumerate(pictures) if (p.kind, p.change) == (kind, name)]
                rows.append(result(f"dup_recall_{kind}_{name.replace(' ', '_')}", float(np.mean(own)), "share"))
            own = [hit[n] for n, p in enumerate(pictures) if (p.kind, p.group) == (kind, group)]
            rows.append(result(f"dup_recall_{kind}_{group}", float(np.mean(own)), "share"))
    wrong = pairs[truth.false(pairs)]
    for kind in dict.fromkeys(picture.kind for picture in pictures):
        own_wrong = [(a, b) for a, b in wrong.tolist() if pictures[a].kind == kind and not pictures[a].star]
        rows.append(result(f"dup_false_pairs_{kind}", len(own_wrong), "pairs"))
        recolours = sum(pictures[a].original == pictures[b].original for a, b in own_wrong)
        rows.append(result(f"dup_false_pairs_{kind}_recoloured", recolours, "of these, the same drawing recoloured"))
    stars = sum(pictures[a].star and pictures[b].star for a, b in wrong.tolist())
    rows.append(result("dup_false_pairs_stars", stars, "pairs of openclipart's stars"))
    for row in rows:
        print(f"  {row['name']} {row['value']}", flush=True)
    return rows


def plain(first: Bits, second: Bits, truth: Truth, pairs: npt.NDArray[np.int64]) -> list[Result]:
    """False pairs of plain phash12 at the radius where it finds as many copies as the rule does; stars left out."""
    copies = truth.copies()
    found = set(map(tuple, pairs.tolist()))
    recall = float(np.mean([tuple(pair) in found for pair in copies.tolist()]))
    no_stars = np.array([not picture.star for picture in truth.pictures])
    wrong = pairs[truth.false(pairs)]
    our_false = int((no_stars[wrong[:, 0]] | no_stars[wrong[:, 1]]).sum())
    rows = [result("dup_recall", recall, f"of {len(copies)} copies re-encoded, resized, brighter or darker")]
    for name, bits in (("plain phash12", first), ("phash12_v2 alone", second)):
        apart = distances(bits[copies[:, 0]], bits[copies[:, 1]])
        radius = int(np.quantile(apart, recall, method="higher"))
        theirs = count_false(bits, radius, truth, no_stars)
        print(f"  {name}: {radius} bits for recall {recall:.3f}: {theirs} false pairs, ours {our_false}", flush=True)
        key = "dup_false_pairs" if name.startswith("plain") else "dup_false_pairs_vs_v2_alone"
        rows.append(
            result(
                key, our_false, f"pairs; {name} at {radius} bits, the same recall: {theirs}", name, our_false / theirs
            )
        )
    at_14 = count_false(first, 14, truth, no_stars)
    recall_14 = float((distances(first[copies[:, 0]], first[copies[:, 1]]) <= 14).mean())
    rows.append(result("dup_false_pairs_plain_14", at_14, f"pairs of plain phash12 <= 14, recall {recall_14:.3f}"))
    return rows


def count_false(bits: Bits, radius: int, truth: Truth, no_stars: npt.NDArray[np.bool_]) -> int:
    """False pairs within a radius, all compared with all. Past 20 bits different originals count unseen: they are too many."""
    total = 0
    for place in range(len(bits) - 1):
        apart = np.bitwise_count(bits[place + 1 :] ^ bits[place]).sum(axis=1, dtype=np.int64)
        near = np.flatnonzero(apart <= radius)
        near = near[no_stars[place] | no_stars[near + place + 1]]
        sure = apart[near] <= 20
        close = np.stack([np.full(sure.sum(), place), near[sure] + place + 1], axis=1)
        far = truth.original[near[~sure] + place + 1] != truth.original[place]
        total += int(truth.false(close).sum()) + int(far.sum())
    return total


def hues(bits: Bits, colours: npt.NDArray[np.int16], six_bins: npt.NDArray[np.bool_], truth: Truth) -> list[Result]:
    """Recoloured drawings that each colour hash takes for the original, at the radius where it passes 95% of the copies."""
    copies, recoloured = truth.copies(("recompress", "resize")), truth.copies(("recolour",))
    recoloured = recoloured[truth.false(recoloured)]
    near = distances(bits[recoloured[:, 0]], bits[recoloured[:, 1]]) <= DuplicateLimits().near.phash
    recoloured = recoloured[near]
    matched = {}
    for name, values in (("ours", colours), ("six", six_bins.astype(np.int16))):
        apart = [np.abs(values[of[:, 0]] - values[of[:, 1]]).sum(axis=1) for of in (copies, recoloured)]
        radius = np.quantile(apart[0], 0.95, method="higher")
        matched[name] = float((apart[1] <= radius).mean())
        print(f"  colours, {name}: radius {radius:.0f}, recoloured drawings passed {matched[name]:.3f}", flush=True)
    peer = f"imagehash.colorhash: {matched['six']:.3f}"
    unit = f"share of {len(recoloured)} recoloured drawings passed, at the radius that passes 95% of copies"
    return [
        result("colour_recoloured_passed", matched["ours"], unit, peer, matched["ours"] / max(matched["six"], 1e-9))
    ]


def peer_colours(pictures: Sequence[Planted], folder: Path, ask: Callable[[str], float]) -> npt.NDArray[np.bool_]:
    """Colour hashes by the `imagehash` package."""
    (folder / "in").mkdir()
    for number, picture in enumerate(pictures):
        (folder / "in" / f"{number:06}").write_bytes(picture.data)
    ask(f"colours {folder}/in {folder}/out.npy")
    colours: npt.NDArray[np.bool_] = np.load(folder / "out.npy")
    return colours
