"""E8: can it write? The share of letters an OCR model reads wrong, beside the same on words set in a real font."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from pleinair.captioning.ocr import TextReader
from pleinair.evaluation.exploration.measured import Measured, mean_by_unit, measured
from pleinair.evaluation.exploration.sheet import Sheet
from pleinair.records.letters import character_error

READING_SIDE = 384
"""OCR models read lines some 30 pixels high: small pictures are enlarged."""


def read_word(reader: TextReader, picture_HWC: npt.NDArray[np.uint8]) -> str:
    """What a small picture says."""
    large = Image.fromarray(picture_HWC).resize((READING_SIDE, READING_SIDE), Image.Resampling.BICUBIC)
    return "".join(reader.read(np.asarray(large)).lines)


def text_error(sheet: Sheet) -> list[Measured]:
    """`text_error` of the prompts that ask for a word: 0 all letters right, 1 none, or nothing written."""
    asked = sheet.of_kind("text")
    errors = [
        character_error(one.request.text, seen.read or "") for one, seen in zip(asked.asked, asked.seen, strict=True)
    ]
    return [measured("text_error", mean_by_unit(asked.units, np.array(errors)), len(asked))]
