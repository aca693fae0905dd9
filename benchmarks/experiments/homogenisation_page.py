"""What the experiment on homogenisation says: rows of measurements -> sentences with their verdicts, and the page.

A row is a model with one seed; `axes` holds what every prompt gave. Differences are paired with the base drawn from the same
seed's noise. Their interval over seeds is Student's; the one over prompts resamples the prompts of the seeds' mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.experiments.drawn import shown
from benchmarks.experiments.exploring import Axes, value_of
from benchmarks.experiments.paired import Interval, less, verdict
from benchmarks.experiments.results import opening
from pleinair.evaluation.exploration.measured import compare, measured
from pleinair.evaluation.exploration.suite import MEANINGS, NO_JUDGE
from pleinair.pages import GridCell, GridRow, Html, Section, grid, page, table

Row = dict[str, Any]
BASE, REAL = "base", "real pictures"
CHAIN = ("SFT", "STPO", "RL", "TDM")
BASELINES = ("DPO", "DPO+SFT", "GRPO without diversity", "TDM alone")
KEPT = 0.95
"""Share of the base's default-mode diversity that the chain's end is to have."""
TOLERANCE = 0.02
"""Largest difference of gold rewards that are called equal."""
DIVERSITIES = {
    "diversity": "Default-mode diversity, pictures that miss the thing left out",
    "diversity_ungated": "Default-mode diversity of all pictures",
}
HIGHER = {"can_both": "Can it (thing and style)", "transfer": "Transfer"}


@dataclass(frozen=True)
class Change:
    """How far a model is beyond a share of the base, on one axis by one judge."""

    base: float
    beyond: Sequence[float]
    """Seed by seed."""
    over_prompts: Interval

    @property
    def word(self) -> str:
        """The verdict, over seeds and over prompts."""
        return verdict(self.beyond, self.over_prompts)


def change(rows: Sequence[Row], model: str, axis: str, judge: str, share: float = 1.0) -> Change:
    """Of the seeds that the model has a row of; for measures that are means over what was asked (U units, S seeds)."""
    own, bases = (
        {row["seed"]: row["axes"][axis][judge]["units"] for row in rows if row["model"] == name}
        for name in (model, BASE)
    )
    units = [unit for unit in next(iter(own.values())) if all(unit in of[seed] for seed in own for of in (own, bases))]
    own_SU, base_SU = (np.array([[of[seed][unit][0] for unit in units] for seed in own]) for of in (own, bases))
    before, after = (
        measured(axis, dict(zip(units, of_SU.mean(axis=0).tolist(), strict=True)), len(units))
        for of_SU in (share * base_SU, own_SU)
    )
    beyond = (own_SU - share * base_SU).mean(axis=1).tolist()
    return Change(float(base_SU.mean()), beyond, compare(before, after).interval)


def values_of(row: Row) -> dict[str, dict[str, float]]:
    """By measure and judge."""
    axes: Axes = row["axes"]
    return {axis: {judge: value_of(axes, axis, judge) for judge in by_judge} for axis, by_judge in axes.items()}


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What the chain was to reach, judge by judge, and what the baselines keep at its reward."""
    end = CHAIN[-1]
    kept = [kept_line(rows, axis, says) for axis, says in DIVERSITIES.items()]
    more = [higher_line(rows, end, axis, says) for axis, says in HIGHER.items()]
    return [*kept, *more, *(baseline_line(rows, name) for name in BASELINES)]


def judges_of(rows: Sequence[Row], axis: str) -> list[str]:
    """Those that tell it, and see some of it in the base with every seed."""
    bases = [row["axes"][axis] for row in rows if row["model"] == BASE]
    judges: list[str] = list(bases[0])
    return [judge for judge in judges if all(any(map(any, one[judge]["units"].values())) for one in bases)]


def kept_line(rows: Sequence[Row], axis: str, says: str) -> str:
    """Whether the chain keeps its share, both judges agreeing."""
    judges = judges_of(rows, axis)
    if not judges:
        return f"{says}: no judge sees the base draw what it is asked for, there is nothing to keep."
    word = agreed([change(rows, CHAIN[-1], axis, judge, KEPT).word for judge in judges])
    alone = "" if len(judges) == len(rows[0]["axes"][axis]) else "; the other judge sees nothing in the base"
    return f"{says}, kept by the chain: {shares_kept(rows, CHAIN[-1], axis)}; to reach: {KEPT:.0%}, {word}{alone}."


def shares_kept(rows: Sequence[Row], model: str, axis: str) -> str:
    """`97% +- 2% over seeds, 95% to 99% over prompts (first judge), ...`."""
    told = []
    for judge in judges_of(rows, axis):
        found = change(rows, model, axis, judge)
        seeds = shown([1 + one / found.base for one in found.beyond], ".0%")
        low, high = (1 + one / found.base for one in found.over_prompts)
        told.append(f"{seeds} over seeds, {low:.0%} to {high:.0%} over prompts ({judge} judge)")
    return "; ".join(told)


def higher_line(rows: Sequence[Row], model: str, axis: str, says: str) -> str:
    """Whether a model has more of an axis than the base, all judges agreeing."""
    found = {judge: change(rows, model, axis, judge) for judge in rows[0]["axes"][axis]}
    told = "; ".join(
        f"{shown(one.beyond, '+.3f')} over seeds, {one.over_prompts[0]:+.3f} to {one.over_prompts[1]:+.3f} over prompts"
        + ("" if judge == NO_JUDGE else f" ({judge} judge)")
        for judge, one in found.items()
    )
    return f"{says}, since the base: {told}; to reach: more, {agreed([one.word for one in found.values()])}."


def agreed(words: Sequence[str]) -> str:
    """One word where all judges have it."""
    return words[0] if len(set(words)) == 1 else f"the judges disagree ({', '.join(words)})"


def baseline_line(rows: Sequence[Row], name: str) -> str:
    """What a baseline keeps, of the seeds with which it comes to the chain's gold reward."""
    own = [row for row in rows if row["model"] == name]
    equal = [row for row in own if is_equal(row)]
    gaps = less([row["gold"] for row in own], [row["wanted"] for row in own])
    if not equal:
        return f"{name} never reaches the chain's gold reward within {TOLERANCE:g}: at its nearest {shown(gaps, '+.3f')} off it."
    some = [row for row in rows if row["model"] != name] + equal
    kept = "; ".join(
        f"{says[0].lower()}{says[1:]} {shares_kept(some, name, axis) or 'untold'}" for axis, says in DIVERSITIES.items()
    )
    both = ", ".join(
        f"{shown(change(some, name, 'can_both', judge).beyond, '+.3f')} ({judge} judge)"
        for judge in rows[0]["axes"]["can_both"]
    )
    return (
        f"{name} reaches the chain's gold reward within {TOLERANCE:g} with {len(equal)} of {len(own)} seeds and keeps there: "
        f"{kept}; can it {both}."
    )


def is_equal(row: Row) -> bool:
    """Whether a baseline's gold reward is that of the chain's end."""
    return bool(abs(row["gold"] - row["wanted"]) <= TOLERANCE)


def ledger_table(rows: Sequence[Row]) -> Html:
    """Measures by models, each axis by each judge that tells it; means over seeds with intervals."""
    axes = [(axis, judge) for axis, by_judge in rows[0]["axes"].items() for judge in by_judge]
    columns = []
    for name in (REAL, BASE, *CHAIN, *BASELINES):
        own = [row for row in rows if row["model"] == name]
        told = [values_of(row) for row in own]
        plain = [shown([row[key] for row in own]) if key in own[0] else "" for key in ("gold", "artefacts")]
        values = [shown([one[axis][judge] for one in told]) for axis, judge in axes]
        steps = ", ".join(str(row.get("step", "")) for row in own) if name in BASELINES else ""
        equal = f"{sum(is_equal(row) for row in own)} of {len(own)}" if name in BASELINES else ""
        columns.append([name, *plain, *values, equal, steps])
    names = [axis if judge == NO_JUDGE else f"{axis}, {judge} judge" for axis, judge in axes]
    measures = ["gold reward", "with artefacts, by gold", *names, "seeds at the chain's reward", "steps of checkpoints"]
    models, *lines = zip(*columns, strict=True)
    return table(["measure", *models], [[says, *cells] for says, cells in zip(measures, lines, strict=True)])


def report(about: str | None, rows: Sequence[Row], texts: Sequence[str], facts: Html, foot: str) -> str:
    """The page. `texts` are the prompts of the pictures shown; `facts` says what the rewards are."""
    drawn = [row for row in rows if "pixels" in row]
    first = [row for row in drawn if row["seed"] == drawn[0]["seed"]]
    pictures = [
        GridRow(
            name=text, cells=[GridCell(picture=np.array(row["pixels"][place], np.uint8), alt=text) for row in first]
        )
        for place, text in enumerate(texts)
    ]
    lead = (
        "Diversity is a Vendi score: 1 for copies of one picture. Real pictures say how far each judge's scale reaches. "
        + "; ".join(f"{axis}: {MEANINGS[axis].says}" for axis in rows[0]["axes"])
        + "."
    )
    sections = [
        Section(heading="Ledger", body=ledger_table(rows), lead=lead),
        Section(heading="The same prompts and noise", body=grid([row["model"] for row in first], pictures)),
        Section(heading="The rewards", body=facts),
    ]
    said = (about or "").split("\n\n")[-1]
    return page("Alignment without homogenisation", opening(said, verdicts(rows)), sections, footer=foot)
