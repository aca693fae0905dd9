"""What experiments on the drawings share: pictures and prompts without a warehouse, and what is measured of a set.

drawing sets --list, decode, resize--> CuratedPicture         judge, reference pictures --Scorer--> numbers of drawings
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pleinair.captioning.templates import captions
from pleinair.cli.encoders import open_text_encoder
from pleinair.cli.places import cache_dir, shipped
from pleinair.curation.detectors.generated import reconstruct
from pleinair.curation.pictures import decode
from pleinair.curation.sources import find_source, open_image
from pleinair.curation.sources.media import WORDING
from pleinair.evaluation.coverage import neighbour_coverage
from pleinair.evaluation.frechet import SMALLEST_SHARE, extrapolated_frechet_distance
from pleinair.evaluation.metrics import frechet_distance
from pleinair.evaluation.picture_statistics import high_frequency_share, saturation
from pleinair.evaluation.prompted import Prompted, at_judges_size, draw_and_judge, judged
from pleinair.model.judge import judge_pictures, load_judge
from pleinair.model.text_encoder import TextEncoder
from pleinair.model.text_encoders.cache import CachedTextEncoder
from pleinair.packing.pictures import CuratedPicture, resize_square
from pleinair.sampling import Sampler, SamplingConfig
from pleinair.sampling.shipped import load_autoencoder

SIDE = 32
"""Of the pictures, in pixels: what a small model learns in minutes; judges see them enlarged."""
NUM_SHOWN = 8
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Student's t for 95% of a mean, by the number of values; 2.05 from thirty on, 2.31 between."""
Pixels = npt.NDArray[np.uint8]


def list_drawings(labels: Sequence[str], styles: Sequence[str]) -> list[CuratedPicture]:
    """The drawings of some things in some styles, on white, read from their packages; in the order of their sets."""
    wanted_labels, wanted_styles = set(labels), set(styles)
    made = []
    for row in find_source("drawings", cache_dir()).list():
        if row.label not in wanted_labels or row.style not in wanted_styles:
            continue
        texts = captions(row.as_dict(), WORDING)
        if texts is None:
            continue
        pixels = resize_square(Image.fromarray(decode(open_image(row.uri, cache_dir()))), SIDE)
        lengths = (texts.long, texts.medium, texts.short)
        facts = (row.image_name, row.style, row.concept, row.label, row.held_out)
        made.append(CuratedPicture(*facts, lengths, {SIDE: pixels}))
    return made


def prompted(pictures: Sequence[CuratedPicture]) -> list[Prompted]:
    """Short caption, style and concept of each."""
    return [(one.captions[-1], one.style or "", one.concept or "") for one in pictures]


def given_back(pixels_NHWC: Pixels) -> Pixels:
    """Pictures through the shipped autoencoder: the most that a model of its latents can draw."""
    codec = load_autoencoder(shipped("autoencoder"))
    pieces = np.array_split(pixels_NHWC, -(-len(pixels_NHWC) // 64))
    return np.concatenate([reconstruct(codec, piece) for piece in pieces])


def text_encoder() -> TextEncoder:
    """The text encoder, each prompt encoded once on this machine."""
    return CachedTextEncoder(open_text_encoder(), cache_dir() / "experiments-text")


class Scorer:
    """Numbers of drawings of some prompts, against the real pictures of the same prompts."""

    def __init__(self, pictures: Sequence[CuratedPicture], space: Sequence[CuratedPicture], num_features: int) -> None:
        """Features are the judge's, along the `num_features` directions in which those of `space` differ most; along fewer
        where the pictures are too few for a distance over so many.

        Distances are to the real pictures as the autoencoder gives them back: its share is nobody's fault.
        """
        self.judge = load_judge(shipped("judge"))
        self.prompts = prompted(pictures)
        embedded = judge_pictures(self.judge, at_judges_size(_stacked(space))).embedding
        self.mean = embedded.mean(0)
        kept = min(num_features, math.ceil(SMALLEST_SHARE * len(pictures)) - 1)
        self.directions = np.linalg.svd(embedded - self.mean, full_matrices=False)[2][:kept].T
        self.real = _stacked(pictures)
        self.given_back = given_back(self.real)
        self.real_features = self.features(judge_pictures(self.judge, at_judges_size(self.given_back)).embedding)

    def features(self, embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(N, num_features)."""
        reduced: npt.NDArray[np.float32] = (embedding - self.mean) @ self.directions
        return reduced

    def of_real(self) -> dict[str, Any]:
        """What the real pictures have of it, as the autoencoder gives them back: the ceiling. `raw_...` are as they were."""
        back, raw = (judged(self.judge, self.prompts, pixels) for pixels in (self.given_back, self.real))
        return {
            "style": back.style_accuracy,
            "concept": back.concept_accuracy,
            "raw_style": raw.style_accuracy,
            "raw_concept": raw.concept_accuracy,
            **_looks(self.given_back),
            "pixels": self.given_back[:NUM_SHOWN].tolist(),
        }

    def of_model(self, sampler: Sampler, config: SamplingConfig) -> dict[str, Any]:
        """Draw every prompt once, and everything that is measured of the drawings."""
        drawn = draw_and_judge(sampler, self.judge, self.prompts, config)
        features = self.features(drawn.scores.embedding)
        k = min(5, len(features) - 1)
        return {
            "style": drawn.style_accuracy,
            "concept": drawn.concept_accuracy,
            "frechet": frechet_distance(features, self.real_features),
            "frechet_extrapolated": extrapolated_frechet_distance(features, self.real_features),
            "coverage": neighbour_coverage(features, self.real_features, k),
            **_looks(drawn.pixels_NHWC),
            "pixels": drawn.pixels_NHWC[:NUM_SHOWN].tolist(),
        }


def _stacked(pictures: Sequence[CuratedPicture]) -> Pixels:
    return np.stack([one.pixels[SIDE] for one in pictures])


def _looks(pixels_NHWC: Pixels) -> dict[str, float]:
    return {
        "fine_detail": float(high_frequency_share(pixels_NHWC).mean()),
        "saturation": float(saturation(pixels_NHWC).mean()),
    }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95% interval over runs (Student's t); no width for a single value."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, math.nan
    return mean, float(T_95.get(count, 2.31 if count < 30 else 2.05) * np.std(values, ddof=1) / math.sqrt(count))


def shown(values: Sequence[float], form: str = ".3f") -> str:
    """`0.812 +- 0.010`, or the value alone; a sign that `form` asks for is the mean's."""
    mean, half = spread(values)
    return f"{mean:{form}}" + ("" if math.isnan(half) else f" \u00b1 {half:{form.lstrip('+')}}")
