"""`python -m benchmarks.curation [NAME ...]`: the benchmarks of curation; writes results.json beside this file.

All by default. A figure that is measured again replaces the old one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.curation import (
    captioning,
    clusters,
    duplicates,
    embeddings,
    entities,
    hashes,
    near,
    semantic,
    tags,
    tail,
    takedowns,
    web,
)
from benchmarks.krablet.rounds import Result, commit, machine

RESULTS = Path(__file__).with_name("results.json")
BENCHMARKS: dict[str, Callable[[int], list[Result]]] = {
    "captioning": captioning.measure,
    "clusters": clusters.measure,
    "duplicates": lambda rounds: duplicates.measure(),
    "embeddings": embeddings.measure,
    "entities": entities.measure,
    "entities-full-size": entities.measure_full_size,
    "hashes": hashes.measure,
    "near": near.measure,
    "semantic": lambda rounds: semantic.measure(),
    "tags": lambda rounds: tags.measure(),
    "tail": lambda rounds: tail.measure(),
    "takedowns": lambda rounds: takedowns.measure(),
    "web": lambda rounds: web.measure(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which benchmarks: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    old = {row["name"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    for name in args.names or BENCHMARKS:
        for row in BENCHMARKS[name](args.rounds):
            old[row["name"]] = {**row, "commit": commit(), "machine": machine()}
        RESULTS.write_text(json.dumps(list(old.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
