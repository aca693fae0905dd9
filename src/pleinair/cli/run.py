"""`pleinair run RECIPE`: the whole way from pictures to a page, and the verbs for its steps (training: cli/train.py)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pleinair.cli.suites import OF_SUITES, add_suite_options, evaluate_with, refuse
from pleinair.cli.workspace import add_run_options


def register(verbs: Any) -> None:
    """Add the verbs `run`, `pack`, `evaluate` and `report`."""
    for verb, function, told in (
        ("run", run, "a whole recipe: ingest, curate, pack, train, evaluate, report; goes on where it was stopped"),
        ("pack", pack, "write the pack of a recipe, or of a mix's folder"),
        (
            "evaluate",
            evaluate,
            "draw with a recipe's model, judge the drawings, write page and numbers; --suite: a checkpoint",
        ),
        ("report", evaluate, "the same as evaluate; drawings that are there are not made again"),
    ):
        parser: argparse.ArgumentParser = verbs.add_parser(verb, help=told)
        add_run_options(parser)
        if verb == "evaluate":
            add_suite_options(parser)
        parser.set_defaults(run=function)


def run(options: argparse.Namespace) -> int:
    """Every step in order; prints where the page is."""
    from pleinair.cli.parents import parent_of
    from pleinair.cli.workspace import StepClock, open_workspace
    from pleinair.cluster.locks import only_one
    from pleinair.config import write_config

    work = open_workspace(options)
    parent_of(work)  # refused now, rather than after the pictures are fetched and curated
    with only_one(work.run_dir):
        write_config(work.recipe, work.run_dir / "config.json")
        print_budget(work.recipe.name, work.recipe.minutes)
        clock = StepClock(work.run_dir)
        page = run_steps(work, clock)
        print(f"\ndone in {sum(clock.seconds.values()) / 60:.1f} minutes (all tries together)\npage: {page}")
    return 0


def print_budget(name: str, minutes: dict[str, float]) -> None:
    """Say what will take how long."""
    parts = ", ".join(f"{step} {spent:g}" for step, spent in minutes.items())
    print(f"{name}: about {sum(minutes.values()):.0f} minutes on 2 cores after downloads ({parts})", flush=True)


def run_steps(work: Any, clock: Any) -> Any:
    """Ingest to report."""
    from pleinair.cli import steps
    from pleinair.cli.parts import ready_parts
    from pleinair.cli.report import report_step
    from pleinair.cli.train import train_step

    def announce(name: str) -> Any:
        print(f"[{name}]", flush=True)
        return clock.step(name)

    with steps.open_database(work) as db:
        with announce("ingest"):
            steps.ingest_step(work, db)
        with announce("curate"):
            steps.curate_step(work, db)
        with announce("parts"):
            parts = ready_parts(work, db)
        with announce("pack"):
            pictures = steps.curated_pictures(work, db)
            steps.pack_step(work, pictures, parts)
        with announce("train"):
            train_step(work)
        with announce("evaluate"):
            evaluated = steps.evaluate_step(work, pictures, parts)
        with announce("report"):
            return report_step(work, db, evaluated, clock.seconds)


def pack(options: argparse.Namespace) -> int:
    """Write the pack of a recipe, or of a mix where the name is that of its folder."""
    from pleinair.cli import steps
    from pleinair.cli.mix import pack_mix
    from pleinair.cli.parents import parent_of
    from pleinair.cli.parts import ready_parts
    from pleinair.cli.workspace import open_workspace
    from pleinair.cluster.locks import only_one

    if (Path(options.recipe) / "manifest.json").exists():
        return pack_mix(options)
    work = open_workspace(options)
    parent_of(work)
    with only_one(work.run_dir), steps.open_database(work) as db:
        steps.pack_step(work, steps.curated_pictures(work, db), ready_parts(work, db))
    print(f"pack: {work.pack}")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Draw, judge, write the page."""
    from pleinair.cli import steps
    from pleinair.cli.parts import ready_parts
    from pleinair.cli.report import report_step
    from pleinair.cli.workspace import StepClock, open_workspace
    from pleinair.cluster.locks import only_one

    if getattr(options, "suite", None) is not None:
        return evaluate_with(options)
    refuse(options, OF_SUITES, "is for suites: give --suite as well")
    work = open_workspace(options)
    with only_one(work.run_dir), steps.open_database(work) as db:
        clock = StepClock(work.run_dir)
        with clock.step("evaluate"):
            evaluated = steps.evaluate_step(work, steps.curated_pictures(work, db), ready_parts(work, db))
        print(f"page: {report_step(work, db, evaluated, clock.seconds)}")
    return 0
