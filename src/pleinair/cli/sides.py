"""`pleinair sides A B`: two results side by side, blind, one named attribute a question; and what was answered."""

from __future__ import annotations

import argparse
import getpass
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import add_warehouse_options
from pleinair.records.errors import ConfigError
from pleinair.records.preferences import PREFERENCES

if TYPE_CHECKING:
    from pleinair.evaluation.exploration.world import Pictures
    from pleinair.evaluation.people.judged import Look
    from pleinair.evaluation.people.shown import Showing
    from pleinair.evaluation.people.trials import Comparison
    from pleinair.model.judge import JudgeScores
    from pleinair.records.preferences import PreferenceLog

PORT = 8742


def register(verbs: Any) -> None:
    """Add the verb `sides`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "sides",
        help="compare results side by side, blind, at the keyboard",
        description="Serve a page, on this machine only, that shows pictures of two results of `evaluate --suite "
        "exploration` beside each other and asks one question about them. Every answer is an event in the log; the page says "
        "which keys there are at '?'.",
    )
    parser.add_argument(
        "results", nargs="*", type=Path, metavar="RESULT", help="folders that evaluate wrote, two or more"
    )
    parser.add_argument(
        "--real", type=Path, metavar="RESULT", help="that of real pictures, for controls (default: the one among them)"
    )
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help=f"events (default: {PREFERENCES} beside the first result)"
    )
    parser.add_argument("--person", default=getpass.getuser(), help="who answers (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=40, help="questions, without controls (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another choice of questions (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="0 takes any (default: %(default)s)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--synthetic", action="store_true", help="let the judges answer, marked so, and end")
    instead.add_argument("--report", action="store_true", help="write what was answered as a page, and end")
    parser.add_argument("-o", "--output", type=Path, default=Path("sides.html"), help="the page (default: %(default)s)")
    add_warehouse_options(parser)
    parser.set_defaults(run=sides)


def sides(options: argparse.Namespace) -> int:
    """Serve the page until interrupted, or let the judges answer, or report."""
    from pleinair.records.preferences import PreferenceLog

    if not options.results and not (options.report and options.log):
        raise ConfigError("no result is given: name two folders that `evaluate --suite exploration` wrote")
    log = PreferenceLog(options.log or options.results[0].resolve().parent / PREFERENCES)
    if options.report:
        return report(log, options.output)
    from pleinair.curation.sources import STYLES
    from pleinair.evaluation.people.shown import read_showing
    from pleinair.evaluation.people.trials import comparisons, controls

    words = {name: style.words for name, style in STYLES.items()}
    showing = read_showing(options.results, options.real)
    possible, known = comparisons(showing, words), controls(showing, words)
    if options.synthetic:
        return answer_synthetically(options, showing, possible, known, log)
    return serve(options, showing, possible, known, log)


def serve(
    options: argparse.Namespace,
    showing: Showing,
    possible: list[Comparison],
    known: list[Comparison],
    log: PreferenceLog,
) -> int:
    """The page, until interrupted."""
    from pleinair.evaluation.people.sitting import SidesSite, Sitting
    from pleinair.evaluation.people.trials import session
    from pleinair.pages.loopback import kept_token, served

    trials = session(possible, known, options.person, options.trials, options.seed)
    sitting = Sitting(showing, trials, log, options.person)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    token = kept_token(log.path.with_suffix(".token"))
    with served(SidesSite(sitting, showing), token, options.port) as address:
        print(
            f"{sitting.left_open} of {len(trials)} questions for {options.person}; Ctrl-C ends: {address}", flush=True
        )
        stop.wait()
    print(f"{len(trials) - sitting.left_open} of {len(trials)} are answered, in {log.path}")
    return 0


def answer_synthetically(
    options: argparse.Namespace,
    showing: Showing,
    possible: list[Comparison],
    known: list[Comparison],
    log: PreferenceLog,
) -> int:
    """Both judges' answers into the log."""
    from pleinair.evaluation.people.judged import answer_as_judges

    look, style_names, concept_of_label = open_judges(options)
    num = answer_as_judges(showing, possible, known, log, look, style_names, concept_of_label)
    print(f"{num} synthetic answers by the judges, none by a person, in {log.path}")
    return 0


def open_judges(options: argparse.Namespace) -> tuple[Look, list[str], dict[str, int]]:
    """Both judges of the suite, fitted to the warehouse's real pictures where they are not yet."""
    from pleinair.cli.exploration import home_of, ready_witnesses, ready_world

    work = home_of(options)
    world = ready_world(work)
    witnesses, _ = ready_witnesses(work, world, reader="off")

    def look(pictures: Pictures) -> dict[str, JudgeScores]:
        return {f"{name} judge": scores for name, scores in witnesses.scores(pictures).items()}

    return look, list(world.style_names), dict(world.concept_of_label)


def report(log: PreferenceLog, output: Path) -> int:
    """The page of what was answered."""
    from pleinair.evaluation.people.report import people_page
    from pleinair.pages import write_page

    events = log.events()
    write_page(output, people_page(events))
    people = sum(one.origin == "human" for one in events)
    said = f"{people} events by people" if people else "no person has judged"
    print(f"{said}, {len(events) - people} synthetic ones; page: {output}")
    return 0
