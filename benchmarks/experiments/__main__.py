"""`python -m benchmarks.experiments NAME`: run it, or go on with it, and write its page under docs/results."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

NAMES = ("lora", "progressive", "prompt_pool")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept (default: runs)")
    parser.add_argument("--home", type=Path, default=None, help="the warehouse, as for `pleinair run`")
    parser.add_argument("--out", type=Path, default=None, help="folder of the page (default: docs/results/NAME)")
    options = parser.parse_args()
    out = options.out or Path("docs/results") / options.name
    print(import_module(f"benchmarks.experiments.{options.name}").run(options.runs, options.home, out))


if __name__ == "__main__":
    main()
