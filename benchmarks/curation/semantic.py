"""Planted near-copies of drawings found by embedding similarity, leaf by leaf, and what is found wrongly.

semantic_<kind>_recall     planted copies whose original is a pair with them, over the similarity that ...
semantic_false_pairs       ... gives at most one false pair per hundred pictures (drawings of different concepts)
semantic_leaf_loss         share of true pairs that leaf borders cut
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from benchmarks.curation.pools import encoder, pool
from benchmarks.curation.tags import some_drawings
from benchmarks.krablet.rounds import Result, result
from pleinair.curation.clusters import leading_directions, levels_for
from pleinair.curation.hierarchy import cluster_hierarchy
from pleinair.curation.pictures import Pixels
from pleinair.curation.semantic import near_pairs

NUM_PLANTED = 300


def measure(seed: int = 0) -> list[Result]:
    """Plant copies of some drawings beside all of them."""
    drawings, rng = pool("drawings"), np.random.default_rng(seed)
    chosen, num = rng.choice(len(drawings.labels), NUM_PLANTED, replace=False), len(drawings.labels)
    originals = some_drawings(chosen)
    copies = np.concatenate([encoder().embed([alter(picture) for picture in originals]) for alter in ALTER.values()])
    vectors = np.concatenate([drawings.vectors_ND, copies])
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    concept = np.array([own[-1] for own in drawings.labels])
    pairs = near_pairs(unit[:num], 0.8)
    similarity = np.einsum("pd,pd->p", unit[pairs[:, 0]], unit[pairs[:, 1]])
    false = np.sort(similarity[concept[pairs[:, 0]] != concept[pairs[:, 1]]])[::-1]
    threshold = float(false[min(num // 100, len(false) - 1)])
    leaves = cluster_hierarchy(leading_directions(unit, 128), levels_for(len(unit))).cluster_of_points(0)
    true_C = np.einsum("cd,cd->c", unit[num:], unit[np.tile(chosen, len(ALTER))])
    same_leaf = leaves[num:] == leaves[np.tile(chosen, len(ALTER))]
    found_C = true_C >= threshold
    rows = [
        result("semantic_similarity", threshold, "cosine"),
        result("semantic_leaf_loss", float(1 - same_leaf[found_C].mean()), "share"),
    ]
    for number, kind in enumerate(ALTER):
        part = slice(number * NUM_PLANTED, (number + 1) * NUM_PLANTED)
        recall, in_leaf = float(found_C[part].mean()), float((found_C & same_leaf)[part].mean())
        rows += [
            result(f"semantic_{kind}_recall", recall, "share"),
            result(f"semantic_{kind}_recall_in_leaves", in_leaf, "share"),
        ]
    return rows


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
