"""Crops found by embedding, before and after their pixels are looked at; drawings, and the photographs of gcompris.

semantic_<kind>_<crop>_proposed    planted copies that are a candidate with their original in one cluster above the leaves
semantic_<kind>_<crop>_recall      of all planted copies, those confirmed
semantic_<kind>_false_before       candidate pairs that are no copies, per hundred pictures
semantic_<kind>_false_after        of a sample of these, confirmed and visibly different; scaled to a hundred pictures
semantic_pair_ms                   CPU of one pair: two PNG or JPEG decodings, and the alignment

Labels are not used: the drawings that differ in a hand or a mouth must be told apart by their pixels.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.curation.pools import encoder, pool
from benchmarks.krablet.rounds import Result, result
from pleinair.cli.places import cache_dir
from pleinair.curation.clusters.alignment import SIDE, AlignmentLimits, align
from pleinair.curation.clusters.hierarchy import cluster_hierarchy
from pleinair.curation.clusters.semantic import CandidateLimits, candidates
from pleinair.curation.clusters.warehouse import leading_directions, levels_for
from pleinair.curation.hashes import DECODED_SIDE, fingerprints_of
from pleinair.curation.pictures import Pixels, decode
from pleinair.curation.sources import find_source, open_image

NUM_PLANTED = 150
NUM_LOOKED = 1500
"""Of the candidates that are no planted copies, how many are looked at: all would take minutes."""


def jpeg(pixels: Pixels, quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def png(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def cropped(pixels: Pixels, share: float) -> Pixels:
    """Without a border of that share of each side."""
    height, width = (max(1, round(share * side)) for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[height : pixels.shape[0] - height, width : pixels.shape[1] - width])


CROPS: Mapping[str, Callable[[Pixels], bytes]] = {
    "crop_2": lambda pixels: png(cropped(pixels, 0.02)),
    "crop_5": lambda pixels: png(cropped(pixels, 0.05)),
    "crop_10": lambda pixels: png(cropped(pixels, 0.1)),
    "crop_5_jpeg_50": lambda pixels: jpeg(cropped(pixels, 0.05), 50),
}


def measure() -> list[Result]:
    """Both kinds of pictures."""
    rows = []
    for kind, files in (("drawings", drawings), ("photos", photos)):
        rows += measure_kind(kind, files())
    return rows


def drawings() -> list[bytes]:
    """The kept styles, in the order of `pool("drawings")`."""
    listed = find_source("drawings", cache_dir()).list()
    return [open_image(row.uri, cache_dir()) for row in listed if row.style != "fluent"]


def photos() -> list[bytes]:
    """All of gcompris, as JPEG of at most 1024 pixels."""
    found = []
    for row in find_source("gcompris", cache_dir()).list():
        image = Image.fromarray(decode(open_image(row.uri, cache_dir())))
        image.thumbnail((1024, 1024))
        found.append(jpeg(np.asarray(image), 90))
    return found


def measure_kind(kind: str, files: list[bytes], seed: int = 0) -> list[Result]:
    """Plant crops of some pictures beside all of them, as copies would be: new rows with their own vectors."""
    num = len(files)
    chosen = np.random.default_rng(seed).choice(num, min(NUM_PLANTED, num), replace=False)
    copies = [crop(decode(files[place])) for crop in CROPS.values() for place in chosen.tolist()]
    home = np.concatenate([np.arange(num), np.tile(chosen, len(CROPS))])
    everything = [*files, *copies]
    vectors = known_vectors(kind, files, copies)
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    hierarchy = cluster_hierarchy(leading_directions(unit, 128), levels_for(len(unit)))
    scope = hierarchy.cluster_of_points(min(1, len(hierarchy.levels) - 1))
    colours = np.array([[int(level, 16) for level in fingerprints_of(data).colour_v2] for data in everything], np.int16)
    found = candidates(unit.astype(np.float32), colours, scope, CandidateLimits())
    print(f"  {kind}: {len(everything)} pictures, {len(found.pairs)} candidates", flush=True)
    other = np.flatnonzero(home[found.pairs[:, 0]] != home[found.pairs[:, 1]])
    looked = np.random.default_rng(seed).permutation(other)[:NUM_LOOKED]
    mine = np.setdiff1d(np.arange(len(found.pairs)), other)
    same, milliseconds = confirmed(everything, found.pairs[np.concatenate([mine, looked])])
    proved = found.pairs[mine[same[: len(mine)]]]
    rows = [result(f"semantic_{kind}_candidates", 100 * len(found.pairs) / len(everything), "per 100 pictures")]
    rows.append(result(f"semantic_{kind}_pair_ms", milliseconds, "CPU ms a pair"))
    wrong = found.pairs[looked[same[len(mine) :]]]
    rows += recalls(kind, num, home, chosen, found.pairs, proved)
    return rows + false_pairs(kind, everything, wrong, len(other), len(looked))


def known_vectors(kind: str, files: list[bytes], copies: list[bytes]) -> npt.NDArray[np.float32]:
    network = encoder()

    def embed(encoded: list[bytes]) -> list[npt.NDArray[np.float32]]:
        return [
            network.embed([decode(data) for data in encoded[start : start + 64]])
            for start in range(0, len(encoded), 64)
        ]

    own = [pool("drawings").vectors_ND[: len(files)]] if kind == "drawings" else embed(files)
    return np.concatenate([*own, *embed(copies)])


def confirmed(everything: list[bytes], pairs: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_], float]:
    """Which pairs are one picture, and milliseconds for each."""
    began, limits = time.process_time(), AlignmentLimits()
    same = np.zeros(len(pairs), np.bool_)
    for place, (first, second) in enumerate(pairs.tolist()):
        same[place] = align(*(decode(everything[number], at_least=SIDE) for number in (first, second))).same(limits)
    return same, 1e3 * (time.process_time() - began) / len(pairs)


def recalls(
    kind: str,
    num: int,
    home: npt.NDArray[np.int64],
    chosen: npt.NDArray[np.int64],
    proposed: npt.NDArray[np.int64],
    proved: npt.NDArray[np.int64],
) -> list[Result]:
    """By crop: copies that were candidates with their original, and copies confirmed."""
    rows, sets = (
        list[Result](),
        {"proposed": set(map(tuple, proposed.tolist())), "recall": set(map(tuple, proved.tolist()))},
    )
    for number, name in enumerate(CROPS):
        places = range(num + number * len(chosen), num + (number + 1) * len(chosen))
        for what, of in sets.items():
            share = float(np.mean([(int(home[place]), place) in of for place in places]))
            rows.append(result(f"semantic_{kind}_{name}_{what}", share, "share"))
            print(f"  {kind} {name} {what} {share:.3f}", flush=True)
    return rows


def false_pairs(
    kind: str, everything: list[bytes], wrong: npt.NDArray[np.int64], num_other: int, num_looked: int
) -> list[Result]:
    """What the pixels take for one picture though no copy was planted; pictures equal to the eye are none's fault."""
    apart = [pair for pair in wrong.tolist() if visibly_apart(*(everything[number] for number in pair))]
    print(
        f"  {kind}: {num_looked} of {num_other} others looked at, {len(wrong)} same, visibly apart {apart[:20]}",
        flush=True,
    )
    scale, unit = 100 * num_other / max(num_looked, 1) / len(everything), "pairs per 100 pictures"
    return [
        result(f"semantic_{kind}_false_before", 100 * num_other / len(everything), unit),
        result(f"semantic_{kind}_false_after", scale * len(apart), f"{unit}; {len(apart)} of {num_looked} looked at"),
        result(f"semantic_{kind}_equal", scale * (len(wrong) - len(apart)), f"{unit} that are the same to the eye"),
    ]


def visibly_apart(first: bytes, second: bytes) -> bool:
    """More than 32 levels apart in over 1% of 64 x 64 cells, as they are."""
    cells = [
        cv2.resize(decode(data, at_least=DECODED_SIDE), (64, 64), interpolation=cv2.INTER_AREA)
        for data in (first, second)
    ]
    return bool((cv2.absdiff(*cells).max(axis=2) > 32).mean() > 0.01)
