"""What each stage removed, and why: the drop report."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from pleinair.curation.stages import STAGE_COLUMNS
from pleinair.krablet import Table

_SUFFIX = "_drop"


@dataclass(frozen=True)
class Example:
    """One dropped picture."""

    image_name: str
    image_path: str | None
    """Path in the object store; None when the picture never got there."""
    reason: str
    duplicate_of: str | None = None
    """Name of the picture kept instead."""


@dataclass(frozen=True)
class Reason:
    """All pictures a stage dropped for one kind of reason."""

    kind: str
    count: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class StageDrops:
    """What one stage saw and dropped; reasons by falling count."""

    stage: str
    num_in: int
    num_dropped: int
    reasons: tuple[Reason, ...]


def drop_report(images: Table, *, num_examples: int = 8) -> list[StageDrops]:
    """One entry per stage that has looked at a picture, in their order. Reads only dropped rows; examples are the first."""
    found = [_stage_drops(images, stage, num_examples) for stage in drop_stages(images)]
    return [stage for stage in found if stage.num_in]


def drop_stages(images: Table) -> list[str]:
    """Stages that may drop: those of the curation in their order, then others in the order of declaration."""
    found = [name.removesuffix(_SUFFIX) for name in images.columns if name.endswith(_SUFFIX)]
    order = list(STAGE_COLUMNS)
    return sorted(found, key=lambda stage: order.index(stage) if stage in order else len(order))


def _stage_drops(images: Table, stage: str, num_examples: int) -> StageDrops:
    counts: Counter[str] = Counter()
    examples: defaultdict[str, list[Example]] = defaultdict(list)
    columns = ["image_name", "image_path", "duplicate_of", f"{stage}_drop"]
    for batch in images.read(where=f"{stage}_drop <> ''", columns=columns, order_by="image_name"):
        for row in batch.to_pylist():
            reason = row[f"{stage}_drop"]
            kind = reason.partition(":")[0]
            counts[kind] += 1
            if len(examples[kind]) < num_examples:
                examples[kind].append(Example(row["image_name"], row["image_path"], reason, row["duplicate_of"]))
    return StageDrops(
        stage=stage,
        num_in=images.count(f"{stage}_drop IS NOT NULL"),
        num_dropped=counts.total(),
        reasons=tuple(Reason(kind, count, tuple(examples[kind])) for kind, count in counts.most_common()),
    )
