"""What must come out in which order, if the measures measure anything.

The same table serves the self test (damaged real pictures, free of any model) and the comparison of subjects. A chain
`a < b <= c` of one measure holds where each step's paired difference has the sign; `<=` holds where it does not have the
opposite one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pleinair.evaluation.exploration.measured import Comparison, Measured, compare
from pleinair.evaluation.exploration.sheet import JUDGES
from pleinair.evaluation.exploration.suite import NO_JUDGE, Result
from pleinair.pages import Section, element, join, page, table
from pleinair.records.errors import ConfigError

Relation = Literal["<", "<="]


@dataclass(frozen=True)
class Order:
    """Subjects of one measure, lowest first, and the relation between neighbours."""

    measure: str
    subjects: Sequence[str]
    relations: Sequence[Relation]

    @classmethod
    def of(cls, measure: str, chain: str) -> Order:
        """From text: `noise < copies < real`."""
        words = chain.replace("<=", "\0").replace("<", "\1")
        relations: list[Relation] = ["<=" if sign == "\0" else "<" for sign in words if sign in "\0\1"]
        return cls(measure, [name.strip() for name in words.replace("\0", "\1").split("\1")], relations)


SELF_TEST: Sequence[Order] = (
    Order.of("default_styles", "style collapse < real"),
    Order.of("default_style_distance", "real < style collapse"),
    Order.of("default_styles_per_prompt", "copies < real"),
    Order.of("can_style", "noise < real"),
    Order.of("can_style", "style collapse < real"),
    Order.of("can_concept", "concept collapse < real"),
    Order.of("can_both", "wrong prompts < real"),
    Order.of("can_colour", "noise < real"),
    Order.of("default_colours_per_prompt", "copies < real"),
    Order.of("default_kinds_per_prompt", "noise < copies < real"),
    Order.of("diversity", "noise < copies < real"),
    Order.of("diversity", "wrong prompts < real"),
    Order.of("diversity_ungated", "copies < real"),
    Order.of("transfer", "noise < real"),
    Order.of("transfer", "wrong prompts < real"),
    Order.of("transfer", "concept collapse < real"),
    Order.of("can_unseen", "wrong prompts < real"),
    Order.of("unseen_gap", "real < forgetful"),
    Order.of("tail_gap", "real < forgetful"),
    Order.of("near_copies", "noise < training copies"),
    Order.of("nearer_to_trained", "real < training copies"),
    Order.of("can_user", "wrong prompts < real"),
    Order.of("can_long", "wrong prompts < real"),
    Order.of("can_language", "wrong prompts < real"),
    Order.of("can_count", "noise <= wrong prompts < real"),
    Order.of("can_pair", "noise <= wrong prompts < real"),
    Order.of("can_position", "noise <= wrong prompts < real"),
    Order.of("text_error", "real < noise"),
)
"""Damage that every measure must see."""

SUBJECTS: Sequence[Order] = (
    Order.of("default_styles", "untrained < reconstruction <= real"),
    Order.of("default_styles", "model <= real"),
    Order.of("default_style_distance", "real <= reconstruction < untrained"),
    Order.of("default_style_distance", "real <= model"),
    Order.of("default_styles_per_prompt", "untrained < reconstruction <= real"),
    Order.of("default_styles_per_prompt", "model <= real"),
    Order.of("default_colours_per_prompt", "untrained <= reconstruction <= real"),
    Order.of("default_colours_per_prompt", "model <= real"),
    Order.of("default_kinds_per_prompt", "untrained <= model <= reconstruction <= real"),
    Order.of("unseen_gap", "real <= model"),
    Order.of("tail_gap", "real <= model"),
    Order.of("can_style", "untrained < model <= reconstruction <= real"),
    Order.of("can_concept", "untrained < model <= reconstruction <= real"),
    Order.of("can_both", "untrained < model <= reconstruction <= real"),
    Order.of("can_unseen", "untrained < model <= reconstruction <= real"),
    Order.of("transfer", "untrained < model <= reconstruction <= real"),
    Order.of("diversity", "untrained < model <= reconstruction <= real"),
    Order.of("can_colour", "untrained <= model <= reconstruction <= real"),
    Order.of("near_copies", "untrained <= model < reconstruction <= real"),
    Order.of("can_user", "untrained <= model <= reconstruction <= real"),
    Order.of("can_long", "untrained <= model <= reconstruction <= real"),
    Order.of("can_language", "untrained <= model <= reconstruction <= real"),
    Order.of("can_count", "untrained <= model <= reconstruction <= real"),
    Order.of("can_pair", "untrained <= model <= reconstruction <= real"),
    Order.of("can_position", "untrained <= model <= reconstruction <= real"),
    Order.of("text_error", "real <= reconstruction < model <= untrained"),
)
"""What a model, the autoencoder's reconstructions and real pictures must give.

A model that learned its pairs beats an untrained one; it need not be worse than real pictures at doing what it is told.
"""

UNORDERED: Mapping[str, str] = {
    "diversity_ungated": "noise and nonsense raise it, which is why there is a gate",
    "nearer_to_trained": "one half wherever nothing is copied, whatever the subject",
}
"""Measures of which no order is expected, and why."""


@dataclass(frozen=True)
class Step:
    """One neighbouring pair of an order, by one judge."""

    measure: str
    judge: str
    lower: str
    upper: str
    relation: Relation
    comparison: Comparison

    @property
    def holds(self) -> bool:
        """Whether the pictures bear it out."""
        return self.comparison.sign > 0 if self.relation == "<" else self.comparison.sign >= 0


def check_orders(orders: Sequence[Order], results: Mapping[str, Result]) -> list[Step]:
    """Every step of every order whose subjects and measure are there, by every judge."""
    steps = []
    for order in orders:
        there = [place for place, name in enumerate(order.subjects) if order.measure in _measures(results, name)]
        for start, stop in pairwise(there):
            # Over subjects that are not there the chain goes on: one strict step makes the whole strict.
            relation: Relation = "<" if "<" in order.relations[start:stop] else "<="
            lower, upper = order.subjects[start], order.subjects[stop]
            both = [_measures(results, name)[order.measure] for name in (lower, upper)]
            for judge in (*JUDGES, NO_JUDGE):
                if judge in both[0] and judge in both[1]:
                    comparison = compare(both[0][judge], both[1][judge])
                    steps.append(Step(order.measure, judge, lower, upper, relation, comparison))
    return steps


def _measures(results: Mapping[str, Result], subject: str) -> Mapping[str, Mapping[str, Measured]]:
    return results[subject].measures if subject in results else {}


@dataclass(frozen=True)
class Agreement:
    """One measure of two runs that should say the same, by one judge."""

    measure: str
    judge: str
    first: Measured
    second: Measured

    @property
    def agrees(self) -> bool:
        """Whether the printed intervals overlap."""
        (low, high), (other_low, other_high) = self.first.interval, self.second.interval
        return low <= other_high and other_low <= high

    @property
    def comparison(self) -> Comparison:
        """The paired difference, second minus first."""
        return compare(self.first, self.second)


def agreements(first: Result, second: Result) -> list[Agreement]:
    """Every measure that both have, by every judge."""
    return [
        Agreement(name, judge, one, second.measures[name][judge])
        for name, by_judge in first.measures.items()
        for judge, one in by_judge.items()
        if judge in second.measures.get(name, {})
    ]


def check_two_runs(first: Result, second: Result) -> list[Agreement]:
    """Do two runs of one checkpoint, of equal prompts and other seeds, agree? Raises ConfigError where they are no such two."""
    if first.identity != second.identity:
        raise ConfigError(
            f"both results are called {first.subject!r} and other weights or settings drew them ({first.identity[:12]}, "
            f"{second.identity[:12]}): two checkpoints are compared by `pleinair ledger`"
        )
    if (first.prompts_sha256, first.size) != (second.prompts_sha256, second.size):
        raise ConfigError(
            f"the results of {first.subject} are of other prompts or sizes: evaluate both with one --size"
        )
    if first.seed == second.seed:
        raise ConfigError(f"both results of {first.subject} have seed {first.seed}: evaluate one again with --seed 1")
    return agreements(first, second)


def orders_page(model: str, results: Mapping[str, Result], steps: Sequence[Step]) -> str:
    """Every measure of every subject, and every expected order with its outcome."""
    names = [name for name in ("untrained", "model", "reconstruction", "real") if name in results]
    rows = []
    for measure, by_judge in results["model"].measures.items():
        for judge in by_judge:
            found = [results[name].measures.get(measure, {}).get(judge) for name in names]
            cells = [with_interval(one) if one else "" for one in found]
            rows.append([measure, judge, *cells, f"{by_judge[judge].num_pictures}"])
    outcomes = [
        [
            step.measure,
            f"{step.lower} {step.relation} {step.upper}",
            step.judge,
            difference(step.comparison),
            outcome(step),
        ]
        for step in sorted(steps, key=lambda one: one.holds)
    ]
    held = sum(step.holds for step in steps)
    columns = ["measure", "judge", *names, "pictures"]
    return page(
        f"{model} between nothing and the real",
        element("p", f"{held} of {len(steps)} expected orders hold. Values with 95% intervals over prompts."),
        [
            Section(heading="Measures", body=table(columns, rows, number_columns=columns[2:])),
            Section(
                heading="Expected orders",
                lead="Differences of the same prompts, second minus first.",
                body=table(["measure", "order", "judge", "difference", "outcome"], outcomes),
            ),
            Section(
                heading="No order",
                body=join(element("p", f"{measure}: {why}.") for measure, why in UNORDERED.items()),
            ),
        ],
    )


def two_runs_page(subject: str, seeds: tuple[int, int], found: Sequence[Agreement]) -> str:
    """Two runs of one checkpoint beside each other."""
    rows = [
        [
            one.measure,
            one.judge,
            with_interval(one.first),
            with_interval(one.second),
            difference(one.comparison),
            f"{one.first.num_pictures}",
            "agree" if one.agrees else "DIFFER",
        ]
        for one in sorted(found, key=lambda one: one.agrees)
    ]
    columns = ["measure", "judge", *(f"seed {seed}" for seed in seeds), "paired difference", "pictures", "outcome"]
    agreeing = sum(one.agrees for one in found)
    return page(
        f"Two runs of {subject}",
        element("p", f"{agreeing} of {len(found)} measures agree: their 95% intervals overlap."),
        [Section(heading="Measures", body=table(columns, rows, number_columns=columns[2:6]))],
    )


def with_interval(one: Measured) -> str:
    """`0.75 [0.50, 1.00]`."""
    return f"{one.value:.2f} [{one.interval[0]:.2f}, {one.interval[1]:.2f}]"


def difference(comparison: Comparison) -> str:
    """`+0.12 [+0.05, +0.19]`."""
    low, high = comparison.interval
    return f"{comparison.difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def outcome(step: Step) -> str:
    """`holds` or `FAILS`."""
    return "holds" if step.holds else "FAILS"
