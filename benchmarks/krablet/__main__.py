"""`python -m benchmarks.krablet [NAME ...]`: the benchmarks of the warehouse; writes results.json beside this file.

Names: claim, peers, latency, faults, workers, funnel, rpc, shards, sizing; all by default. A figure that is measured
again replaces the old one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.krablet import claim, faults, funnel, latency, peers_drain, rpc, shards, sizing, workers
from benchmarks.krablet.rounds import commit, machine, temporary_server

RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which benchmarks (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--rows", type=int, default=100_000, help="of the claim benchmark; fewer measure mostly its start"
    )
    args = parser.parse_args()
    benchmarks = {
        "claim": lambda database: claim.measure(database, args.rounds, args.rows),
        "peers": lambda database: peers_drain.measure(database, args.rounds, 40_000),
        "latency": latency.measure,
        "faults": faults.measure,
        "workers": workers.measure,
        "funnel": lambda database: funnel.measure(database, args.rounds),
        "rpc": lambda database: rpc.measure(database, args.rounds),
        "shards": lambda database: shards.measure(database, args.rounds),
        "sizing": sizing.measure,
    }
    old = {row["name"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    for name in args.names or benchmarks:
        with temporary_server() as database:
            for row in benchmarks[name](database):
                old[row["name"]] = {**row, "commit": commit(), "machine": machine()}
        RESULTS.write_text(json.dumps(list(old.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
