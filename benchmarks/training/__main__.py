"""`python -m benchmarks.training [NAME ...]`: the benchmarks of training; writes results.json and the pages that show it.

All by default. A figure that is measured again replaces the old one. A benchmark is a module here, imported when it runs.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module

from benchmarks.krablet.rounds import commit, machine
from benchmarks.training.figures import RESULTS, modules
from benchmarks.training.figures import main as write_pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which benchmarks: {', '.join(modules())} (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    old = {row["name"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    measured = commit()  # before anything runs: what is edited meanwhile was not measured
    for name in args.names or modules():
        for row in import_module(f"benchmarks.training.{name}").measure(args.rounds):
            old.pop(row["name"], None)  # rows stand in the order in which they are measured
            old[row["name"]] = {**row, "commit": measured, "machine": machine()}
        RESULTS.write_text(json.dumps(list(old.values()), indent=1) + "\n")
        write_pages()


if __name__ == "__main__":
    main()
