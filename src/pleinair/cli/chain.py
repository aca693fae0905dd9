"""Running a curation recipe: each of its commands as a process, a journal of what was done, one page at the end.

    recipe.toml --> ingest SOURCE ... --> step --> step ... --> HOME/curations/NAME/index.html
                        each with --home, its output shown and kept, its time in HOME/curations/NAME/journal.json

A chain that was stopped, or whose process was killed, is started again by the same command: steps that are incremental
look for what is new, those marked `once` are skipped while what they were made from is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pleinair.cluster.processes import end_with_parent
from pleinair.records.errors import ConfigError, PleinairError

if TYPE_CHECKING:
    from pleinair.krablet import Database
    from pleinair.recipes.chain import Chain, Step

KEPT_LINES = 40


@dataclass(frozen=True)
class Done:
    """One step, as the journal keeps it."""

    run: str
    digest: str
    """Of the pictures that were there and of the commands up to this one."""
    seconds: float
    cpu_seconds: float
    """Of the step's processes, the workers included."""
    output: list[str]
    """The last lines it printed."""


def run_chain(path: Path, options: argparse.Namespace) -> int:
    """Run a recipe to its end and write its page; raises PleinairError when a step fails."""
    from pleinair.cli.chain_page import write_chain_page
    from pleinair.cli.curate import open_warehouse
    from pleinair.cluster.locks import only_one
    from pleinair.recipes.chain import read_chain

    _refuse_what_belongs_to_steps(options)
    chain, place = read_chain(path), options.home.resolve() / "curations" / path.stem
    place.mkdir(parents=True, exist_ok=True)
    options.home = options.home.resolve()
    with only_one(place), open_warehouse(options) as db:
        done = run_commands(chain, path, place, options, db)
        page = write_chain_page(place, chain, path.read_text(encoding="utf-8"), done, db, options.home)
    print(
        f"\ndone in {sum(step.seconds for step in done) / 60:.1f} minutes (skipped steps not counted again)\npage: {page}"
    )
    return 0


def _refuse_what_belongs_to_steps(options: argparse.Namespace) -> None:
    given = [*(f"--set {one}" for one in options.set), *(["--fetch-again"] if options.fetch_again else [])]
    if given:
        raise ConfigError(
            f'{given[0]} belongs to a step of the recipe: write it there, as in run = "curate mixed {given[0]}"'
        )


def run_commands(chain: Chain, path: Path, place: Path, options: argparse.Namespace, db: Database) -> list[Done]:
    """Every command in order; what was done for each, now or before."""
    journal = place / "journal.json"
    before = {entry["run"]: Done(**entry) for entry in json.loads(journal.read_text())} if journal.exists() else {}
    places = {"pages": str(place), "recipes": str(path.resolve().parent)}
    commands, done = chain.commands(), list[Done]()
    for number, step in enumerate(commands, 1):
        digest = hashlib.sha256(
            json.dumps([[one.run for one in commands[:number]], count_by_source(db)]).encode()
        ).hexdigest()
        print(f"[{number}/{len(commands)}] pleinair {step.run}", flush=True)
        last = before.get(step.run)
        if step.once and last is not None and last.digest == digest:
            print("  done before, of the same pictures", flush=True)
            done.append(last)
            continue
        done.append(run_step(step, step.arguments(places), options, digest))
        before[step.run] = done[-1]
        _write_journal(journal, [before[one.run] for one in commands if one.run in before])
    return done


def count_by_source(db: Database, where: str = "TRUE") -> dict[str, int]:
    """How many pictures of each source are listed, or satisfy a condition; empty before the first ingest."""
    from pleinair.curation import images_table

    images_table(db)  # declared, where nothing was ingested yet
    counted = db.scan("images", where=where, aggregate={"pictures": "count(*)"}, group_by="source", order_by="source")
    return {row["source"]: row["pictures"] for row in counted.to_table().to_pylist()}


def run_step(step: Step, words: list[str], options: argparse.Namespace, digest: str) -> Done:
    """Run one command as a process of its own. Raises PleinairError when it fails, KeyboardInterrupt on Ctrl-C."""
    where = ["--home", str(options.home), *(["--dsn", options.dsn] if options.dsn else [])]
    began, cpu_began = time.monotonic(), _children_cpu_seconds()
    process = _started([sys.executable, "-m", "pleinair.cli.main", *words, *where])
    output = list(_shown(process))
    code = process.wait()
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise PleinairError(
            f"the step 'pleinair {shlex.join(words)}' ended with {code}: see what it said above; "
            "the same command goes on from this step"
        )
    return Done(step.run, digest, time.monotonic() - began, _children_cpu_seconds() - cpu_began, output[-KEPT_LINES:])


def _shown(process: subprocess.Popen[str]) -> Iterator[str]:
    """The lines a process prints, also printed here."""
    assert process.stdout is not None
    with _waited_for(process), process.stdout:
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            yield line.rstrip("\n")


@contextmanager
def _waited_for(process: subprocess.Popen[str]) -> Iterator[None]:
    """Ctrl-C reaches the process too: let it stop in its own way before we do."""
    try:
        yield
    except BaseException as ended:
        if not isinstance(ended, KeyboardInterrupt):
            process.terminate()
        process.wait()
        raise


def _started(command: list[str]) -> subprocess.Popen[str]:
    """A process that, on Linux, is sent SIGTERM when the chain dies, so that no step outlives it."""
    if sys.platform != "linux":
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # Python swallows what a signal handler raises while it forks, and a SIGTERM of just then would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=_between_fork_and_exec())
    except BaseException:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        raise
    with _waited_for(process):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return process


def _between_fork_and_exec() -> Callable[[], None]:
    end = end_with_parent(signal.SIGTERM)

    def prepare() -> None:
        if end is not None:
            end()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    return prepare


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _write_journal(path: Path, done: list[Done]) -> None:
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(json.dumps([asdict(step) for step in done], indent=1) + "\n")
    os.replace(staging, path)
