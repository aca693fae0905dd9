"""What the runs of the experiment on preference optimisation say: curves, comparison at equal gold reward, page.

curve of a run --first place where gold reaches the target, between two measurements--> drift and winners there
the same seeds of two options --resampled seeds--> ratio with its 95% interval
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pleinair.pages import GridCell, GridRow, Html, Section, Series, element, grid, line_plot, page, table
from pleinair.pages.picture import Pixels

Curve = dict[str, list[float]]
"""Measurements along a run by name, `step` and `gold` among them; the base first."""
TARGET_SHARE = 0.8
"""Runs are compared at this share of the gain that the weakest of the compared ones reaches."""
NUM_RESAMPLES = 4000
PLAIN, MIXED = "DPO", "DPO+SFT"
AIMS = {PLAIN: 0.1, MIXED: 0.5}
"""What STPO's drift is to be, at most, of each one's."""
WORSE_AIM = 0.10


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run."""

    arm: str
    level: int
    seed: int
    swept: bool
    """Whether it was for choosing a strength: what is compared has other seeds."""
    seconds: float
    """Of training, measurements left out."""
    stopped: bool
    """Whether it ended itself, its divergence budget spent."""
    curve: Curve
    pictures: list[Any]
    """A few, of the end, (N, H, W, 3)."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def of_document(document: dict[str, Any]) -> Measured:
        """The inverse."""
        return Measured(**document)

    def numbers(self) -> dict[str, Any]:
        """Without the pictures."""
        return {name: value for name, value in self.document().items() if name != "pictures"}

    @property
    def gain(self) -> float:
        """The most that its gold reward rose above the base's."""
        gold = self.curve["gold"]
        return max(gold) - gold[0]

    def at(self, gain: float, name: str) -> float:
        """A measurement where the gold reward first is `gain` above the base's, between two points; nan where it never is."""
        gold = np.array(self.curve["gold"]) - self.curve["gold"][0]
        values = self.curve[name]
        place = next((i for i in range(1, len(gold)) if gold[i] >= gain), None)
        if gain <= 0 or place is None:
            return float("nan")
        share = (gain - gold[place - 1]) / (gold[place] - gold[place - 1])
        return float(values[place - 1] + share * (values[place] - values[place - 1]))


def chosen_levels(measured: Sequence[Measured], headline: Sequence[str]) -> dict[str, int]:
    """For each option the strength that drifts least at a gain which all headline options reach at some strength.

    One that never gets there takes the strength of its largest gain.
    """
    best = {arm: max(one.gain for one in measured if one.arm == arm) for arm in {one.arm for one in measured}}
    target = TARGET_SHARE * min(best[arm] for arm in headline)
    levels = {}
    for arm in best:
        own = [one for one in measured if one.arm == arm]
        drifts = {one.level: one.at(target, "drift") for one in own}
        there = {level: drift for level, drift in drifts.items() if np.isfinite(drift)}
        levels[arm] = min(there, key=lambda level: there[level]) if there else max(own, key=lambda one: one.gain).level
    return levels


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Of two options' drifts at equal gold reward, over the seeds."""

    value: float
    interval: tuple[float, float]
    num_seeds: int
    """Seeds at which both reach the gain."""


def compare(measured: Sequence[Measured], own: str, other: str, levels: Mapping[str, int], gain: float) -> Ratio:
    """Drift of `own` over that of `other`, each the mean over seeds, with a 95% interval of resampled seeds."""
    drifts = [
        {
            one.seed: one.at(gain, "drift")
            for one in measured
            if (one.arm, one.level, one.swept) == (arm, levels[arm], False)
        }
        for arm in (own, other)
    ]
    seeds = sorted(set(drifts[0]) & set(drifts[1]))
    pairs = np.array([[of[seed] for of in drifts] for seed in seeds]).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if not len(pairs):
        return Ratio(value=float("nan"), interval=(float("nan"), float("nan")), num_seeds=0)
    rng = np.random.default_rng(0)
    drawn = pairs[rng.integers(len(pairs), size=(NUM_RESAMPLES, len(pairs)))].mean(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
    mean = pairs.mean(axis=0)
    return Ratio(value=float(mean[0] / mean[1]), interval=(float(low), float(high)), num_seeds=len(pairs))


def compared_gain(measured: Sequence[Measured], headline: Sequence[str], levels: Mapping[str, int]) -> float:
    """The gain at which the headline options are compared: reached by every one of their runs."""
    chosen = [one for one in measured if one.arm in headline and one.level == levels[one.arm] and not one.swept]
    return TARGET_SHARE * min(one.gain for one in chosen)


def verdicts(measured: Sequence[Measured], headline: Sequence[str], levels: Mapping[str, int]) -> list[str]:
    """What came out, in a sentence each, against what was to be reached."""
    own, gain = headline[-1], compared_gain(measured, headline, levels)
    if gain <= 0:
        return ["Not every run of the compared options raised the gold reward: nothing is equal to compare at."]
    told = [f"Compared where the gold reward is {gain:.3g} above the base's."]
    for other, aim in AIMS.items():
        ratio = compare(measured, own, other, levels, gain)
        low, high = ratio.interval
        word = "reached" if high <= aim else "reached within the noise" if ratio.value <= aim else "not reached"
        told.append(
            f"{own} drifts {ratio.value:.2f} times as far as {other} (95% {low:.2f} to {high:.2f}, {ratio.num_seeds} seeds); "
            f"to reach: {aim}, {word}."
        )
    worse = [one.at(gain, "winners_worse") for one in measured if one.arm == own and not one.swept]
    share = float(np.nanmean(worse))
    told.append(
        f"Of {own}'s winners {share:.0%} are worse than under the reference; to reach: {WORSE_AIM:.0%}, "
        f"{'reached' if share <= WORSE_AIM else 'not reached'}."
    )
    return told


def report(
    about: str,
    measured: Sequence[Measured],
    headline: Sequence[str],
    levels: Mapping[str, int],
    bases: Mapping[str, Pixels],
    prompts: Sequence[str],
    told: Mapping[str, Any],
) -> str:
    """The page."""
    opening = element(
        "div",
        *(element("p", part.replace("\n", " ")) for part in about.split("\n\n")),
        element("ul", *(element("li", one) for one in verdicts(measured, headline, levels))),
        element("p", f"The order of the pairs: {told['gap']}."),
        element("p", f"{len(measured)} runs, {sum(one.seconds for one in measured) / 60:.0f} minutes of steps in all."),
    )
    sections = [
        Section(heading="At equal gold reward", body=equal_table(measured, headline, levels)),
        Section(heading="Drift against gold reward", body=drift_plot(measured, levels)),
        Section(heading="Gold reward against steps", body=gold_plot(measured, levels)),
        Section(heading="Drawings at the end of the runs", body=drawings(measured, levels, bases, prompts)),
    ]
    footer = f"make experiment-stpo, commit {told['commit']}, {told['machine']}, size {told['size']}"
    return page("Preference optimisation at equal reward", opening, sections, footer=footer)


COLUMNS = {
    "drift": "drift there",
    "winners_worse": "winners worse there",
    "rise": "held-out loss rose there",
    "winner_rise": "winner error rose there",
    "loser_rise": "loser error rose there",
    "high_frequency": "high frequencies there",
}


def equal_table(measured: Sequence[Measured], headline: Sequence[str], levels: Mapping[str, int]) -> Html:
    """Every option and strength, means over seeds."""
    gain = compared_gain(measured, headline, levels)
    columns = ["option", "strength", "runs for", "seeds", "gold gained at most", *COLUMNS.values()]
    rows = []
    for arm, level, swept in dict.fromkeys((one.arm, one.level, one.swept) for one in measured):
        own = [one for one in measured if (one.arm, one.level, one.swept) == (arm, level, swept)]
        cells = [_mean([one.at(gain, name) for one in own]) for name in COLUMNS]
        accuracy = _mean([one.curve["margin_accuracy"][-1] for one in own])
        ended = sum(one.stopped for one in own)
        name = f"{arm}{f', {ended} ended themselves' if ended else ''}"
        use, gained = "choosing" if swept else "comparing", _mean([one.gain for one in own])
        minutes = f"{np.mean([one.seconds for one in own]) / 60:.1f}"
        rows.append([name, str(level), use, str(len(own)), gained, *cells, accuracy, minutes])
    return table([*columns, "margin accuracy at the end", "minutes of a run"], rows)


def _mean(values: Sequence[float]) -> str:
    """To three digits; empty where some run never got there."""
    mean = float(np.mean(values))
    return f"{mean:.3g}" if np.isfinite(mean) else ""


def _shown(measured: Sequence[Measured], levels: Mapping[str, int]) -> list[Measured]:
    """One run of every option, at its strength."""
    found: dict[str, Measured] = {}
    for one in measured:
        if one.level == levels.get(one.arm, one.level):
            found[one.arm] = one
    return list(found.values())


def drift_plot(measured: Sequence[Measured], levels: Mapping[str, int]) -> Html:
    """Gold reward over drift: the higher at the left the better."""
    series = []
    for one in _shown(measured, levels):
        order = np.argsort(one.curve["drift"], kind="stable")
        x, y = (np.array(one.curve[name])[order].tolist() for name in ("drift", "gold"))
        series.append(Series(name=one.arm, x=x, y=y))
    return line_plot(series, x_label="drift on pretraining data", y_label="gold reward")


def gold_plot(measured: Sequence[Measured], levels: Mapping[str, int]) -> Html:
    """Gold reward over steps."""
    shown = _shown(measured, levels)
    series = [Series(name=one.arm, x=one.curve["step"], y=one.curve["gold"]) for one in shown]
    return line_plot(series, x_label="steps", y_label="gold reward")


def drawings(
    measured: Sequence[Measured], levels: Mapping[str, int], bases: Mapping[str, Pixels], prompts: Sequence[str]
) -> Html:
    """The same prompts and noise through the base and every option."""
    columns = {**bases, **{one.arm: np.array(one.pictures, np.uint8) for one in _shown(measured, levels)}}
    rows = [
        GridRow(name=prompt, cells=[GridCell(picture=pixels[place], alt=prompt) for pixels in columns.values()])
        for place, prompt in enumerate(prompts)
    ]
    return grid(list(columns), rows)
