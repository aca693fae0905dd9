"""`pleinair entities build | match | coverage`: what there is to show, which pictures show it, and what a sample keeps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import add_warehouse_options, close_run, open_warehouse, show_workers

if TYPE_CHECKING:
    from pleinair.curation.entities.build import Built
    from pleinair.curation.entities.concepts import Concepts


def register(verbs: Any) -> None:
    """Add the noun `entities` with its verbs."""
    noun: argparse.ArgumentParser = verbs.add_parser(
        "entities", help="which of the world's things the captions name", description=__doc__
    )
    actions = noun.add_subparsers(title="verbs", metavar="VERB", required=True)
    _register_build(actions)
    _register_match(actions)
    _register_coverage(actions)


def _register_build(actions: Any) -> None:
    parser: argparse.ArgumentParser = actions.add_parser(
        "build",
        help="rank concepts and gather their names",
        description="Rank the concepts of WordNet or of a Wikipedia's dumps by PageRank and gather their names.",
    )
    parser.add_argument(
        "source",
        help="'wordnet', or a folder of a wiki's SQL dumps (page, redirect, page_props, linktarget, pagelinks)",
    )
    parser.add_argument("--share", type=float, default=0.9, help="part of the ranked concepts to keep (default: 0.9)")
    add_warehouse_options(parser)
    parser.set_defaults(run=build)


def _register_match(actions: Any) -> None:
    parser: argparse.ArgumentParser = actions.add_parser(
        "match", help="look for every name in every caption", description="Run the queue stage `entities` to the end."
    )
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default: %(default)s)")
    add_warehouse_options(parser)
    parser.set_defaults(run=match)


def _register_coverage(actions: Any) -> None:
    parser: argparse.ArgumentParser = actions.add_parser(
        "coverage",
        help="what the kept pictures cover; with --sample, a sample that loses nothing",
        description="Count pictures per entity, draw a rare-first sample, and count again to prove that none is lost.",
    )
    parser.add_argument("--sample", type=int, metavar="N", help="draw N of the kept pictures")
    parser.add_argument("--keep", type=int, default=1, metavar="K", help="pictures every entity keeps (default: 1)")
    parser.add_argument(
        "--power", type=float, default=0.5, help="0 draws evenly, 1 favours the rare most (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the tables as one HTML page")
    parser.add_argument("--keys", type=Path, metavar="FILE", help="write the sample's keys, one a line")
    add_warehouse_options(parser)
    parser.set_defaults(run=coverage)


def names_file(options: argparse.Namespace) -> Path:
    """The names that workers look for."""
    return Path(options.home) / "entities" / "names.npz"


def build(options: argparse.Namespace) -> int:
    """Build; a second build replaces the names."""
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation.entities.build import build as build_entities

    concepts = _concepts(options)
    line = ProgressLine("rows")
    with open_warehouse(options) as db:
        done = build_entities(
            db,
            concepts,
            names_file(options),
            share=options.share,
            on_rows=lambda rows: line.update(rows, len(concepts.keys)),
        )
    line.close()
    print(_built(done), flush=True)
    return 0


def _concepts(options: argparse.Namespace) -> Concepts:
    from pleinair.cli.places import cache_dir
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation.entities.concepts import wikipedia_concepts
    from pleinair.curation.entities.wordnet import wordnet_concepts

    graph = options.home / "entities" / "graph"
    if options.source == "wordnet":
        return wordnet_concepts(cache_dir(), graph, on_fetch=lambda progress: print(f"fetching {progress}", flush=True))
    line = ProgressLine("dumps")
    found = wikipedia_concepts(
        Path(options.source), graph, on_table=lambda table, done, total: line.update(done, total, f"bytes of {table}")
    )
    line.close()
    return found


def _built(done: Built) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in done.reasons.items())
    return (
        f"{done.num_concepts} concepts, {done.num_links} links, PageRank in {done.num_sweeps} sweeps\n"
        f"top {done.num_top}, without {done.num_top - done.num_kept} that no picture can show ({reasons or 'none'})\n"
        f"{done.num_kept} entities kept under {done.num_names} names, version {done.version}"
    )


def match(options: argparse.Namespace) -> int:
    """Match; exit code 1 when pictures are stuck."""
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation.entities.stage import match_all

    line = ProgressLine("match")
    with open_warehouse(options) as db:
        run = match_all(
            db, names_file(options), processes=options.processes, on_progress=lambda now: show_workers(line, now)
        )
    line.close()
    print(f"{sum(run.completed.values())} pictures matched", flush=True)
    return close_run(options.home, run)


def coverage(options: argparse.Namespace) -> int:
    """Coverage; a sample that would lose an entity is an error."""
    from pleinair.curation.entities.report import coverage_page, coverage_text, read_pool, sampled
    from pleinair.pages import write_page

    names, sample = names_file(options), None
    with open_warehouse(options) as db:
        pool = read_pool(db, names)
        if options.sample is not None:
            size = min(options.sample, len(pool.keys))
            sample = sampled(db, names, pool, size, keep=options.keep, power=options.power, seed=options.seed)
    print(coverage_text(pool, sample))
    if sample:
        print(f"{len(sample.keys)} pictures, {sample.num_required} of them required: no entity was lost", flush=True)
        if options.keys:
            write_page(options.keys, "".join(f"{key}\n" for key in sample.keys))
    if options.page:
        write_page(options.page, coverage_page(pool, sample))
        print(f"{options.page} shows the commonest, the rarest and the missing", flush=True)
    return 0
