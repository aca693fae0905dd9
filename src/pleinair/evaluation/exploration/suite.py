"""The suite `exploration`: one subject's pictures -> every measure, by both judges.

    Subject --draw(plan)--> pictures --look--> Sheet --measure_all--> Result --> metrics.json, a page, a ledger

Measures are functions of a sheet, usable alone. This is the list of them, what each says, and which way is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pleinair.captioning.ocr import NoReader, TextReader
from pleinair.evaluation.exploration.composition import compositions
from pleinair.evaluation.exploration.diversity import gated_diversity
from pleinair.evaluation.exploration.following import following
from pleinair.evaluation.exploration.measured import Measured, measured
from pleinair.evaluation.exploration.memory import near_copies, unseen_pairs
from pleinair.evaluation.exploration.sheet import JUDGES, Sheet, Witnesses
from pleinair.evaluation.exploration.styles import can_styles, colours, default_styles
from pleinair.evaluation.exploration.tail import tail
from pleinair.evaluation.exploration.transfer import transfer
from pleinair.evaluation.exploration.writing import text_error
from pleinair.evaluation.features import Features
from pleinair.records.errors import ConfigError

Better = Literal["more", "less", "half", "as real"]
NO_JUDGE = "none"


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a measure says."""

    part: str
    """Its experiment in the list E1 to E8."""
    says: str
    """In the reader's words."""
    better: Better
    """`half`: one half means nothing is copied; `as real`: what real pictures give."""


MEANINGS: Mapping[str, Meaning] = {
    "default_styles": Meaning(part="E1", says="styles an open prompt is worth, all prompts together", better="more"),
    "default_style_distance": Meaning(
        part="E1", says="distance of those styles from the training pictures'", better="less"
    ),
    "default_styles_per_prompt": Meaning(part="E1", says="styles one open prompt is worth", better="more"),
    "can_style": Meaning(part="E1", says="the style asked for", better="more"),
    "can_concept": Meaning(part="E1", says="the thing asked for, in five guesses", better="more"),
    "can_both": Meaning(part="E1", says="both", better="more"),
    "can_colour": Meaning(part="E1", says="the colour asked for, by pixels", better="more"),
    "default_colours_per_prompt": Meaning(part="E1", says="colours one open prompt is worth", better="more"),
    "diversity": Meaning(part="E2", says="different pictures of the thing, of one open prompt", better="more"),
    "diversity_ungated": Meaning(part="E2", says="different pictures, of whatever", better="as real"),
    "transfer": Meaning(part="E3", says="real pictures named by what learned from these", better="more"),
    "can_unseen": Meaning(part="E4", says="style and thing of pairs kept from training", better="more"),
    "unseen_gap": Meaning(part="E4", says="trained pairs minus those", better="less"),
    "near_copies": Meaning(part="E5", says="copies of a training picture", better="less"),
    "nearer_to_trained": Meaning(part="E5", says="nearer to a trained than to a held-out picture", better="half"),
    "tail_gap": Meaning(part="E6", says="common things recognised minus rare ones", better="less"),
    "text_error": Meaning(part="E8", says="letters read wrong", better="less"),
    "can_user": Meaning(part="prompts", says="style and thing of bare prompts", better="more"),
    "can_long": Meaning(part="prompts", says="style and thing of long prompts", better="more"),
    "can_language": Meaning(part="prompts", says="style and thing in four other languages", better="more"),
    "can_count": Meaning(part="prompts", says="that many of them", better="more"),
    "can_pair": Meaning(part="prompts", says="both things", better="more"),
    "can_position": Meaning(part="prompts", says="both things, placed so", better="more"),
}


@dataclass(frozen=True)
class Known:
    """What the measures need of the real pictures, looked at once."""

    copies_ND: Features
    """Copy embedding of the world's pictures, row by row."""
    test_rows: npt.NDArray[np.int64]
    """Held-out pictures of things the subjects were trained on."""
    test_features: Features
    """Their features, standardised."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """All measures of one subject."""

    subject: str
    size: str
    seed: int
    prompts_sha256: str
    num_pictures: int
    seconds: float
    measures: Mapping[str, Mapping[str, Measured]]
    """By name, then by judge; `none` where pixels or real pictures judge."""

    def measure(self, name: str, judge: str = "first") -> Measured:
        """One measure. Raises ConfigError naming those there are."""
        found = self.measures.get(name, {})
        if judge not in found and NO_JUDGE not in found:
            raise ConfigError(f"{self.subject} has no measure {name!r}: there are {', '.join(self.measures)}")
        return found.get(judge) or found[NO_JUDGE]


def measure_all(
    sheet: Sheet, witnesses: Witnesses, known: Known, reader: TextReader | None = None
) -> dict[str, dict[str, Measured]]:
    """Every measure that the sheet's kinds of request allow."""
    kinds = {one.request.kind for one in sheet.asked}
    found: dict[str, dict[str, Measured]] = {}

    def keep(measures: Sequence[Measured], judge: str) -> None:
        for one in measures:
            found.setdefault(one.name, {})[judge] = one

    judged: list[tuple[set[str], Callable[[Sheet, str], list[Measured]]]] = [
        ({"default"}, default_styles),
        ({"specified"}, can_styles),
        ({"default"}, gated_diversity),
        ({"specified", "unseen"}, unseen_pairs),
        ({"specified", "default"}, tail),
        (set(), following),
    ]
    for needs, measure in judged:
        if needs <= kinds:
            for judge in JUDGES:
                keep(measure(sheet, judge), judge)
    if {"colour", "any-colour"} <= kinds:
        keep(colours(sheet), NO_JUDGE)
    if "specified" in kinds:
        keep(transfer(sheet, known.test_rows, known.test_features), NO_JUDGE)
    if "default" in kinds:
        keep(near_copies(sheet, known.copies_ND, witnesses.calibration.threshold), NO_JUDGE)
    for judge, measures in compositions(sheet, witnesses).items():
        keep(measures, judge)
    if "text" in kinds and reader is not None and not isinstance(reader, NoReader):
        keep(text_error(sheet, reader), NO_JUDGE)
    return {name: found[name] for name in MEANINGS if name in found}


def to_document(result: Result) -> dict[str, Any]:
    """As JSON."""
    measures = {
        name: {
            judge: {
                "value": one.value,
                "interval": list(one.interval),
                "n": one.num_pictures,
                "detectable": one.detectable,
                "units": {unit: list(values) for unit, values in one.units.items()},
            }
            for judge, one in by_judge.items()
        }
        for name, by_judge in result.measures.items()
    }
    plain = {
        name: getattr(result, name) for name in ("subject", "size", "seed", "prompts_sha256", "num_pictures", "seconds")
    }
    return {"suite": "exploration", "version": 1, **plain, "measures": measures}


def from_document(document: Mapping[str, Any]) -> Result:
    """The inverse. Raises ConfigError for another document; values come from the units, so that they cannot differ."""
    try:
        if document["suite"] != "exploration" or document["version"] != 1:
            raise ValueError(f"suite {document['suite']!r} version {document['version']!r}")
        measures = {
            name: {judge: measured(name, one["units"], one["n"]) for judge, one in by_judge.items()}
            for name, by_judge in document["measures"].items()
        }
        plain = ("subject", "size", "seed", "prompts_sha256", "num_pictures", "seconds")
        return Result(measures=measures, **{name: document[name] for name in plain})
    except (KeyError, TypeError, ValueError) as refused:
        raise ConfigError(f"no result of the suite exploration ({refused}): give a metrics.json it wrote") from refused
