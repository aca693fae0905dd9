"""Drawings of given prompts and what the judge makes of them: enough for a table of small runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pleinair.model.judge import PICTURE_SIZE, Judge, JudgeScores, judge_pictures
from pleinair.packs.pack import Pack
from pleinair.sampling import Sampler, SamplingConfig

Prompted = tuple[str, str, str]
"""Prompt, and the names of the style and the concept it asks for."""


@dataclass(frozen=True)
class Judged:
    """Pictures and the shares of them whose style and concept the judge names."""

    pixels_NHWC: npt.NDArray[np.uint8]
    scores: JudgeScores
    style_accuracy: float
    concept_accuracy: float


def draw_and_judge(sampler: Sampler, judge: Judge, prompts: Sequence[Prompted], config: SamplingConfig) -> Judged:
    """One picture of each prompt, its noise by its place, as `judged` sees them."""
    return judged(judge, prompts, sampler.sample([prompt for prompt, _, _ in prompts], range(len(prompts)), config))


def judged(judge: Judge, prompts: Sequence[Prompted], pixels: npt.NDArray[np.uint8]) -> Judged:
    """One picture (N, H, W, 3) of each prompt; prompts the judge has no names for are left out of its shares."""
    scores = judge_pictures(judge, at_judges_size(pixels))
    styles, concepts = judge.config.style_names, judge.config.concept_names
    named_styles = [styles[place] for place in scores.style_logits.argmax(1)]
    named_concepts = [concepts[place] for place in scores.concept_logits.argmax(1)]
    return Judged(
        pixels,
        scores,
        _share([named == style for named, (_, style, _) in zip(named_styles, prompts, strict=True) if style in styles]),
        _share(
            [
                named == concept
                for named, (_, _, concept) in zip(named_concepts, prompts, strict=True)
                if concept in concepts
            ]
        ),
    )


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else float("nan")


def at_judges_size(pixels_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pictures at the side that the judge knows."""
    if pixels_NHWC.shape[1] == PICTURE_SIZE:
        return pixels_NHWC
    size = (PICTURE_SIZE, PICTURE_SIZE)
    resized = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.LANCZOS)) for one in pixels_NHWC]
    return np.stack(resized)


def named_prompts(judge: Judge, prompts: Sequence[Prompted]) -> list[Prompted]:
    """Those whose style and thing the judge has names for: of others it can say nothing."""
    styles, concepts = set(judge.config.style_names), set(judge.config.concept_names)
    return [one for one in prompts if one[1] in styles and one[2] in concepts]


def naming_score(
    judge: Judge, prompts: Sequence[Prompted]
) -> Callable[[Sequence[str], npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """How surely the judge names what is asked for: its log-probability of style and concept, the mean of both.

    The function takes some of `prompts` by their text, and pictures (N, H, W, 3). It is a number to watch and to check orders
    by, never one to train on. Raises KeyError for another prompt.
    """
    styles, concepts = judge.config.style_names, judge.config.concept_names
    rows = {prompt: (styles.index(style), concepts.index(concept)) for prompt, style, concept in prompts}

    def score(texts: Sequence[str], pixels_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        scores = judge_pictures(judge, at_judges_size(pixels_NHWC))
        asked_N2 = np.array([rows[text] for text in texts])
        both = zip((scores.style_logits, scores.concept_logits), asked_N2.T, strict=True)
        own = [np.take_along_axis(_log_softmax(logits), of[:, None], axis=1)[:, 0] for logits, of in both]
        mean: npt.NDArray[np.float32] = np.mean(own, axis=0).astype(np.float32)
        return mean

    return score


def _log_softmax(logits_NK: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted_NK = logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted_NK - np.log(np.exp(shifted_NK).sum(axis=1, keepdims=True))
    return result


def prompts_of(pack: Pack) -> list[Prompted]:
    """(short caption, style, concept) of every row of a pack, in its order."""
    import pyarrow.parquet as pq

    rows: list[Prompted] = []
    for shard in pack.manifest.shards:
        read = pq.read_table(pack.directory / shard.name, columns=["captions", "style", "concept"])
        rows += [(row["captions"][-1], row["style"], row["concept"]) for row in read.to_pylist()]
    return rows
