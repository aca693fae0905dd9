"""`pleinair orders` and `pleinair ledger`: results of the suite exploration beside each other.

untrained, a model, reconstruction, real --orders--> does each measure order them as it must?
two seeds of one checkpoint             --orders--> do they agree within their intervals?
base, SFT, RL, ... of one lineage       --ledger--> what did each stage gain and lose?
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.suites import REFERENCES
from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.evaluation.exploration.suite import Result


def register(verbs: Any) -> None:
    """Add the verbs `ledger` and `orders`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "ledger",
        help="what each stage of a lineage gained and lost, from the metrics of each",
        description="One row per stage: can it, left alone, transfer, near copies, beside the change since the first stage.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="METRICS", help="metrics.json of each stage, in order")
    parser.add_argument("-o", "--output", type=Path, help="page to write as well")
    parser.set_defaults(run=show_ledger)
    parser = verbs.add_parser(
        "orders",
        help="whether subjects come out in the order that they must, or two runs of one agree",
        description="Compare untrained, a model, reconstruction and real, measure by measure, with the expected orders; or "
        "two results of one checkpoint with different seeds with each other.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="METRICS", help="metrics.json of each subject")
    parser.add_argument("-o", "--output", type=Path, help="page to write as well")
    parser.set_defaults(run=show_orders)


def show_ledger(options: argparse.Namespace) -> int:
    """Print the ledger, and write its page when asked."""
    from pleinair.evaluation.exploration.ledger import ledger, ledger_page
    from pleinair.pages import write_page

    rows = ledger(read_results(options.results))
    for subject, entries in rows:
        print(subject)
        for entry in entries:
            change = "" if entry.since_first is None else f"{entry.since_first.difference:+.3f} since the first"
            doubts = "".join(f", {doubt}" for doubt in entry.doubts)
            print(f"  {entry.measure:20} {entry.measured.value:.3f} n={entry.measured.num_pictures} {change}{doubts}")
    if options.output is not None:
        write_page(options.output, ledger_page(rows))
        print(f"page: {options.output}")
    return 0


def show_orders(options: argparse.Namespace) -> int:
    """Print each expected order, and whether it holds; 1 when one does not."""
    from pleinair.evaluation.exploration.orders import SUBJECTS, check_orders, orders_page
    from pleinair.pages import write_page

    found = read_results(options.results)
    if len(found) == 2 and found[0].subject == found[1].subject:
        return show_two_runs(found[0], found[1], options.output)
    models = [one.subject for one in found if one.subject not in REFERENCES or one.subject == "shipped"]
    if len(models) != 1 or len(found) < 2:
        raise ConfigError(
            f"orders are of one model and its references, not of {len(models)} models: give one, and real; or two results "
            "of one checkpoint"
        )
    results = {"model" if one.subject == models[0] else one.subject: one for one in found}
    steps = check_orders(SUBJECTS, results)
    for step in steps:
        low, high = step.comparison.interval
        change = f"{step.comparison.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        order = f"{step.lower} {step.relation} {step.upper}"
        n = f"n={step.comparison.num_units}"
        print(f"{step.measure:26} {step.judge:7} {order:32} {change:26} {n:6} {'holds' if step.holds else 'FAILS'}")
    print(f"{sum(step.holds for step in steps)} of {len(steps)} hold")
    if options.output is not None:
        write_page(options.output, orders_page(models[0], results, steps))
        print(f"page: {options.output}")
    return 0 if all(step.holds for step in steps) else 1


def show_two_runs(first: Result, second: Result, output: Path | None) -> int:
    """Print both values of each measure, and whether their intervals overlap; 1 when some do not."""
    from pleinair.evaluation.exploration.orders import check_two_runs, two_runs_page
    from pleinair.pages import write_page

    found = check_two_runs(first, second)
    for one in found:
        cells = [f"{x.value:.3f} [{x.interval[0]:.3f}, {x.interval[1]:.3f}]" for x in (one.first, one.second)]
        n = f"n={one.first.num_pictures}"
        print(f"{one.measure:26} {one.judge:7} {cells[0]:24} {cells[1]:24} {n:6} {'agree' if one.agrees else 'DIFFER'}")
    print(f"{sum(one.agrees for one in found)} of {len(found)} agree")
    if output is not None:
        write_page(output, two_runs_page(first.subject, (first.seed, second.seed), found))
        print(f"page: {output}")
    return 0 if all(one.agrees for one in found) else 1


def read_results(paths: Sequence[Path]) -> list[Result]:
    """What `evaluate` wrote; a folder stands for its `metrics.json`. Raises ConfigError."""
    from pleinair.evaluation.exploration.suite import from_document

    return [from_document(_read(path / "metrics.json" if path.is_dir() else path)) for path in paths]


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as unreadable:
        raise ConfigError(
            f"{path} cannot be read ({unreadable}): give a metrics.json that evaluate wrote"
        ) from unreadable
    return document
