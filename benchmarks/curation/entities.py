"""Entities: dump parsing, PageRank against scipy and danker, names in captions against ahocorasick_rs. CPU time of one core.

The graphs are synthetic with the skew of a wiki's (links to a page fall off as rank ** -0.6, a twentieth of the pages links
nowhere): no dump of a wiki can be had here. Peers live in virtual environments of their own in the user's cache; danker is
GPL and is only run, as a program. Every caption holds three names, which is many.
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.krablet.rounds import Result, interleaved, result
from pleinair.cli.places import cache_dir
from pleinair.curation.entities.dumps import read_dump
from pleinair.curation.entities.graph import Graph, load_graph, write_graph
from pleinair.curation.entities.matching import Name, build_matcher, load_matcher, save_matcher
from pleinair.curation.entities.pagerank import pagerank, power_steps
from pleinair.curation.entities.wordnet import wordnet_concepts
from tests.curation.entities.dump_files import write_table

PEERS = Path(__file__).with_name("peers")
TOLERANCE = 1e-10
NUM_NAMES, NUM_CAPTIONS, CAPTION_WORDS = 1_000_000, 200_000, 105


def measure(rounds: int) -> list[Result]:
    """Everything but the run of a whole Wikipedia's size."""
    with tempfile.TemporaryDirectory(prefix="pleinair-bench-") as folder:
        return [*_dumps(Path(folder), rounds), *_ranks(Path(folder), rounds), *_names(Path(folder))]


def measure_full_size(rounds: int, num_nodes: int = 6_800_000, num_edges: int = 100_000_000) -> list[Result]:
    """PageRank of as many pages as the English Wikipedia has, with a part of its links; once, in a process of its own."""
    del rounds
    with tempfile.TemporaryDirectory(prefix="pleinair-bench-") as folder:
        written = _alone(_write_synthetic, Path(folder) / "graph", num_nodes, num_edges)
        ranked = _alone(_rank_alone, Path(folder) / "graph")
    millions = num_edges / 1e6
    print(f"{num_nodes} nodes, {num_edges} edges: written {written}, ranked {ranked}", flush=True)
    return [
        result("graph_write_full_mb", written[1], f"MB peak, {millions:.0f} M edges"),
        result("graph_write_full_cpu_s", written[0], f"CPU s, {millions:.0f} M edges, making them included"),
        result("pagerank_full_mb", ranked[1], f"MB peak, {millions:.0f} M edges, mapped file included"),
        result("pagerank_full_cpu_s", ranked[0], f"CPU s, {millions:.0f} M edges, {ranked[2]:.0f} sweeps"),
    ]


def measure_danker(rounds: int, num_nodes: int = 1_000_000, num_edges: int = 10_000_000) -> list[Result]:
    """A plain step beside danker's on a graph of ten million links: minutes a step there, so once and few steps."""
    del rounds
    with tempfile.TemporaryDirectory(prefix="pleinair-bench-") as folder:
        graph = write_graph(Path(folder) / "graph", _synthetic(num_nodes, num_edges), num_nodes)
        return [_against_danker(Path(folder), graph, 1, "pagerank_vs_danker_10m", steps=(1, 3))]


def _alone(function: object, *arguments: object) -> tuple[float, ...]:
    """The function in a fresh process, whose peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)  # type: ignore[arg-type]


def _peak_mb() -> float:
    """Peak memory of this process; `ru_maxrss` would be at least that of the one that started it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024


def _write_synthetic(folder: Path, num_nodes: int, num_edges: int) -> tuple[float, ...]:
    write_graph(folder, _synthetic(num_nodes, num_edges), num_nodes)
    return time.process_time(), _peak_mb()


def _rank_alone(folder: Path) -> tuple[float, ...]:
    began = time.process_time()
    found = pagerank(load_graph(folder), tolerance=TOLERANCE)
    peak = _peak_mb()
    return time.process_time() - began, peak, float(found.num_sweeps)


def _synthetic(
    num_nodes: int, num_edges: int, batch: int = 2_000_000
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    rng = np.random.default_rng(1)
    page = rng.permutation(num_nodes)
    for first in range(0, num_edges, batch):
        count = min(batch, num_edges - first)
        # A draw from a density rank ** -0.6, by its inverse.
        rank = (num_nodes * rng.random(count) ** 2.5).astype(np.int64)
        yield rng.integers(0, num_nodes * 19 // 20, count), page[np.minimum(rank, num_nodes - 1)]


def _seconds(function: object, *arguments: object) -> float:
    began = time.process_time()
    function(*arguments)  # type: ignore[operator]
    return time.process_time() - began


def _dumps(folder: Path, rounds: int, num_rows: int = 1_000_000) -> list[Result]:
    rng = np.random.default_rng(0)
    pages, targets = np.sort(rng.integers(1, 60_000_000, num_rows)), rng.integers(1, 200_000_000, num_rows)
    words = wordnet_concepts(cache_dir(), folder / "wordnet").name_texts.to_pylist()
    titles = [words[number % len(words)].replace(" ", "_") for number in range(num_rows)]
    links = write_table(
        folder,
        "pagelinks",
        zip(pages.tolist(), [0] * num_rows, targets.tolist(), strict=True),
        create="pagelinks-targets",
    )
    names = write_table(folder, "linktarget", zip(range(num_rows), [0] * num_rows, titles, strict=True))
    found = []
    for path, table, columns in (
        (links, "pagelinks", ("pl_from", "pl_from_namespace", "pl_target_id")),
        (names, "linktarget", ("lt_id", "lt_namespace", "lt_title")),
    ):
        plain = path.with_suffix("")
        plain.write_bytes(subprocess.run(["gzip", "-dc", str(path)], capture_output=True, check=True).stdout)

        def ours(path: Path, table: str = table, columns: tuple[str, ...] = columns) -> float:
            return num_rows / _seconds(lambda: sum(len(batch) for batch in read_dump(path, table, columns)))

        values = interleaved(
            rounds,
            {
                "plain": lambda plain=plain, ours=ours: ours(plain),
                "gzip": lambda path=path, ours=ours: ours(path),
                "regex": lambda plain=plain: num_rows / _seconds(_by_regex, plain),
            },
        )
        ratios = statistics.median(a / b for a, b in zip(values["plain"], values["regex"], strict=True))
        for form in ("plain", "gzip"):
            name = f"dump_{table}_rows_per_s" + ("_gunzip" if form == "gzip" else "")
            median = statistics.median(values[form])
            found.append(
                result(
                    name, median, "rows/s", "re, plain" if form == "plain" else "", ratios if form == "plain" else None
                )
            )
    return found


_ROW = re.compile(rb"\((\d+),(\d+),(?:(\d+)|'((?:[^'\\]|\\.)*)')\)")


def _by_regex(path: Path) -> int:
    return sum(1 for line in path.open("rb") if line.startswith(b"INSERT") for _ in _ROW.findall(line))


def _ranks(folder: Path, rounds: int) -> list[Result]:
    graph = write_graph(folder / "million", _synthetic(1_000_000, 10_000_000), 1_000_000)
    python = peer_python("graphs", "scipy==1.17.1", "numpy==2.4.6", "ahocorasick_rs==1.0.3")
    script = [python, str(PEERS / "scipy_pagerank.py"), str(folder / "million")]
    values = interleaved(
        rounds,
        {
            "ours ms": lambda: 1000 * _seconds(lambda: pagerank(graph, tolerance=TOLERANCE)),
            "scipy ms": lambda: 1000 * _first_number([*script, "float64", str(TOLERANCE)]),
            "scipy float32 ms": lambda: 1000 * _first_number([*script, "float32", "1e-7"]),
        },
    )
    _first_number([*script, "float64", str(TOLERANCE)])
    ours = pagerank(graph, tolerance=TOLERANCE)
    apart = float(np.abs(ours.scores - np.load(folder / "million" / "scipy.npy")).sum())
    print(f"  {graph.num_edges} edges, {ours.num_sweeps} sweeps, L1 distance to scipy {apart:.1e}", flush=True)
    assert apart < 1e-8, "the same vector"
    seconds = statistics.median(values["ours ms"]) / 1000
    return [
        result("pagerank_vs_scipy", seconds, "CPU s", "scipy CSR float64", _ratio(values["ours ms"], values["scipy ms"])),
        result(
            "pagerank_vs_scipy_float32", seconds, "CPU s", "scipy CSR float32, tolerance 1e-7",
            _ratio(values["ours ms"], values["scipy float32 ms"]),
        ),
        _against_danker(
            folder, write_graph(folder / "small", _synthetic(100_000, 1_000_000), 100_000), rounds, "pagerank_vs_danker"
        ),
    ]  # fmt: skip


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _against_danker(folder: Path, graph: Graph, rounds: int, name: str, steps: tuple[int, int] = (2, 8)) -> Result:
    """CPU time of a step: danker's for many steps less that for few, and ours for as many."""
    few, many = steps
    links = folder / "danker.links"
    targets = np.repeat(np.arange(graph.num_nodes), np.diff(graph.starts))
    pairs = np.stack([np.asarray(graph.sources), targets])[:, np.lexsort((targets, graph.sources))]
    # From 1: danker takes node 0 for no node.
    np.savetxt(links, pairs.T + 1, fmt="%d", delimiter="\t")
    python = peer_python("danker", "danker==0.8.1")
    between = many - few
    values = interleaved(
        rounds,
        {
            "danker ms a step": lambda: (
                1000 * (_danker(python, links, many)[0] - _danker(python, links, few)[0]) / between
            ),
            "ours ms a step": lambda: 1000 * _seconds(lambda: power_steps(graph, steps=between)) / between,
        },
    )
    _check_danker(graph, _danker(python, links, few)[1], few)
    median = statistics.median(values["ours ms a step"])
    return result(
        name, median, f"ms a step, {graph.num_edges / 1e6:.1f} M links", "danker 0.8.1 in memory, per step",
        _ratio(values["danker ms a step"], values["ours ms a step"]),
    )  # fmt: skip


def _danker(python: str, links: Path, steps: int) -> tuple[float, str]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [python, "-m", "danker", "-i", "-p", "12", str(links), "0.85", str(steps), "0.1"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, said


def _check_danker(graph: Graph, said: str, steps: int) -> None:
    ours = power_steps(graph, steps=steps)
    theirs = {int(node): float(score) for node, score in re.findall(r"^(\d+)\t([\d.]+)$", said, re.MULTILINE)}
    apart = max(abs(ours[node - 1] - score) for node, score in theirs.items())
    print(f"  {len(theirs)} scores, at most {apart:.1e} from danker's", flush=True)
    assert len(theirs) > 0.9 * graph.num_nodes
    assert apart < 1e-9, "danker's own scores"


def _names(folder: Path) -> list[Result]:
    names, captions = _texts()
    (folder / "names.txt").write_text("\n".join(names))
    (folder / "captions.txt").write_text("\n".join(captions))
    build_seconds, build_mb = _alone(_build_names, folder)
    match_seconds, match_mb, hits = _alone(_match_names, folder)
    few = "\n".join(captions[:: NUM_CAPTIONS // 20_000])
    (folder / "few.txt").write_text(few)
    python = peer_python("graphs", "scipy==1.17.1", "numpy==2.4.6", "ahocorasick_rs==1.0.3")
    command = [python, str(PEERS / "ahocorasick_names.py"), str(folder / "names.txt"), str(folder / "few.txt")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    theirs, rate = 20_000 / float(said[1]), NUM_CAPTIONS / match_seconds
    print(
        f"  ahocorasick_rs: built in {said[0]} s, {theirs:.0f} captions/s, {said[2]} MB; ours {rate:.0f}/s, {hits:.0f} hits",
        flush=True,
    )
    return [
        result("entities_captions_per_s", rate, "captions/s", "ahocorasick_rs, overlapping, no plurals", rate / theirs),
        result("entities_match_mb", match_mb, "MB peak", "ahocorasick_rs", match_mb / float(said[2])),
        result("entities_build_cpu_s", build_seconds, "CPU s", "ahocorasick_rs", build_seconds / float(said[0])),
        result("entities_build_mb", build_mb, "MB peak"),
    ]


def _texts() -> tuple[list[str], list[str]]:
    """Made-up words with the frequencies of a language, names of one to five, captions with three names each."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = ["".join(rng.choice(letters, length)) for length in rng.integers(3, 10, 300_000)]
    shares = np.cumsum(np.arange(1, len(vocabulary) + 1) ** -0.9)

    def draw(count: int) -> list[str]:
        places = np.searchsorted(shares, rng.random(count) * shares[-1])
        return [vocabulary[place] for place in places.tolist()]

    lengths = rng.choice([1, 2, 3, 4, 5], NUM_NAMES * 5 // 4, p=[0.05, 0.42, 0.3, 0.14, 0.09])
    words = iter(draw(int(lengths.sum())))
    names = list(dict.fromkeys(" ".join(next(words) for _ in range(length)) for length in lengths.tolist()))[:NUM_NAMES]
    captions = []
    for _ in range(NUM_CAPTIONS):
        caption = draw(CAPTION_WORDS - 7)
        for place, number in zip((0, 30, 60), rng.integers(0, len(names), 3).tolist(), strict=True):
            caption.insert(place, names[number])
        captions.append(" ".join(caption))
    return names, captions


def _build_names(folder: Path) -> tuple[float, ...]:
    names = (folder / "names.txt").read_text().splitlines()
    began = time.process_time()
    made = build_matcher(
        (Name(0, number, name) for number, name in enumerate(names)), [f"Q{n}" for n in range(len(names))]
    )
    save_matcher(made, folder / "names.npz")
    return time.process_time() - began, _peak_mb()


def _match_names(folder: Path) -> tuple[float, ...]:
    matcher, _ = load_matcher(folder / "names.npz")
    hits, seconds, batch = 0, 0.0, []
    with (folder / "captions.txt").open() as lines:
        for line in lines:
            batch.append(line)
            if len(batch) == 1024:
                began = time.process_time()
                hits += len(matcher.match(batch).entities)
                seconds += time.process_time() - began
                batch = []
    began = time.process_time()
    hits += len(matcher.match(batch).entities)
    return seconds + time.process_time() - began, _peak_mb(), float(hits)


def _first_number(command: list[str]) -> float:
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])


def peer_python(name: str, *requirements: str) -> str:
    """The Python of a virtual environment with these packages, made where it is not there yet."""
    place = cache_dir() / "bench-peers" / name
    if not (place / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        try:
            subprocess.run([str(place / "bin" / "pip"), "install", "-q", *requirements], check=True)
        except subprocess.CalledProcessError:
            shutil.rmtree(place)
            raise
    return str(place / "bin" / "python")
