"""The judge as an image-text scorer: it knows the concepts and styles of the drawing sets, and no other words.

It lets the accuracy check of captioning look at drawings on a machine without an image-text model:
`pleinair caption --set scorer=pleinair.evaluation.judge_scorer:judge_scorer`. It was trained on these very drawings, the
held-out pairs left out, so only on those are its verdicts a measurement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pleinair.model.judge import PICTURE_SIZE, Judge, Pictures, Scores, judge_pictures, load_judge
from pleinair.records.names import slug

_ARTICLE = re.compile(r"^(?:a|an|the) ")
_STYLE = re.compile(r"^(.*) style$")


class JudgeScorer:
    """Scores `a red apple` and `noto style`; NaN for what the judge has no class for."""

    name = "judge-drawings@1"

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._concepts = {name: number for number, name in enumerate(judge.config.concept_names)}
        self._styles = {slug(name): number for number, name in enumerate(judge.config.style_names)}

    def score(self, pictures: Sequence[Pictures], texts: Sequence[str]) -> Scores:
        """(pictures, texts) logits, float32."""
        small_NHWC = np.stack([_at_64(pixels) for pixels in pictures])
        given = judge_pictures(self.judge, small_NHWC)
        scores = np.full((len(pictures), len(texts)), np.nan, dtype=np.float32)
        for column, text in enumerate(texts):
            logits, number = self._class_of(text, given.style_logits, given.concept_logits)
            if number is not None:
                scores[:, column] = logits[:, number]
        return scores

    def _class_of(self, text: str, styles: Scores, concepts: Scores) -> tuple[Scores, int | None]:
        if style := _STYLE.match(text):
            return styles, self._styles.get(slug(style[1]))
        return concepts, self._concepts.get(slug(_ARTICLE.sub("", text)), self._concepts.get(slug(text)))


def _at_64(pixels: Pictures) -> npt.NDArray[np.uint8]:
    """The picture in the middle of a white square, at the judge's size."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return np.asarray(cv2.resize(square, (PICTURE_SIZE, PICTURE_SIZE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def judge_scorer() -> JudgeScorer:
    """The scorer around the judge that comes with the package."""
    return JudgeScorer(load_judge(Path(str(files("pleinair") / "assets" / "judge.safetensors"))))
