"""`pleinair filters`: what each limit costs in pictures, and what other limits would change; nothing is written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import RECIPE_NAMES, add_warehouse_options, open_warehouse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pleinair.curation.filter_costs import Trial
    from pleinair.curation.replay import Measured


def register(verbs: Any) -> None:
    """Add the verb `filters`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "filters",
        help="plot what each limit of the filters costs in pictures",
        description="Plot what each limit costs in pictures, and count what other limits would change. Reads columns "
        "only, opens no picture but those it shows, and changes no verdict.",
    )
    parser.add_argument(
        "recipe", nargs="?", choices=RECIPE_NAMES, help="limits to try (default: those the warehouse follows)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. pixels.max_white_ratio=0.9"
    )
    parser.add_argument("--page", type=Path, default=Path("filters.html"), help="where (default: %(default)s)")
    add_warehouse_options(parser)
    parser.set_defaults(run=filters)


def filters(options: argparse.Namespace) -> int:
    """Write the page and print the trial."""
    from pleinair.config import override
    from pleinair.curation import ObjectStore, images_table
    from pleinair.curation.filter_costs import filter_costs
    from pleinair.curation.filter_page import write_filter_page
    from pleinair.curation.limits import LimitTable
    from pleinair.curation.recipes import RECIPES
    from pleinair.curation.replay import last_limits, read_measures
    from pleinair.records.errors import SourceError

    with open_warehouse(options) as db:
        images = images_table(db)
        now = last_limits(db) or LimitTable()
        chosen = override(RECIPES[options.recipe].filters if options.recipe else now, options.set)
        if not (number := images.count("probe_drop IS NOT NULL")):
            raise SourceError("no picture was measured yet: run `pleinair curate` first")
        costs, trial = filter_costs(counted(read_measures(images, more=["image_path"]), number), chosen, now)
        write_filter_page(options.page, costs, trial, chosen, ObjectStore(options.home / "store"))
    print(f"{trial_table(trial)}\n{options.page}", flush=True)
    return 0


def counted(pictures: Iterator[Measured], total: int) -> Iterator[Measured]:
    """The pictures, with progress shown as they pass."""
    from pleinair.cli.progress import ProgressLine

    line, done = ProgressLine("filters"), 0
    for some in pictures:
        yield some
        done += len(some)
        line.update(done, total)
    line.close()


def trial_table(trial: Trial) -> str:
    """What would change, as lines of text."""
    lines = [
        f"{trial.num_judged} pictures judged, {trial.num_kept} stay now: {trial.would_go.total()} would go, "
        f"{trial.would_return.total()} would come back, {trial.unknown.total()} would be measured first"
    ]
    sides = (("go", trial.would_go), ("come back", trial.would_return), ("be measured", trial.unknown))
    for words, counts in sides:
        lines += [
            f"  {source or '-'}: {number} would {words} ({kind})" for (source, kind), number in counts.most_common()
        ]
    return "\n".join(lines)
