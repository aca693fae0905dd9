"""`python -m benchmarks.experiments.pilot NAME`: one seed of few arms, and the numbers by which constants are fixed.

Nothing is published; what it trains is found again by the experiment itself where the constants stay.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

NAMES = ("stpo", "tdm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept (default: runs)")
    parser.add_argument("--base", help="the model to start from, as --parent (default: the experiments' own)")
    parser.add_argument("--small", action="store_true", help="every line of it once, in minutes")
    options = parser.parse_args()
    module = import_module(f"benchmarks.experiments.{options.name}")
    for line in module.pilot(options.runs, options.base, options.small):
        print(line, flush=True)


if __name__ == "__main__":
    main()
