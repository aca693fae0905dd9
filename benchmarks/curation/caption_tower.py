"""Planted wrong captions against the project's own image-text model: found at what rate, and true ones lost at what.

A fifth of the concepts of the drawings, in all ten styles. The towers are trained on the pictures that training may see,
calibrated on one half of the held-out ones, and measured on the other: each with its own label, with every other label
there is, and with those of the same group, which are like it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.curation.pools import encoder
from benchmarks.krablet.rounds import Result, result
from pleinair.captioning import captions
from pleinair.cli.places import cache_dir
from pleinair.curation import WORDING
from pleinair.curation.pictures import decode
from pleinair.curation.small_models.claims import WAYS, calibrate, evidence, half_of, probabilities
from pleinair.curation.small_models.tower import SpokenPictures, train_two_tower
from pleinair.curation.sources import DrawingsSource, PictureRow, open_image

SHARE_OF_CONCEPTS = 5
THRESHOLDS = (0.02, 0.05, 0.1, 0.2)
Matrix = npt.NDArray[np.float32]


def measure() -> list[Result]:
    """Rates at each threshold, of subjects and of styles."""
    rows = drawings()
    vectors_NE = embedded(rows)
    seen, unseen = ([n for n, row in enumerate(rows) if row.held_out == held] for held in (False, True))
    model = train_two_tower(spoken([rows[n] for n in seen], vectors_NE[seen]))
    held_out = spoken([rows[n] for n in unseen], vectors_NE[unseen])
    measured = [n for n in unseen if half_of(rows[n].image_name) == 1]
    found = [result("caption_tower_pictures", len(seen), "drawings trained on")]
    for kind in WAYS:
        made = calibrate(model, held_out, kind)
        assert made is not None, "enough drawings are held out"
        said = [_said(kind, row) for row in rows]
        groups = {text: row.group_name for text, row in zip(said, rows, strict=True)}
        texts = sorted(groups)
        found_NV = probabilities(evidence(model, vectors_NE[measured], texts, made[0].rivals), made[0])
        own_NV = np.array([[text == said[n] for text in texts] for n in measured])
        alike_NV = np.array([[groups[text] == rows[n].group_name for text in texts] for n in measured]) & ~own_NV
        found += rates(kind, found_NV, own_NV, alike_NV if kind == "subject" else None)
    return found


def _said(kind: str, row: PictureRow) -> str:
    return str(row.label) if kind == "subject" else f"{WORDING.style(row.as_dict())} style"


def rates(
    kind: str, found_NV: Matrix, own_NV: npt.NDArray[np.bool_], alike_NV: npt.NDArray[np.bool_] | None
) -> list[Result]:
    """Shares under each threshold, every picture counting the same."""
    name, num = f"caption_tower_{kind}", len(found_NV)
    made = [result(f"{name}_measured", num, "held-out drawings that nothing was fitted on")]
    for limit in THRESHOLDS:
        at, under = f"{round(limit * 100):02d}", found_NV < limit
        made += [
            result(f"{name}_lost_{at}", float(under[own_NV].mean()), f"of true ones are under {limit}"),
            result(f"{name}_found_{at}", float(under[~own_NV].mean()), f"of wrong ones are under {limit}"),
        ]
        if alike_NV is not None:
            text = f"of wrong ones of the same group are under {limit}"
            made.append(result(f"{name}_found_alike_{at}", float(under[alike_NV].mean()), text))
    return made


def drawings() -> list[PictureRow]:
    """A fifth of the concepts, in every style that is trained on."""
    listed = DrawingsSource(cache_dir()).list()
    return [row for row in listed if row.style != "fluent" and row.concept and _is_chosen(row.concept)]


def _is_chosen(concept: str) -> bool:
    return hashlib.sha256(concept.encode()).digest()[0] % SHARE_OF_CONCEPTS == 0


def embedded(rows: Sequence[PictureRow]) -> Matrix:
    """Their vectors: made once, kept in the user's cache."""
    network, names = encoder(), [row.image_name for row in rows]
    path = cache_dir() / "bench" / f"caption-tower-{network.name}.npz"
    if path.exists():
        with np.load(path) as stored:
            if stored["names"].tolist() == names:
                return np.asarray(stored["vectors"], np.float32)
    parts = [
        network.embed([decode(open_image(row.uri, cache_dir())) for row in rows[start : start + 64]])
        for start in range(0, len(rows), 64)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, vectors=np.concatenate(parts).astype(np.float16), names=np.array(names))
    return np.concatenate(parts)


def spoken(rows: Sequence[PictureRow], vectors_NE: Matrix) -> SpokenPictures:
    """What `pleinair tower` reads from a warehouse."""
    said = []
    for row in rows:
        made = captions(row.as_dict(), WORDING)
        assert made is not None, "every drawing has a label"
        said.append((made.long, made.medium, made.short, row.label or "", f"{WORDING.style(row.as_dict())} style"))
    return SpokenPictures(encoder().name, [row.image_name for row in rows], vectors_NE, list(zip(*said, strict=True)))
