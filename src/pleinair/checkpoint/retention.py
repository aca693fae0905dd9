"""Which checkpoints stay: the newest few, and one every so many steps."""

from __future__ import annotations

from collections.abc import Sequence


def steps_to_keep(steps: Sequence[int], keep: int, keep_every: int | None = None) -> set[int]:
    """Of the steps of one run's checkpoints, those to keep.

    The newest `keep`, and, of each stretch of `keep_every` steps from the second on, the earliest: checkpoints are made by
    time, so few lie on a multiple. Giving the kept steps again, with later ones, never drops what was kept for good.
    """
    if keep < 1 or (keep_every is not None and keep_every < 1):
        raise ValueError(f"keep is {keep} and keep_every {keep_every}: both must be positive")
    ordered = sorted(set(steps))
    kept = set(ordered[-keep:])
    if keep_every is not None:
        earliest = {step // keep_every: step for step in reversed(ordered)}
        kept |= {step for stretch, step in earliest.items() if stretch > 0}
    return kept
