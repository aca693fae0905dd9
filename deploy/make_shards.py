"""Writes the manifests of shards 1 to N-1, which are shard 0's with another number: `python deploy/make_shards.py 3`."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "shards"
CATALOG = "--dsn=host=krablet-0-rw"  # the first shard holds the catalog, whichever shard a funnel serves


def shard(number: int) -> str:
    """The manifest of one shard."""
    _, _, body = (FOLDER / "shard-0.yaml").read_text("ascii").split("\n", 2)
    own = body.replace("krablet-0", f"krablet-{number}").replace("--shard=0", f"--shard={number}")
    made = f"# Shard {number}, made from shard-0.yaml by make_shards.py: change that one.\n"
    return made + own.replace(f"--dsn=host=krablet-{number}-rw", CATALOG)


def main(count: int) -> None:
    """Write shards 1 to count - 1."""
    for number in range(1, count):
        (FOLDER / f"shard-{number}.yaml").write_text(shard(number), "ascii")


if __name__ == "__main__":
    main(int(sys.argv[1]))
