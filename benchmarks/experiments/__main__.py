"""`python -m benchmarks.experiments lora|progressive|stpo`: run it, or go on with it, and write its page under docs/results."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

NAMES = ("lora", "progressive", "stpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept (default: runs)")
    parser.add_argument("--home", type=Path, default=None, help="the warehouse, as for `pleinair run`")
    parser.add_argument("--out", type=Path, default=None, help="folder of the page (default: docs/results/NAME)")
    parser.add_argument("--base", type=Path, help="stpo: a run to start from, with its packs (default: one is trained)")
    parser.add_argument("--size", help="stpo: full or smallest (default: full)")
    options = parser.parse_args()
    told = {name: value for name in ("base", "size") if (value := getattr(options, name)) is not None}
    if told and options.name != "stpo":
        parser.error(f"{options.name} takes no --{next(iter(told))}: leave it out")
    out = options.out or Path("docs/results") / options.name
    print(import_module(f"benchmarks.experiments.{options.name}").run(options.runs, options.home, out, **told))


if __name__ == "__main__":
    main()
