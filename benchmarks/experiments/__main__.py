"""`python -m benchmarks.experiments NAME`: run it, or go on with it, and write its page under docs/results."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

NAMES = ("lora", "merging", "progressive", "tdm")
FROM_A_BASE = ("merging", "tdm")
"""Those that start from a model of one's choice, and have a size at which every line is run in minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept (default: runs)")
    parser.add_argument("--home", type=Path, default=None, help="the warehouse, as for `pleinair run`")
    parser.add_argument("--out", type=Path, default=None, help="folder of the page (default: docs/results/NAME)")
    parser.add_argument(
        "--base", default="drawings-64", help=f"{', '.join(FROM_A_BASE)}: what to start from, as --parent"
    )
    parser.add_argument("--small", action="store_true", help=f"{', '.join(FROM_A_BASE)}: every line once, in minutes")
    options = parser.parse_args()
    out = options.out or Path("docs/results") / options.name
    more: dict[str, Any] = {"base": options.base, "small": options.small} if options.name in FROM_A_BASE else {}
    print(import_module(f"benchmarks.experiments.{options.name}").run(options.runs, options.home, out, **more))


if __name__ == "__main__":
    main()
