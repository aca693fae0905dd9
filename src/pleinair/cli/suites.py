"""`pleinair evaluate CHECKPOINT --suite NAME`: its options, which of them fit together, and who does the work."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pleinair.cli.published import SUITES, add_judge_options
from pleinair.records.errors import ConfigError

EXPLORATION = "exploration"
REFERENCES = ("real", "reconstruction", "untrained", "shipped")
OF_RUNS = ("set", "parent", "with_optimiser", "from_scratch")
OF_EXPLORATION = ("size", "concepts")
OF_PUBLISHED = ("judge", "judge_model", "judge_set", "limit", "copies")
OF_SUITES = (*OF_EXPLORATION, *OF_PUBLISHED, "prompts", "output", "seed")


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Options of `evaluate` that belong to suites."""
    parser.add_argument(
        "--suite",
        choices=[EXPLORATION, *SUITES],
        help="measure a checkpoint, a packaged file, a run's folder, or one of "
        + ", ".join(REFERENCES)
        + "; all but exploration are published benchmarks, whose prompts and judge you bring",
    )
    parser.add_argument("--size", choices=["quick", "full"], help="how much is drawn (default: quick)")
    parser.add_argument("--seed", type=int, help="other pictures of the same prompts (default: 0)")
    parser.add_argument(
        "--concepts", metavar="RECIPE", help="what it was trained on (default: the run's, or drawings-64)"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts of your own, one JSON object per line; of a published benchmark the file or folder it publishes",
    )
    parser.add_argument("-o", "--output", type=Path, help="folder to write (default: SUITE/NAME)")
    add_judge_options(parser)


def evaluate_with(options: argparse.Namespace) -> int:
    """Run the suite that the options name. Raises ConfigError for options that it would have to ignore."""
    refuse(options, OF_RUNS, f"is of runs and their recipes; --suite {options.suite} measures what is there")
    if options.suite == EXPLORATION:
        from pleinair.cli.exploration import evaluate_exploration

        refuse(options, OF_PUBLISHED, "is for published benchmarks: the suite exploration has judges of its own")
        if options.prompts is not None:
            refuse(options, ("size",), "chooses among the suite's own prompts: --prompts are asked all, each once")
        return evaluate_exploration(_with_seed(options))
    from pleinair.cli.published import evaluate_published

    refuse(options, OF_EXPLORATION, f"is for the suite exploration: --limit and --copies make {options.suite} smaller")
    return evaluate_published(_with_seed(options))


def _with_seed(options: argparse.Namespace) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), "seed": options.seed or 0})


def refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise ConfigError, naming the first of these options that was given."""
    for name in names:
        value = getattr(options, name, None)
        if value is not None and value is not False and value not in ("", []):
            raise ConfigError(f"--{name.replace('_', '-')} {why}")
