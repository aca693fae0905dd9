"""E2: how many different pictures of what was asked does a prompt give? Pictures that miss it do not count.

    n pictures of one open prompt --gate: the thing is recognised--> kernel of features --entropy--> effective number
                                                                       x share that passed the gate

The effective number is the Vendi score (Friedman and Dieng 2023) of one prompt's pictures, averaged over prompts
(conditional: differences between prompts do not count). It is multiplied by the share that passed, so n copies give 1, n
different pictures of which half miss give half, and noise gives 0. Without the gate, noise is the most diverse of all.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pleinair.evaluation.exploration.measured import Measured, measured
from pleinair.evaluation.exploration.sheet import Sheet
from pleinair.evaluation.metrics import vendi_score


def gated_diversity(sheet: Sheet, judge: str) -> list[Measured]:
    """`diversity` with the gate, and `diversity_ungated`, shown for what the gate does."""
    open_prompts = sheet.of_kind("default")
    passes, features_NF = open_prompts.concept_hit(judge), open_prompts.features.astype(np.float64)
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(open_prompts.units):
        rows.setdefault(unit, []).append(row)
    gated = {unit: counted(features_NF[of], passes[of]) for unit, of in rows.items()}
    plain = {unit: counted(features_NF[of], np.ones(len(of), bool)) for unit, of in rows.items()}
    num = len(open_prompts)
    return [measured("diversity", gated, num), measured("diversity_ungated", plain, num)]


def counted(features_NF: npt.NDArray[np.float64], passes_N: npt.NDArray[np.bool_]) -> float:
    """The effective number of pictures that passed, times the share that did; 0 where none did."""
    if not passes_N.any():
        return 0.0
    return vendi_score(features_NF[passes_N]) * float(passes_N.mean())
