"""Planted near-copies of drawings found by embedding similarity, and what is found wrongly, at three similarities.

semantic_<kind>_recall_at_<s>   planted copies whose cosine with their original is at least s / 100
semantic_false_at_<s>           pairs of drawings of different concepts, not equal, per hundred pictures
semantic_same_leaf              planted copies in one leaf cluster with their original: the rest is out of reach
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.curation.pools import encoder, pool
from benchmarks.curation.tags import some_drawings
from benchmarks.krablet.rounds import Result, result
from pleinair.curation.clusters.hierarchy import cluster_hierarchy
from pleinair.curation.clusters.semantic import near_pairs
from pleinair.curation.clusters.warehouse import leading_directions, levels_for
from pleinair.curation.pictures import Pixels

NUM_PLANTED = 300
THRESHOLDS = (0.85, 0.9, 0.95)
EQUAL = 0.9995


def measure(seed: int = 0) -> list[Result]:
    """Plant copies of some drawings beside all of them."""
    drawings, rng = pool("drawings"), np.random.default_rng(seed)
    chosen, num = rng.choice(len(drawings.labels), NUM_PLANTED, replace=False), len(drawings.labels)
    originals = some_drawings(chosen)
    copies = np.concatenate([encoder().embed([alter(picture) for picture in originals]) for alter in ALTER.values()])
    vectors = np.concatenate([drawings.vectors_ND, copies])
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    leaves = cluster_hierarchy(leading_directions(unit, 128), levels_for(len(unit))).cluster_of_points(0)
    true_C = np.einsum("cd,cd->c", unit[num:], unit[np.tile(chosen, len(ALTER))])
    same_leaf = leaves[num:] == leaves[np.tile(chosen, len(ALTER))]
    false = false_similarities(unit[:num], np.array([own[-1] for own in drawings.labels]))
    rows = [result("semantic_same_leaf", float(same_leaf.mean()), "share")]
    for threshold in THRESHOLDS:
        at = f"at_{100 * threshold:.0f}"
        rows.append(
            result(f"semantic_false_{at}", 100 * float((false >= threshold).sum()) / num, "pairs per 100 pictures")
        )
        for number, kind in enumerate(ALTER):
            part = slice(number * NUM_PLANTED, (number + 1) * NUM_PLANTED)
            rows.append(result(f"semantic_{kind}_recall_{at}", float((true_C[part] >= threshold).mean()), "share"))
    return rows


def false_similarities(unit: npt.NDArray[np.float32], concept: npt.NDArray[np.str_]) -> npt.NDArray[np.float32]:
    """Of near pairs of different concepts that are not one drawing under two names (many flags and families are)."""
    pairs = near_pairs(unit, min(THRESHOLDS))
    similarity = np.einsum("pd,pd->p", unit[pairs[:, 0]], unit[pairs[:, 1]])
    return similarity[(concept[pairs[:, 0]] != concept[pairs[:, 1]]) & (similarity < EQUAL)]


def cropped(pixels: Pixels, share: float) -> Pixels:
    """Without a border of that share of each side."""
    height, width = (round(share * side) for side in pixels.shape[:2])
    return pixels[height : pixels.shape[0] - height, width : pixels.shape[1] - width]


def recompressed(pixels: Pixels) -> Pixels:
    """As JPEG of quality 30."""
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=30)
    return np.asarray(Image.open(written).convert("RGB"))


def halved(pixels: Pixels) -> Pixels:
    """At half the size."""
    return np.asarray(
        Image.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2), Image.Resampling.BICUBIC)
    )


def brighter(pixels: Pixels) -> Pixels:
    """15% brighter."""
    return np.clip(pixels * 1.15, 0, 255).astype(np.uint8)


ALTER = {
    "crop2": lambda pixels: cropped(pixels, 0.02),
    "crop5": lambda pixels: cropped(pixels, 0.05),
    "half": halved,
    "jpeg30": recompressed,
    "brighter": brighter,
}
