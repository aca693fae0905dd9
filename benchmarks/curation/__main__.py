"""`python -m benchmarks.curation [NAME ...]`: the benchmarks of curation; writes results.json beside this file.

A figure that is measured again replaces the old one.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

from benchmarks.krablet.rounds import commit, machine

RESULTS = Path(__file__).with_name("results.json")
BENCHMARKS = {
    "clusters": "benchmarks.curation.clusters",
    "embeddings": "benchmarks.curation.embeddings",
    "semantic": "benchmarks.curation.semantic",
    "tags": "benchmarks.curation.tags",
    "tail": "benchmarks.curation.tail",
}
"""Each module has `measure() -> list[Result]`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="which benchmarks (default: all)")
    chosen = parser.parse_args().names or list(BENCHMARKS)
    old = {row["name"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    for name in chosen:
        print(name, flush=True)
        for row in importlib.import_module(BENCHMARKS[name]).measure():
            old[row["name"]] = {**row, "commit": commit(), "machine": machine()}
        RESULTS.write_text(json.dumps(list(old.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
