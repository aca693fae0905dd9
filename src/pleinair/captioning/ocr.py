"""Writing in a picture, read before anyone describes it.

Captioners misspell and overlook text; an OCR model reads it, and its lines go to the captioner as quoted data. The share
of the picture that text covers also says whether a low resolution can carry the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np

from pleinair.captioning.guards import clean
from pleinair.captioning.pictures import Pixels
from pleinair.records.errors import require


@dataclass(frozen=True)
class Writing:
    """What was read in one picture."""

    lines: tuple[str, ...] = ()
    """In reading order."""
    share: float = 0.0
    """Of the picture's area, under lines of text."""


class TextReader(Protocol):
    """Anything that reads writing."""

    @property
    def name(self) -> str:
        """Model and version, for the provenance column."""

    def read(self, pixels: Pixels) -> Writing:
        """The writing in a picture."""


class NoReader:
    """Reads nothing: for sets without writing, and machines without the model."""

    name = "off"

    def read(self, pixels: Pixels) -> Writing:
        return Writing()


_SURE = 0.85
_FEWEST_SIGNS = 2
_MOST_LINES, _LONGEST_LINE = 40, 200


class RapidOCR:
    """PP-OCR through onnxruntime, the models that come inside the package `rapidocr` (Apache-2.0)."""

    def __init__(self) -> None:
        """Load the models, about a second. Raises MissingExtraError."""
        require("onnxruntime", "ocr")
        package = require("rapidocr", "ocr")
        # One thread: a worker is a process, and several of them share the machine.
        single = {f"EngineConfig.onnxruntime.{name}_op_num_threads": 1 for name in ("intra", "inter")}
        self._engine: Any = package.RapidOCR(params={"Global.log_level": "error", **single})
        self.name = f"rapidocr-{version('rapidocr')}"

    def read(self, pixels: Pixels) -> Writing:
        # OpenCV's order of colours, which the models were trained with.
        found = self._engine(np.ascontiguousarray(pixels[:, :, ::-1]))
        if not found.txts:
            return Writing()
        area = pixels.shape[0] * pixels.shape[1]
        lines, covered = [], 0.0
        for text, sure, box in zip(found.txts, found.scores, found.boxes, strict=True):
            line = clean(text)[:_LONGEST_LINE]
            if sure >= _SURE and sum(sign.isalnum() for sign in line) >= _FEWEST_SIGNS:
                lines.append(line)
                covered += _area(np.asarray(box, dtype=np.float64))
        return Writing(tuple(lines[:_MOST_LINES]), float(min(1.0, covered / area)))


def _area(corners_42: Any) -> float:
    """Area of a quadrilateral (the shoelace formula)."""
    x, y = corners_42[:, 0], corners_42[:, 1]
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


def text_reader(name: str) -> TextReader:
    """The reader called `rapidocr` or `off`."""
    return RapidOCR() if name == "rapidocr" else NoReader()
