"""`python -m benchmarks.curation [NAME ...]`: the benchmarks of curation; writes results.json and README.md's table.

All by default. A figure that is measured again replaces the old one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from benchmarks.curation import (
    caption_tower,
    captioning,
    clusters,
    detectors,
    duplicates,
    embeddings,
    entities,
    filters,
    hashes,
    loader,
    mixes,
    near,
    pipeline,
    semantic,
    tags,
    tail,
    takedowns,
    web,
)
from benchmarks.curation.figures import RESULTS
from benchmarks.curation.figures import main as write_table
from benchmarks.krablet.rounds import Result, commit, machine

BENCHMARKS: dict[str, Callable[[int], list[Result]]] = {
    "caption-tower": lambda rounds: caption_tower.measure(),
    "captioning": captioning.measure,
    "clusters": clusters.measure,
    "detectors-ai": lambda rounds: detectors.measure_generated(),
    "detectors-frame": lambda rounds: detectors.measure_frames(),
    "duplicates": lambda rounds: duplicates.measure(),
    "embeddings": embeddings.measure,
    "entities": entities.measure,
    "entities-danker": entities.measure_danker,
    "entities-full-size": entities.measure_full_size,
    "filters": filters.measure,
    "loader": loader.measure,
    "mixes": lambda rounds: mixes.measure(),
    "hashes": hashes.measure,
    "near": near.measure,
    "pipeline": lambda rounds: pipeline.measure(),
    "semantic": lambda rounds: semantic.measure(),
    "tags": lambda rounds: tags.measure(),
    "tail-cifar": lambda rounds: tail.measure_cifar(),
    "tail-drawings": lambda rounds: tail.measure_words("drawings"),
    "tail-openclipart": lambda rounds: tail.measure_words("openclipart"),
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
        write_table()


if __name__ == "__main__":
    main()
