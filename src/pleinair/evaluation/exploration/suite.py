"""The suite `exploration`: one subject's pictures -> every measure, by both judges.

    Subject --draw(plan)--> pictures --look--> Sheet --measure_all--> Result --> metrics.json, a page, a ledger

Measures are functions of a sheet, usable alone. This is the list of them, what each says, and which way is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pleinair.evaluation.exploration.composition import compositions
from pleinair.evaluation.exploration.diversity import gated_diversity
from pleinair.evaluation.exploration.following import following
from pleinair.evaluation.exploration.measured import Measured, measured
from pleinair.evaluation.exploration.memory import near_copies, unseen_pairs
from pleinair.evaluation.exploration.sheet import JUDGES, Sheet
from pleinair.evaluation.exploration.styles import can_styles, colours, default_kinds, default_styles
from pleinair.evaluation.exploration.tail import tail
from pleinair.evaluation.exploration.transfer import transfer
from pleinair.evaluation.exploration.writing import text_error
from pleinair.evaluation.features import Features
from pleinair.records.errors import ConfigError

Better = Literal["more", "less", "half", "as real"]
ToldBy = Literal["style", "thing"]
STYLE: Sequence[ToldBy] = ("style",)
THING: Sequence[ToldBy] = ("thing",)
BOTH: Sequence[ToldBy] = ("style", "thing")
NO_JUDGE = "none"
VERSION = 2
"""Of measures and documents: values of another version are not compared."""


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a measure says."""

    part: str
    """Its experiment in the list E1 to E8."""
    says: str
    """In the reader's words."""
    better: Better
    """`half`: one half means nothing is copied; `as real`: what real pictures give."""
    told_by: Sequence[ToldBy] = ()
    """What a judge must be able to name for it."""


MEANINGS: Mapping[str, Meaning] = {
    "default_styles": Meaning(
        part="E1", says="styles an open prompt is worth, all prompts together", better="more", told_by=STYLE
    ),
    "default_style_distance": Meaning(
        part="E1", says="distance of those styles from the training pictures'", better="less", told_by=STYLE
    ),
    "default_styles_per_prompt": Meaning(
        part="E1", says="styles one open prompt is worth", better="more", told_by=STYLE
    ),
    "can_style": Meaning(part="E1", says="the style asked for", better="more", told_by=STYLE),
    "can_concept": Meaning(part="E1", says="the thing asked for, in five guesses", better="more", told_by=THING),
    "can_both": Meaning(part="E1", says="both", better="more", told_by=BOTH),
    "can_colour": Meaning(part="E1", says="the colour asked for, by pixels", better="more"),
    "default_colours_per_prompt": Meaning(part="E1", says="colours one open prompt is worth", better="more"),
    "default_kinds_per_prompt": Meaning(
        part="E1",
        says="things that a prompt which leaves the choice is worth",
        better="more",
        told_by=THING,
    ),
    "diversity": Meaning(
        part="E2", says="different pictures of the thing, of one open prompt", better="more", told_by=THING
    ),
    "diversity_ungated": Meaning(part="E2", says="different pictures, of whatever", better="as real"),
    "transfer": Meaning(part="E3", says="real pictures named by what learned from these", better="more"),
    "can_unseen": Meaning(part="E4", says="style and thing of pairs kept from training", better="more", told_by=BOTH),
    "unseen_gap": Meaning(part="E4", says="trained pairs minus those", better="less", told_by=BOTH),
    "near_copies": Meaning(part="E5", says="copies of a training picture", better="less"),
    "nearer_to_trained": Meaning(part="E5", says="nearer to a trained than to a held-out picture", better="half"),
    "tail_gap": Meaning(part="E6", says="common things recognised minus rare ones", better="less", told_by=THING),
    "text_error": Meaning(part="E8", says="letters read wrong", better="less"),
    "can_user": Meaning(part="prompts", says="style and thing of bare prompts", better="more", told_by=BOTH),
    "can_long": Meaning(part="prompts", says="style and thing of long prompts", better="more", told_by=BOTH),
    "can_language": Meaning(
        part="prompts", says="style and thing in four other languages", better="more", told_by=BOTH
    ),
    "can_count": Meaning(part="prompts", says="that many of them", better="more", told_by=THING),
    "can_pair": Meaning(part="prompts", says="both things", better="more", told_by=THING),
    "can_position": Meaning(part="prompts", says="both things, placed so", better="more", told_by=THING),
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
    copy_threshold: float
    """Likeness above which a picture is a copy."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """All measures of one subject."""

    subject: str
    identity: str
    """Digest of what drew the pictures: two checkpoints of one name differ."""
    size: str
    seed: int
    prompts_sha256: str
    num_pictures: int
    seconds: float
    measures: Mapping[str, Mapping[str, Measured]]
    """By name, then by judge; `none` where pixels or real pictures judge."""
    rejected: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Measures, with their judges, that did not see a fault planted in real pictures of these prompts, or that moved
    without one: their values are shown and claim nothing."""

    def is_rejected(self, name: str, judge: str) -> bool:
        """Whether the self test failed for a measure by a judge."""
        return judge in self.rejected.get(name, ())

    def measure(self, name: str, judge: str = "first") -> Measured:
        """One measure. Raises ConfigError naming those there are."""
        found = self.measures.get(name, {})
        if judge not in found and NO_JUDGE not in found:
            raise ConfigError(f"{self.subject} has no measure {name!r}: there are {', '.join(self.measures)}")
        return found.get(judge) or found[NO_JUDGE]


def measure_all(sheet: Sheet, known: Known) -> dict[str, dict[str, Measured]]:
    """Every measure that the sheet's kinds of request allow. Raises ValueError for prompts that allow none."""
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
        ({"any-kind"}, default_kinds),
        (set(), following),
        (set(), compositions),
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
        keep(near_copies(sheet, known.copies_ND, known.copy_threshold), NO_JUDGE)
    if any(one.read is not None for one in sheet.seen):
        keep(text_error(sheet), NO_JUDGE)
    if not found:
        raise ValueError(
            f"prompts of {', '.join(sorted(kinds)) or 'no kind'} alone allow no measure: colour needs any-colour and "
            "unseen needs specified beside it, text needs the extra 'ocr'"
        )
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
    plain = {name: getattr(result, name) for name in PLAIN}
    rejected = {name: list(judges) for name, judges in result.rejected.items()}
    return {"suite": "exploration", "version": VERSION, **plain, "rejected": rejected, "measures": measures}


PLAIN = ("subject", "identity", "size", "seed", "prompts_sha256", "num_pictures", "seconds")


def from_document(document: Mapping[str, Any]) -> Result:
    """The inverse. Raises ConfigError for another document; values come from the units, so that they cannot differ."""
    try:
        if document["suite"] != "exploration" or document["version"] != VERSION:
            raise ValueError(f"suite {document['suite']!r} version {document['version']!r}")
        measures = {
            name: {judge: measured(name, one["units"], one["n"]) for judge, one in by_judge.items()}
            for name, by_judge in document["measures"].items()
        }
        rejected = {name: tuple(judges) for name, judges in document["rejected"].items()}
        return Result(measures=measures, rejected=rejected, **{name: document[name] for name in PLAIN})
    except (KeyError, TypeError, ValueError) as refused:
        raise ConfigError(f"no result of the suite exploration ({refused}): give a metrics.json it wrote") from refused
