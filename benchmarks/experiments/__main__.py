"""`python -m benchmarks.experiments NAME`: run it, or go on with it, and write its page under docs/results."""

from __future__ import annotations

import argparse
import inspect
import signal
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.experiments.results import sitting

NAMES = (
    "ground",
    "guidance",
    "hacking",
    "homogenisation",
    "lora",
    "merging",
    "progressive",
    "prompt_pool",
    "rubric",
    "stpo",
    "tdm",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept (default: runs)")
    parser.add_argument("--home", type=Path, default=None, help="the warehouse, as for `pleinair run`")
    parser.add_argument("--out", type=Path, default=None, help="folder of the page (default: docs/results/NAME)")
    parser.add_argument("--base", help="the model to start from, as --parent (default: the experiment's own)")
    parser.add_argument("--small", action="store_true", help="every line of it once, in minutes")
    options = parser.parse_args()
    module = "ground_page" if options.name == "ground" else options.name
    run = import_module(f"benchmarks.experiments.{module}").run
    more = {name: value for name in ("base", "small") if (value := getattr(options, name))}
    if unknown := sorted(set(more) - set(inspect.signature(run).parameters)):
        parser.error(f"{options.name} takes no --{unknown[0]}: leave it out")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with sitting(options.runs, options.name):
        print(run(options.runs, options.home, options.out or Path("docs/results") / options.name, **more))


if __name__ == "__main__":
    main()
