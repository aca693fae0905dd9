"""A curation from sources to a training set, as a list of the commands that one could type.

    title = "Pictures that install anywhere"
    sources = ["drawings", "openclipart", "photos/"]

    [[steps]]
    run = "curate mixed"

    [[steps]]
    run = "cluster --page {pages}/clusters.html"
    once = true                                    # not incremental: only again when what it is made from has changed

Every step is a verb of `pleinair` that goes on where it was stopped. `{pages}` is the folder of the chain's pages,
`{recipes}` that of the recipe file.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pleinair.config import from_document
from pleinair.records.errors import ConfigError

SUFFIX = ".toml"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command, without the word `pleinair`."""

    run: str
    """As typed in a shell, without pipes."""
    once: bool = False
    """Skipped as long as its pictures and the commands before it are the same."""

    def arguments(self, places: dict[str, str]) -> list[str]:
        """The command's words, with `{pages}` and `{recipes}` filled in."""
        try:
            return [word.format_map(places) for word in shlex.split(self.run)]
        except (ValueError, KeyError, IndexError) as error:
            known = ", ".join(f"{{{name}}}" for name in places)
            raise ConfigError(f"step {self.run!r} cannot be read ({error}): known places are {known}") from error


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What a recipe file says."""

    title: str
    """One line for the page."""
    sources: tuple[str, ...]
    """What `pleinair ingest` takes: names, folders, files."""
    steps: tuple[Step, ...]
    """In this order, after the sources are ingested."""

    def __post_init__(self) -> None:
        if not self.sources or not self.steps:
            raise ConfigError("a curation recipe needs sources and [[steps]]: give at least one of each")

    def commands(self) -> tuple[Step, ...]:
        """Everything that is run, in order."""
        return (*(Step(run=f"ingest {shlex.quote(source)}") for source in self.sources), *self.steps)


def shipped_chains() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(files("pleinair.recipes")))
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}")) if not path.stem.startswith("mix-")}


def read_chain(path: Path) -> Chain:
    """The chain a file describes. Raises ConfigError naming the file and what is wrong in it."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"recipe {path} cannot be read ({error.strerror}): give the path of a {SUFFIX} file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path} is not TOML: {error}") from error
    try:
        return from_document(Chain, {**document, "steps": _steps(document.get("steps", []))})
    except ConfigError as error:
        raise ConfigError(f"recipe {path}: {error}") from error


def _steps(documents: Sequence[dict[str, object]]) -> tuple[Step, ...]:
    return tuple(from_document(Step, dict(document)) for document in documents)
