"""What the runs of the experiment on preference optimisation say: curves, comparison at equal gold reward, page.

    gold along a run --rising: least squares, one top--> where it reaches the target, between two snapshots --> drift there
    the same seeds of two options --log of both drifts' ratio, t interval over seeds--> reached | undecided | not reached

The target is the base's, and fixed before. An option that does not reach it on four seeds of five is not compared at all: what
is said of it is how far it drifted without.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.experiments.drawn import shown, spread
from benchmarks.experiments.paired import NOT_REACHED, REACHED, UNDECIDED, word
from benchmarks.experiments.stpo_arms import HEADLINE, SHUFFLED
from pleinair.pages import GridCell, GridRow, Html, Section, Series, element, grid, line_plot, page, table
from pleinair.pages.picture import Pixels

Curve = dict[str, list[float]]
"""Measurements along a run by name, `step` and `gold` among them; the base first."""
Floats = npt.NDArray[np.float64]
PLAIN, MIXED, OWN = HEADLINE
AIMS = {PLAIN: 0.1, MIXED: 0.5}
"""What STPO's drift is to be, at most, of each one's."""
WORSE_AIM = 0.10
WORDS = (REACHED, UNDECIDED, NOT_REACHED)
"""From the best to the worst."""
LEAST_SHARE = 0.8
"""Of an option's seeds that must reach the target for it to be compared."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run."""

    arm: str
    level: int
    strength: str
    """The level in words."""
    seed: int
    swept: bool
    """Whether it was for choosing a level: what is compared has other seeds."""
    seconds: float
    """Of training, measurements left out."""
    stopped: bool
    """Whether it ended itself, its divergence budget spent."""
    curve: Curve
    pictures: list[Any]
    """A few, of the end, (N, H, W, 3)."""

    def numbers(self) -> dict[str, Any]:
        """Without the pictures."""
        return {name: value for name, value in asdict(self).items() if name != "pictures"}

    @cached_property
    def gains(self) -> Floats:
        """Gold reward above the base's, along the run up to its top."""
        return rising(self.curve["gold"]) - self.curve["gold"][0]

    @property
    def gain(self) -> float:
        """The most that it won."""
        return float(self.gains[-1])

    def at(self, gain: float, name: str) -> float:
        """A measurement where the gain is first reached, between two snapshots; nan where it never is, or is none."""
        place = next((i for i in range(1, len(self.gains)) if self.gains[i] >= gain), None)
        if gain <= 0 or place is None:
            return math.nan
        before, after = self.gains[place - 1 : place + 1]
        share = 1.0 if after == before else min(max((gain - before) / (after - before), 0.0), 1.0)
        first, second = self.curve[name][place - 1 : place + 1]
        return float(first + share * (second - first))

    def end(self, name: str) -> float:
        """The last measurement."""
        return self.curve[name][-1]


def rising(values: Sequence[float]) -> Floats:
    """The least-squares curve that rises to one top and may fall after it, as far as that top.

    A single noisy point wins nothing, and an option that collapses later has still been where it was.
    """
    exact = np.asarray(values, np.float64)

    def misfit(top: int) -> float:
        parts = ((exact[: top + 1], isotonic(exact[: top + 1])), (-exact[top + 1 :], isotonic(-exact[top + 1 :])))
        return sum(float(np.square(own - fitted).sum()) for own, fitted in parts)

    tops = [round(misfit(top), 12) for top in range(len(exact))]
    return isotonic(exact[: len(tops) - tops[::-1].index(min(tops))])


def isotonic(values: Floats) -> Floats:
    """The least-squares curve that never falls: neighbours that do are pooled."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (last, many), (before, others) = pools.pop(), pools.pop()
            pools.append(((last * many + before * others) / (many + others), many + others))
    return np.repeat([mean for mean, _ in pools], [count for _, count in pools])


def chosen_levels(swept: Sequence[Measured], target: float) -> dict[str, int]:
    """For each option the level that drifts least at the target; for one that never gets there, that of its largest gain."""
    levels = {}
    for arm in dict.fromkeys(one.arm for one in swept):
        own = [one for one in swept if one.arm == arm]
        drifts = {one.level: drift for one in own if np.isfinite(drift := one.at(target, "drift"))}
        levels[arm] = (
            min(drifts, key=lambda level: drifts[level]) if drifts else max(own, key=lambda one: one.gain).level
        )
    return levels


def compared_runs(measured: Sequence[Measured], arm: str, levels: Mapping[str, int]) -> dict[int, Measured]:
    """The runs of an option at its level by seed, those that chose it left out."""
    return {one.seed: one for one in measured if (one.arm, one.level, one.swept) == (arm, levels[arm], False)}


def there(runs: Mapping[int, Measured], target: float, name: str) -> dict[int, float]:
    """A measurement at the target, of the seeds that reach it."""
    found = {seed: one.at(target, name) for seed, one in runs.items()}
    return {seed: value for seed, value in found.items() if np.isfinite(value)}


def are_enough(reaching: Mapping[int, float], runs: Mapping[int, Measured]) -> bool:
    """Whether an option reaches the target often enough to be compared there."""
    return len(reaching) >= LEAST_SHARE * len(runs) > 0


def drift_verdict(measured: Sequence[Measured], other: str, levels: Mapping[str, int], target: float) -> str:
    """STPO's drift over another option's at equal gold reward, seed by seed."""
    runs = {arm: compared_runs(measured, arm, levels) for arm in (OWN, other)}
    drifts = {arm: there(runs[arm], target, "drift") for arm in runs}
    aim, told = AIMS[other], f"{OWN}'s drift over {other}'s at equal gold reward"
    if short := [arm for arm in runs if not are_enough(drifts[arm], runs[arm])]:
        verdict = "not reached" if OWN in short else "undecided"
        return f"{told}: {'; '.join(never(arm, runs[arm], target) for arm in short)}; to reach: {aim}, {verdict}."
    seeds = sorted(set(drifts[OWN]) & set(drifts[other]))
    mean, half = spread([math.log(drifts[OWN][seed] / drifts[other][seed]) for seed in seeds])
    low, high = math.exp(mean - half), math.exp(mean + half)
    return (
        f"{told} is {math.exp(mean):.2f} (95% {low:.2f} to {high:.2f}, {len(seeds)} seeds); to reach: {aim}, "
        f"{word(-mean, half, -math.log(aim))}."
    )


def never(arm: str, runs: Mapping[int, Measured], target: float) -> str:
    """What is said of an option that is not compared."""
    missing = [one for one in runs.values() if not np.isfinite(one.at(target, "drift"))]
    least = min((one.end("drift") for one in missing), default=math.nan)
    return (
        f"{arm} reaches the target on {len(runs) - len(missing)} of {len(runs)} seeds, and drifts >= {least:.3g} without reaching "
        f"it (gains {shown([one.gain for one in runs.values()], '.2f')})"
    )


def worse_verdict(measured: Sequence[Measured], levels: Mapping[str, int], target: float) -> str:
    """Held-out winners that STPO has made worse where it reaches the target."""
    runs = compared_runs(measured, OWN, levels)
    reaching = there(runs, target, "winners_worse")
    told, aim = f"Held-out winners that got worse under {OWN} there", f"to reach: {WORSE_AIM:.0%}"
    if not are_enough(reaching, runs):
        return f"{told}: {never(OWN, runs, target)}; {aim}, not reached."
    mean, half = spread(list(reaching.values()))
    others = {arm: there(compared_runs(measured, arm, levels), target, "winners_worse") for arm in (PLAIN, MIXED)}
    beside = ", ".join(f"{arm} {shown(list(of.values()), '.0%')}" for arm, of in others.items() if of)
    return f"{told}: {shown(list(reaching.values()), '.1%')} ({beside or 'no others'}); {aim}, {word(-mean, half, -WORSE_AIM)}."


def likelihood_verdict(measured: Sequence[Measured], arm: str, levels: Mapping[str, int]) -> str:
    """What became of held-out pairs by the end: an error that rises is a likelihood that falls."""
    runs = compared_runs(measured, arm, levels).values()
    winner, loser = ([one.end(f"{side}_rise") for one in runs] for side in ("winner", "loser"))
    told = (
        f"At the end under {arm} the error of held-out winners has risen by {shown(winner, '+.4f')}, that of losers by "
        f"{shown(loser, '+.4f')}"
    )
    if arm == OWN:
        mean, half = spread(winner)
        return f"{told}; to reach: the winners' does not rise, {word(-mean, half)}."
    words = [word(*spread(values)) for values in (winner, loser)]
    return f"{told}; claimed: both rise, {max(words, key=WORDS.index)}."


def verdicts(measured: Sequence[Measured], levels: Mapping[str, int], target: float) -> list[str]:
    """What came out, in a sentence each, against what was to be reached."""
    likelihoods = [likelihood_verdict(measured, arm, levels) for arm in (PLAIN, OWN)]
    if target <= 0:
        said = f"Guidance adds {target:+.3g} of gold reward to the base: there is no target to compare at."
        return [f"{said} Undecided.", *likelihoods]
    control = [one.gain for one in measured if one.arm == SHUFFLED]
    noise = f" With shuffled labels {OWN} gains {shown(control, '.2f')} at most: what noise gives." if control else ""
    return [
        f"Compared where the gold reward is {target:.3g} above the base's, which was fixed before.{noise}",
        *(drift_verdict(measured, other, levels, target) for other in AIMS),
        worse_verdict(measured, levels, target),
        *likelihoods,
    ]


def report(
    about: str,
    measured: Sequence[Measured],
    levels: Mapping[str, int],
    target: float,
    bases: Mapping[str, Pixels],
    prompts: Sequence[str],
    gap: str,
    foot: str,
) -> str:
    """The page."""
    opening = element(
        "div",
        *(element("p", part.replace("\n", " ")) for part in about.split("\n\n")),
        element("ul", *(element("li", one) for one in verdicts(measured, levels, target))),
        element("p", f"The order of the pairs: {gap}."),
        element("p", f"{len(measured)} runs, {sum(one.seconds for one in measured) / 60:.0f} minutes of steps in all."),
    )
    sections = [
        Section(heading="At equal gold reward", body=equal_table(measured, target)),
        Section(
            heading="Gold reward against drift", body=gold_plot(measured, levels, "drift", "drift on held-out rows")
        ),
        Section(heading="Gold reward against steps", body=gold_plot(measured, levels, "step", "steps")),
        Section(heading="Drawings at the end of the runs", body=drawings(measured, levels, bases, prompts)),
    ]
    return page("Preference optimisation at equal reward", opening, sections, footer=foot)


COLUMNS = {
    "drift": "drift",
    "winners_worse": "winners worse",
    "rise": "held-out loss rose",
    "winner_rise": "winner error rose",
    "loser_rise": "loser error rose",
    "high_frequency": "high frequencies",
}
END_COLUMNS = {"drift": "drift", "winners_worse": "winners worse", "margin_accuracy": "margin accuracy"}


def equal_table(measured: Sequence[Measured], target: float) -> Html:
    """Every option and level: at the target, means of the seeds that reach it, and at the end, means of all."""
    rows = []
    for arm, strength, swept in dict.fromkeys((one.arm, one.strength, one.swept) for one in measured):
        own = [one for one in measured if (one.arm, one.strength, one.swept) == (arm, strength, swept)]
        reach = [one for one in own if np.isfinite(one.at(target, "drift"))]
        ended = sum(one.stopped for one in own)
        told = [
            f"{arm}{f', {ended} ended themselves' if ended else ''}",
            strength,
            "choosing" if swept else "comparing",
        ]
        there = [_mean(one.at(target, name) for one in reach) for name in COLUMNS]
        ends = [_mean(one.end(name) for one in own) for name in END_COLUMNS]
        gain, minutes = _mean(one.gain for one in own), _mean(one.seconds / 60 for one in own)
        rows.append([*told, f"{len(reach)} of {len(own)}", gain, *there, *ends, minutes])
    columns = ["option", "strength", "runs for", "reach the target", "gold gained at most"]
    columns += [
        *(f"{says} there" for says in COLUMNS.values()),
        *(f"{says} at the end" for says in END_COLUMNS.values()),
    ]
    return table([*columns, "minutes of a run"], rows)


def _mean(values: Iterable[float]) -> str:
    """To three digits; empty for none."""
    found = list(values)
    return f"{np.mean(found):.3g}" if found else ""


def _shown(measured: Sequence[Measured], levels: Mapping[str, int]) -> list[Measured]:
    """One run of every option at its level: of the first seed that is compared, where there is one."""
    found: dict[str, Measured] = {}
    for one in sorted(measured, key=lambda one: one.swept):
        if one.level == levels.get(one.arm, one.level):
            found.setdefault(one.arm, one)
    return list(found.values())


def gold_plot(measured: Sequence[Measured], levels: Mapping[str, int], across: str, says: str) -> Html:
    """Gold reward gained over drift, where the higher at the left is the better, or over steps."""
    series = []
    for one in _shown(measured, levels):
        order = np.argsort(one.curve[across], kind="stable")
        x, y = (np.array(one.curve[name])[order] for name in (across, "gold"))
        series.append(Series(name=one.arm, x=x.tolist(), y=(y - one.curve["gold"][0]).tolist()))
    return line_plot(series, x_label=says, y_label="gold reward gained")


def drawings(
    measured: Sequence[Measured], levels: Mapping[str, int], bases: Mapping[str, Pixels], prompts: Sequence[str]
) -> Html:
    """The same prompts through the base and every option, in the noise of each one's seed."""
    columns = {**bases, **{one.arm: np.array(one.pictures, np.uint8) for one in _shown(measured, levels)}}
    rows = [
        GridRow(name=prompt, cells=[GridCell(picture=pixels[place], alt=prompt) for pixels in columns.values()])
        for place, prompt in enumerate(prompts)
    ]
    return grid(list(columns), rows)
