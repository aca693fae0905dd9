"""`pleinair cluster` and `pleinair review`: clusters of kept pictures, and what people decide on them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pleinair.cli.curate import add_warehouse_options, open_warehouse

if TYPE_CHECKING:
    from pleinair.curation.clusters.warehouse import ClusterRow

Answer = Literal["keep", "drop", "skip"]


def register(verbs: Any) -> None:
    """Add the verbs `cluster` and `review`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "cluster",
        help="cluster what was embedded, name and flag the clusters",
        description="Hierarchical k-means over the embedded pictures, a page of contact sheets, flags for review.",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. flags.max_similarity=0.85"
    )
    parser.add_argument("--page", type=Path, default=Path("clusters.html"), help="where (default: %(default)s)")
    add_warehouse_options(parser)
    parser.set_defaults(run=cluster)
    _register_review(verbs)


def _register_review(verbs: Any) -> None:
    parser: argparse.ArgumentParser = verbs.add_parser(
        "review",
        help="keep or drop flagged clusters",
        description="Decide on one cluster, or, without one, on each flagged cluster in turn at the terminal.",
    )
    parser.add_argument("decision", nargs="?", choices=["keep", "drop"], help="what to do with the cluster")
    parser.add_argument("cluster", nargs="?", help="its path, such as 3/17, as the page prints it")
    parser.add_argument("--reason", default="", help="why; kept with the decision and on every dropped picture")
    add_warehouse_options(parser)
    parser.set_defaults(run=review)


def cluster(options: argparse.Namespace) -> int:
    """Cluster, write the page, say what is to review."""
    from pleinair.cli.progress import ProgressLine
    from pleinair.config import override
    from pleinair.curation import ObjectStore
    from pleinair.curation.clusters.reviews import apply_reviews, decisions, read_events, record_flags, to_review
    from pleinair.curation.clusters.warehouse import ClusterConfig, cluster_pictures, clustered_table
    from pleinair.curation.sheets import write_cluster_page

    config, line = override(ClusterConfig(), options.set), ProgressLine("k-means runs")
    store = ObjectStore(options.home / "store")
    with open_warehouse(options) as db:
        rows = cluster_pictures(db, store, config, on_progress=line.update)
        line.close()
        record_flags(db, rows)
        apply_reviews(db)
        flagged = to_review(rows, decisions(read_events(db)))
        write_cluster_page(options.page, rows, flagged, clustered_table(db), store)
    leaves = sum(row.level == 0 for row in rows)
    print(
        f"{leaves} leaf clusters, {len(flagged)} clusters to review: {options.page}, or 'pleinair review'", flush=True
    )
    return 0


def review(options: argparse.Namespace) -> int:
    """Record a decision, or ask for one after the other."""
    from pleinair.curation.clusters.reviews import decide, decisions, newest_run, read_clusters, read_events, to_review
    from pleinair.records.errors import ConfigError

    if options.decision and not options.cluster:
        raise ConfigError(f"'pleinair review {options.decision}' needs a cluster: give its path, such as 3/17")
    with open_warehouse(options) as db:
        if options.decision:
            print(f"{decide(db, options.cluster, options.decision, options.reason)} pictures changed")
            return 0
        for row in to_review(read_clusters(db, newest_run(db)), decisions(read_events(db))):
            asked = ask_for_decision(row, input)
            if asked is None:
                break
            if asked[0] != "skip":
                print(f"{decide(db, row.cluster, asked[0], asked[1])} pictures changed")
    return 0


def ask_for_decision(row: ClusterRow, read_line: Callable[[str], str]) -> tuple[Answer, str] | None:
    """(`keep`, `drop` or `skip`, reason) for a cluster; None to stop. Asks again until it understands the answer."""
    print(f"\n{row.name} ({row.cluster}, {row.size} pictures)\n  {'; '.join(row.flags)}")
    print("".join(f"  {name}\n" for name in row.nearest[:6]), end="")
    words: dict[str, Answer] = {"k": "keep", "d": "drop", "s": "skip"}
    while True:
        try:
            answer, _, reason = (
                read_line("  keep, drop, skip or quit [k/d/s/q, then a reason]: ").strip().partition(" ")
            )
        except EOFError:
            return None
        if answer[:1].lower() == "q":
            return None
        if decision := words.get(answer[:1].lower()):
            return decision, reason.strip()
        print(f"  {answer!r} is none of k, d, s, q", file=sys.stderr)
