"""A verdict read back: the kind of reason, the value, the limit, and how far the one is from the other.

Stages write verdicts as sentences for people, `kind: value and limit`; here the numbers are found again, in the verdicts of
any stage, also of one this code has never heard of. A sentence without numbers is a verdict without a distance.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_ALONE = rf"(?<![\w./-])({_NUMBER})(?![\w/]|\.\d)"
_LIMITED = re.compile(rf"(.*), (over|under) ({_NUMBER})(?![\d.]*\w)")
_SIZE = re.compile(rf"{_ALONE} x {_ALONE}")
_OF = re.compile(rf"{_ALONE} of {_ALONE}")


@dataclass(frozen=True)
class Verdict:
    """One verdict of a stage on a picture; `reason` is the sentence."""

    kind: str
    reason: str
    value: float | None = None
    limit: float | None = None
    whole: float | None = None
    """What the value is a part of, in a verdict such as `12 of 144 bits`."""
    distance: float | None = None
    """How sure the drop is: 0 at the limit, growing away from it, relative to the limit. None where no number says."""


def read_verdict(reason: str) -> Verdict:
    """The parts of a verdict `kind: value and limit`."""
    kind, _, said = reason.partition(":")
    limited = _LIMITED.match(said)
    if limited and not _OF.match(said.strip()):
        value, limit = _value(limited[1], limited[2]), float(limited[3])
        distance = None if value is None else abs(value - limit) / (abs(limit) or 1.0)
        return Verdict(kind, reason, value, limit, distance=distance)
    if found := _OF.search(said):
        part, whole = float(found[1]), float(found[2])
        # Bits apart speak against a duplicate, failing claims against a caption.
        share = part / (whole or 1.0)
        return Verdict(kind, reason, part, whole=whole, distance=1.0 - share if "bits" in said else share)
    return Verdict(kind, reason)


def _value(said: str, side: str) -> float | None:
    """The number that was held against the limit: for `20 x 30` the side that broke it, else the first that stands alone."""
    size = _SIZE.search(said)
    rest = said[size.end() :] if size else said
    if found := re.search(_ALONE, rest):
        return float(found[1])
    if size is None:
        return None
    sides = float(size[1]), float(size[2])
    return min(sides) if side == "under" else max(sides)
