"""`pleinair curate`: run every curation stage to the end, with live progress, and say what was dropped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.costs import note_costs
from pleinair.cli.dsns import one

if TYPE_CHECKING:
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation import StageDrops
    from pleinair.curation.curate import CurationConfig
    from pleinair.krablet import Database, Progress, RunSummary

RECIPE_NAMES = ("drawings", "photos", "mixed")
"""The recipes of `curation.recipes`, here so that `--help` imports nothing."""


def add_warehouse_options(parser: argparse.ArgumentParser) -> None:
    """Options that say where the warehouse is."""
    parser.add_argument(
        "--dsn", type=one, help="Postgres to use, e.g. postgresql://user@host/db (default: an embedded one)"
    )
    from pleinair.cli.places import data_home

    parser.add_argument(
        "--home",
        type=Path,
        default=data_home(),
        help="folder of the embedded database and the stored pictures (default: %(default)s)",
    )


def open_warehouse(options: argparse.Namespace) -> Database:
    """The warehouse the options name; close it, or use it as a context manager."""
    from pleinair import krablet

    return krablet.connect(options.dsn, directory=None if options.dsn else options.home / "postgres")


def register(verbs: Any) -> None:
    """Add the verb `curate`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "curate",
        help="filter, hash, caption and deduplicate what was ingested",
        description="Run every curation stage to the end. It may be stopped at any time; the same command goes on.",
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        default="drawings",
        help="which limits (drawings, photos, mixed), or a chain of steps: open-pictures, or the path of a .toml "
        "(default: %(default)s)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. probe.min_side=256")
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument("--fetch-again", action="store_true", help="read every picture from its source anew")
    add_warehouse_options(parser)
    parser.set_defaults(run=curate)


def curate(options: argparse.Namespace) -> int:
    """Curate; exit code 1 when pictures are stuck."""
    from pleinair.cli.places import cache_dir
    from pleinair.cli.progress import ProgressLine
    from pleinair.config.overrides import override
    from pleinair.curation import curate as run_curation

    if (chain := _chain(options.recipe)) is not None:
        from pleinair.cli.chain import run_chain

        return run_chain(chain, options)
    config = override(_limits(options.recipe), options.set)
    line = ProgressLine("curate")
    with open_warehouse(options) as db:
        done = run_curation(
            db,
            config,
            cache=cache_dir(),
            store=options.home / "store",
            processes=options.processes,
            fetch_again=options.fetch_again,
            on_progress=lambda now: show_workers(line, now),
        )
    line.close()
    print(drop_table(done.drops), flush=True)
    return close_run(options.home, done.run)


def _chain(recipe: str) -> Path | None:
    """The file of a chain of steps, if that is what is meant."""
    from pleinair.recipes.chain import SUFFIX, shipped_chains

    return Path(recipe) if recipe.endswith(SUFFIX) else shipped_chains().get(recipe)


def _limits(recipe: str) -> CurationConfig:
    """Limits by name. Raises ConfigError."""
    from pleinair.curation.recipes import RECIPES
    from pleinair.recipes.chain import shipped_chains
    from pleinair.records.errors import ConfigError

    if recipe not in RECIPES:
        known = ", ".join([*RECIPES, *shipped_chains()])
        raise ConfigError(f"no curation recipe {recipe!r}: known are {known}, or give the path of a .toml file")
    return RECIPES[recipe]


def show_workers(line: ProgressLine, now: Progress) -> None:
    """Stage results done and to come: a row pending in one stage is still ahead of every stage after it."""
    done = sum(stage.completed for stage in now.stages)
    ahead, to_come = 0, 0
    for stage in now.stages:
        ahead += stage.pending
        to_come += ahead
    line.update(
        done, done + to_come, ", ".join(f"{s.stage} {s.rows_per_second:.0f}/s" for s in now.stages if s.pending)
    )


def drop_table(drops: tuple[StageDrops, ...]) -> str:
    """The drop report as lines of text."""
    lines = [f"{'stage':<10} {'in':>9} {'dropped':>9}  reasons"]
    for stage in drops:
        reasons = ", ".join(f"{reason.kind} {reason.count}" for reason in stage.reasons)
        lines.append(f"{stage.stage:<10} {stage.num_in:>9} {stage.num_dropped:>9}  {reasons}".rstrip())
    return "\n".join(lines)


def close_run(home: Path, run: RunSummary) -> int:
    """Note what a run cost and say which rows keep failing, and why; the exit code."""
    note_costs(home, run)
    stuck = [(stage, row) for stage, rows in run.stuck.items() for row in rows]
    for stage, row in stuck[:5]:
        print(f"stuck in {stage}: {row.key}: {row.error}", file=sys.stderr)
    if stuck:
        print(f"{len(stuck)} pictures are stuck; remove the cause and run the same command again", file=sys.stderr)
    return 1 if stuck else 0
