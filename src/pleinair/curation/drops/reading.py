"""Drops as the warehouse has them, for pages, tables and datasheets alike: which stages drop, how often for which reason, a
bounded sample of each, whole rows.

A stage is found by its column `<stage>_drop`, whoever declared it. One pass over the names and verdicts of dropped rows
counts them and chooses the sample; memory is bounded by the sample.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pleinair.curation.drops.verdicts import Verdict, read_verdict
from pleinair.curation.stages import STAGE_COLUMNS
from pleinair.krablet import Database, Table

FEW = 8
"""Drops of each reason that a table or a datasheet shows."""
_SUFFIX = "_drop"
_ROWS = 500
_STATE = ("tried_at", "attempts", "error")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Dropped:
    """A dropped picture and its verdict."""

    image_name: str
    verdict: Verdict
    image_path: str | None = None
    """Path in the object store; None when the picture never got there."""
    duplicate_of: str | None = None
    """Name of the picture kept instead."""

    @property
    def order(self) -> tuple[bool, float, str]:
        """Nearest to the limit first; verdicts without a distance last, by name."""
        return self.verdict.distance is None, self.verdict.distance or 0.0, self.image_name


@dataclass(frozen=True)
class ReasonDrops:
    """All drops of one stage for one kind of reason."""

    stage: str
    kind: str
    count: int
    shown: tuple[Dropped, ...]
    """Nearest to the limit first: all of them, or a sample."""


@dataclass(frozen=True)
class StageDrops:
    """One stage: pictures it looked at, drops by reason, the most frequent first."""

    stage: str
    num_in: int
    reasons: tuple[ReasonDrops, ...]

    @property
    def num_dropped(self) -> int:
        """Pictures dropped."""
        return sum(reason.count for reason in self.reasons)


def drop_stages(images: Table) -> list[str]:
    """Stages that may drop: those of the curation in their order, then others in the order of declaration."""
    found = [name.removesuffix(_SUFFIX) for name in images.columns if name.endswith(_SUFFIX)]
    order = list(STAGE_COLUMNS)
    return sorted(found, key=lambda stage: order.index(stage) if stage in order else len(order))


def read_drops(images: Table, most: int = FEW) -> list[StageDrops]:
    """Every stage that has looked at a picture, with at most `most` drops of each reason: half of them the nearest to the
    limit, where errors are, half drawn from all, in the same way each time."""
    found = []
    for stage in drop_stages(images):
        if num_in := images.count(f"{stage}_drop IS NOT NULL"):
            found.append(StageDrops(stage, num_in, _reasons(images, stage, most)))
    return found


def _reasons(images: Table, stage: str, most: int) -> tuple[ReasonDrops, ...]:
    samples: dict[str, _Sample] = {}
    column = f"{stage}_drop"
    columns = ["image_name", column, "image_path", "duplicate_of"]
    for batch in images.read(where=f"{column} <> ''", columns=columns):
        for name, reason, *places in zip(*(batch.column(at).to_pylist() for at in columns), strict=True):
            verdict = read_verdict(reason)
            samples.setdefault(verdict.kind, _Sample(most)).add(Dropped(name, verdict, *places))
    reasons = (ReasonDrops(stage, kind, sample.count, sample.chosen()) for kind, sample in samples.items())
    return tuple(sorted(reasons, key=lambda reason: (-reason.count, reason.kind)))


@dataclass
class _Sample:
    """Drops as they come, of which the nearest and some drawn by the hash of their names are kept."""

    most: int
    count: int = 0
    near: list[tuple[Any, Dropped]] = field(default_factory=list)
    drawn: list[tuple[Any, Dropped]] = field(default_factory=list)

    def add(self, drop: Dropped) -> None:
        """Count a drop, and keep it if it is among the first by either order."""
        self.count += 1
        self.near.append((drop.order, drop))
        self.drawn.append((hashlib.blake2b(drop.image_name.encode(), digest_size=8).digest(), drop))
        if len(self.near) >= 3 * self.most + 1000:
            self._cut()

    def _cut(self) -> None:
        # The nearest half are not drawn again, so as many more must be kept of those drawn.
        self.near = heapq.nsmallest(self.most, self.near, key=lambda pair: pair[0])
        self.drawn = heapq.nsmallest(2 * self.most, self.drawn, key=lambda pair: pair[0])

    def chosen(self) -> tuple[Dropped, ...]:
        """At most `most` drops, nearest first."""
        self._cut()
        nearest = [drop for _, drop in self.near[: (self.most + 1) // 2]]
        if self.count <= self.most:
            nearest = [drop for _, drop in self.near]
        taken = {drop.image_name for drop in nearest}
        others = [drop for _, drop in self.drawn if drop.image_name not in taken]
        return tuple(sorted([*nearest, *others[: self.most - len(nearest)]], key=lambda drop: drop.order))


def read_rows(db: Database, images: Table, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Whole rows by name, with the claim state of every queue stage: `<stage>_tried_at`, `_attempts`, `_error`."""
    stages = [stage.name for stage in db.declared_stages() if stage.table.name == images.name]
    columns = [*images.columns, *(f"{stage}_{state}" for stage in stages for state in _STATE)]
    wanted = sorted(set(names))
    for start in range(0, len(wanted), _ROWS):
        params = {"names": wanted[start : start + _ROWS]}
        for batch in images.read(where="image_name = ANY(%(names)s)", params=params, columns=columns):
            yield from batch.to_pylist()


def find_names(images: Table, text: str, most: int = 20) -> list[str]:
    """Names of the pictures a person may mean: the one called so, else those whose name, address, MD5 or path has it."""
    if images.count("image_name = %(text)s", params={"text": text}):
        return [text]
    where = "strpos(image_name, %(text)s) > 0 OR strpos(uri, %(text)s) > 0 OR md5 = %(text)s OR image_path = %(text)s"
    names: list[str] = []
    for batch in images.read(where=where, params={"text": text}, columns=["image_name"], order_by="image_name"):
        names += batch.column("image_name").to_pylist()
        if len(names) >= most:
            break
    return names[:most]


def verdicts_of(row: Row, stages: Sequence[str]) -> dict[str, Verdict]:
    """By stage, the verdicts against a picture."""
    return {stage: read_verdict(row[f"{stage}_drop"]) for stage in stages if row.get(f"{stage}_drop")}


def why(row: Row, stages: Sequence[str]) -> str:
    """In a sentence, why a picture is not in the training set; or that nothing speaks against it."""
    against = verdicts_of(row, stages)
    if against:
        return "; ".join(f"dropped by {stage}: {verdict.reason}" for stage, verdict in against.items())
    waiting = [stage for stage in ("captions", "duplicate") if row.get(f"{stage}_drop") is None]
    failed = [stage for stage in stages if row.get(f"{stage}_drop") is None and row.get(f"{stage}_error")]
    if failed:
        return f"{failed[0]} keeps failing on it: {row[f'{failed[0]}_error']}"
    if waiting:
        return f"not yet judged: {next(stage for stage in stages if row.get(f'{stage}_drop') is None)} is still to look at it"
    if row.get("held_out"):
        return "kept, but held out from training"
    return "kept: nothing speaks against it"
