"""Sparse-autoencoder tags of drawings against labels: how good the codes are, and what a tag is worth.

sae_*             unexplained variance, cosine, active and dead features, on a tenth of the vectors kept aside
sae_word_*        tags named by words of half the captions, against the words of the other half's: precision, recall
sae_style_*       for each of the ten styles the feature that names it best on half the pictures, on the other half
sae_frame_*       the same for a planted artefact: a frame of 5 pixels on 2% of the pictures
sae_watermark_*   the same for grey letters across the picture on 2%
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from benchmarks.curation.pools import encoder, pool
from benchmarks.krablet.rounds import Result, result
from pleinair.cli.places import cache_dir
from pleinair.curation.pictures import Pixels, decode
from pleinair.curation.small_models.loop import TrainingProgress
from pleinair.curation.sources import DrawingsSource, open_image
from pleinair.curation.sources.drawings import TRAINING_STYLES
from pleinair.curation.tags import (
    Codes,
    best_cut,
    codes_of,
    name_features,
    picture_tags,
    quality_of,
    train_sparse_autoencoder,
)
from pleinair.curation.vocabulary import Vocabulary

Flags = npt.NDArray[np.bool_]
PLANTED_SHARE = 0.02


def measure(seed: int = 0) -> list[Result]:
    """Plant, train, name, compare."""
    drawings, rng = pool("drawings"), np.random.default_rng(seed)
    vectors, num = drawings.vectors_ND.copy(), len(drawings.labels)
    planted = {}
    dealt = rng.permutation(num)[: 2 * round(PLANTED_SHARE * num)].reshape(2, -1)
    for kind, chosen in zip(PLANT, dealt, strict=True):
        pictures = [PLANT[kind](picture, rng) for picture in some_drawings(chosen)]
        vectors[chosen] = encoder().embed(pictures)
        planted[kind] = np.isin(np.arange(num), chosen)
    aside = np.arange(num) % 10 == 0
    model = train_sparse_autoencoder(vectors[~aside], on_progress=show)
    quality, codes = quality_of(model, vectors[aside]), codes_of(model, vectors)
    half = rng.random(num) < 0.5
    figures = [
        result("sae_unexplained", quality.unexplained, "share"),
        result("sae_cosine", quality.cosine, "cosine"),
        result("sae_active", quality.active, "features"),
        result("sae_dead", quality.dead_share, "share"),
        *word_figures(codes, drawings.labels, half),
    ]
    styles = [
        best_feature(codes, np.array([style in own for own in drawings.labels]), half) for style in TRAINING_STYLES
    ]
    figures += pair("style", *np.mean(styles, axis=0))
    for kind, flags in planted.items():
        figures += pair(kind, *best_feature(codes, flags, half))
    for style, (precision, recall) in zip(TRAINING_STYLES, styles, strict=True):
        print(f"  {style}: precision {precision:.2f}, recall {recall:.2f}")
    return figures


def show(now: TrainingProgress) -> None:
    """A line now and then."""
    if now.step % 200 == 0:
        print(f"  step {now.step}/{now.num_steps}, loss {now.loss:.3f}", flush=True)


def word_figures(codes: Codes, labels: Sequence[Sequence[str]], half: Flags) -> list[Result]:
    """Named on the first half, counted on the second."""
    rows, others = np.flatnonzero(half), np.flatnonzero(~half)
    tags = name_features(codes[rows], Vocabulary([labels[row] for row in rows]))
    given = picture_tags(codes[others], tags)
    words = {tag.word for tag in tags if tag.word}
    right = sum(word in labels[row] for row, own in zip(others.tolist(), given, strict=True) for word in own)
    num_given = sum(map(len, given))
    said = Counter(word for row in others.tolist() for word in set(labels[row]) & words)
    return [
        result("sae_word_tags", len(words), "words"),
        result("sae_word_precision", right / max(1, num_given), "share"),
        result("sae_word_recall", right / max(1, said.total()), "share"),
        result("sae_word_tagged", float(np.mean([bool(own) for own in given])), "share"),
    ]


def best_feature(codes: Codes, flags: Flags, half: Flags) -> tuple[float, float]:
    """Precision and recall on the second half, of the feature and threshold best on the first."""
    best = (-1.0, 0, 0.0)
    for feature in range(codes.shape[1]):
        ordered = np.flatnonzero(half)[np.argsort(-codes[half, feature], kind="stable")]
        ordered = ordered[: int((codes[half, feature] > 0).sum())]
        if len(ordered):
            count, precision, recall = best_cut(flags[ordered], int(flags[half].sum()))
            score = 2 * precision * recall / max(precision + recall, 1e-12)
            best = max(best, (score, feature, float(codes[ordered[count - 1], feature])))
    fired = codes[~half, best[1]] >= best[2]
    hits = (fired & flags[~half]).sum()
    return float(hits / max(1, fired.sum())), float(hits / flags[~half].sum())


def pair(kind: str, precision: float, recall: float) -> list[Result]:
    """Two figures."""
    return [result(f"sae_{kind}_precision", precision, "share"), result(f"sae_{kind}_recall", recall, "share")]


def some_drawings(rows: npt.NDArray[np.int64]) -> list[Pixels]:
    """Pixels of drawings by their place in the pool."""
    listed = [row for row in DrawingsSource(cache_dir()).list() if row.style != "fluent"]
    return [decode(open_image(listed[row].uri, cache_dir())) for row in rows.tolist()]


def framed(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A frame of 5% of the side, in a dark colour."""
    band, picture = max(2, round(0.05 * min(pixels.shape[:2]))), pixels.copy()
    colour = rng.integers(0, 110, 3)
    for edge in (picture[:band], picture[-band:], picture[:, :band], picture[:, -band:]):
        edge[:] = colour
    return picture


def watermarked(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Half-transparent grey letters across the picture."""
    base = Image.fromarray(pixels).convert("RGBA")
    letters = Image.new("RGBA", base.size, (0, 0, 0, 0))
    pen, side = ImageDraw.Draw(letters), base.size[1]
    pen.text(
        (side * 0.05, side * rng.uniform(0.3, 0.6)), "SAMPLE", (90, 90, 90, 150), ImageFont.load_default(side * 0.24)
    )
    return np.asarray(Image.alpha_composite(base, letters).convert("RGB"))


PLANT = {"frame": framed, "watermark": watermarked}
