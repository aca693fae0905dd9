"""Published benchmarks, run with what the user brings: thin readers, layouts and formulas; no prompts and no judge.

    BENCHMARKS["geneval2"]: read -> draw_files -> ask -> measure -> Score

Each module's docstring says what it was read from, at which commit, and what could not be verified.
"""

from collections.abc import Mapping
from typing import Any

from pleinair.evaluation.published.benchmark import NOT_RUN, Answer, Benchmark, Item, Judged, Measure, Plan, Question
from pleinair.evaluation.published.cvtg import CVTG
from pleinair.evaluation.published.dimcim import DIMCIM
from pleinair.evaluation.published.dpg import DPG
from pleinair.evaluation.published.geneval2 import GENEVAL2
from pleinair.evaluation.published.hpsv3 import HPSV3
from pleinair.evaluation.published.longtext import LONGTEXT
from pleinair.evaluation.published.oneig import ONEIG

BENCHMARKS: Mapping[str, Benchmark[Any]] = {
    "geneval2": GENEVAL2,
    "oneig": ONEIG,
    "dpg": DPG,
    "cvtg": CVTG,
    "longtext": LONGTEXT,
    "dimcim": DIMCIM,
    "hpsv3": HPSV3,
}

__all__ = ["BENCHMARKS", "NOT_RUN", "Answer", "Benchmark", "Item", "Judged", "Measure", "Plan", "Question"]
