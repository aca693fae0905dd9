"""Are the words there that a prompt quotes? Letters read by OCR beside letters asked for, by edit distance.

    prompt --quoted words--> wanted --set in a font, read--> what reading can reach at this size
    picture --read--> letters --edit distance--> 1 - errors per letter, as a share of that

A small picture cannot be read without fault even where it is right, so a value is held against a true render of the same
words. Words that are not read from their own render are not asked about. The default reader is the one that `text_error`
of the exploration suite reads with: where this reward is climbed, that number is no independent witness.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pleinair.records.errors import require
from pleinair.records.letters import character_error, letters_of
from pleinair.records.rewards import Pictures, RewardContext, RewardValues
from pleinair.rewards.parser import QUOTED
from pleinair.rewards.pieces import ink_of

ReadText = Callable[[Pictures], str]
"""(H, W, 3) uint8 to what is written in it."""
READING_SIDE = 384
"""OCR models read lines some 30 pixels high: small pictures are enlarged."""
LEAST_CEILING = 0.5
"""Of a true render's letters; where fewer are read, the words are not asked about."""
_LARGEST_FONT, _SMALLEST_FONT = 0.62, 7
"""As a share of the side; in pixels."""


class RapidReader:
    """PP-OCR through onnxruntime (package `rapidocr`): lines where it finds any, else the whole as one line.

    Unsure letters count too: a reward that waits for surely read words gives a beginner nothing to climb.
    """

    def __init__(self) -> None:
        """Raises MissingExtraError. The models load when something is first read, about a second."""
        require("onnxruntime", "ocr")
        package = require("rapidocr", "ocr")
        # One thread: a reader shares its machine with a trainer.
        single = {f"EngineConfig.onnxruntime.{name}_op_num_threads": 1 for name in ("intra", "inter")}
        self._engine: Any = package.RapidOCR(
            params={"Global.log_level": "error", "Global.text_score": 0.0, "Global.use_cls": False, **single}
        )
        self.name = f"rapidocr-{version('rapidocr')}"

    def __call__(self, picture_HWC: Pictures) -> str:
        """The letters, in reading order; empty where there are none."""
        large = Image.fromarray(picture_HWC).resize((READING_SIDE, READING_SIDE), Image.Resampling.BICUBIC)
        # OpenCV's order of colours, which the models were trained with.
        pixels = np.ascontiguousarray(np.asarray(large)[:, :, ::-1])
        found = self._engine(pixels, use_det=True, use_cls=False, use_rec=True)
        if not found.txts:
            rows, columns = np.nonzero(ink_of(pixels))
            if not len(rows):
                return ""
            line = np.ascontiguousarray(pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
            found = self._engine(line, use_det=False, use_cls=False, use_rec=True)
        return " ".join(found.txts or ())


class WritingReward:
    """Value `writing` in 0..1; it does not apply to prompts that quote nothing."""

    pointwise = True
    bounds = (0.0, 1.0)

    def __init__(self, read: ReadText | None = None, *, name: str = "writing") -> None:
        """`read` is PP-OCR where none is given, from the extra `ocr`."""
        self.read, self.name = read or RapidReader(), name
        self._reader = str(getattr(self.read, "name", getattr(self.read, "__qualname__", type(self.read).__qualname__)))
        self._ceilings: dict[tuple[str, int], float] = {}

    @property
    def identity(self) -> str:
        """The reader's."""
        return f"{self.name} by {self._reader}"

    @property
    def parts(self) -> frozenset[str]:
        """The reader."""
        return frozenset({self._reader})

    def ceiling(self, wanted: str, side: int) -> float:
        """The share of letters read from a true render of the words at this size."""
        if (wanted, side) not in self._ceilings:
            self._ceilings[wanted, side] = 1 - character_error(wanted, self.read(true_render(wanted, side)))
        return self._ceilings[wanted, side]

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        """Letters right, as a share of what can be read at this size."""
        values, applies = np.zeros(len(prompts), np.float32), np.zeros(len(prompts), np.bool_)
        for row, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
            wanted = quoted(prompt)
            if wanted and (ceiling := self.ceiling(wanted, min(picture.shape[:2]))) >= LEAST_CEILING:
                right = 1 - character_error(wanted, self.read(picture))
                values[row], applies[row] = min(right / ceiling, 1.0), True
        return RewardValues(values={self.name: values}, applies={self.name: applies})


def quoted(prompt: str) -> str:
    """All words a prompt quotes, in order; empty where it quotes none with a letter."""
    words = [found for found in QUOTED.findall(prompt) if letters_of(found)]
    return " ".join(words)


def true_render(text: str, side: int) -> Pictures:
    """The words in black on white, (side, side, 3), as large as fits on as many lines as are best."""
    words = re.split(r"\s+", text.strip())
    picture = Image.new("RGB", (side, side), "white")
    brush = ImageDraw.Draw(picture)
    for size in range(max(int(side * _LARGEST_FONT), _SMALLEST_FONT), _SMALLEST_FONT - 1, -1):
        font = ImageFont.load_default(size)
        lines = "\n".join(_wrapped(words, partial(brush.textlength, font=font), 0.94 * side))
        left, top, right, bottom = brush.multiline_textbbox((0, 0), lines, font=font, align="center")
        if max(right - left, bottom - top) <= 0.94 * side or size == _SMALLEST_FONT:
            place = ((side - right - left) / 2, (side - bottom - top) / 2)
            brush.multiline_text(place, lines, fill="black", font=font, align="center")
            break
    return np.asarray(picture)


def _wrapped(words: Sequence[str], length: Callable[[str], float], most: float) -> list[str]:
    """Words in lines, each as full as fits."""
    lines = [words[0]]
    for word in words[1:]:
        longer = f"{lines[-1]} {word}"
        if length(longer) <= most:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
