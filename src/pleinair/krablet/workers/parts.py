"""Parts of claims: what one slot works on at a time.

A worker with room for several batches claims the rows of all of them at once and hands every slot its part; parts that
end together are settled together. All parts of a claim have its token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pleinair.krablet.claims import Claim
from pleinair.krablet.stages import Stage


@dataclass(frozen=True, eq=False)
class Part:
    """Rows in work: a claim, or some of its rows. Equal only to itself."""

    stage: Stage
    claim: Claim


def split(stage: Stage, claim: Claim, size: int) -> list[Part]:
    """A claim as parts of at most `size` rows."""
    if len(claim) <= size:
        return [Part(stage, claim)]
    places = range(len(claim))
    return [Part(stage, claim.at(places[start : start + size])) for start in range(0, len(claim), size)]


def by_claim(parts: Iterable[Part]) -> list[list[Part]]:
    """The parts of each claim together: those one statement can speak of."""
    groups: dict[tuple[str, int, int], list[Part]] = {}
    for part in parts:
        groups.setdefault((part.stage.label, part.claim.shard, part.claim.token), []).append(part)
    return list(groups.values())


def joined(parts: Sequence[Part]) -> Part:
    """Parts of one claim as one, in their order."""
    if len(parts) == 1:
        return parts[0]
    claims = [part.claim for part in parts]
    whole = replace(
        claims[0],
        keys=[key for claim in claims for key in claim.keys],
        rows=[row for claim in claims for row in claim.rows],
        attempts=[attempts for claim in claims for attempts in claim.attempts],
    )
    return Part(parts[0].stage, whole)
