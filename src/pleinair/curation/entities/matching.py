"""Every name against every caption, a batch at a time.

    captions --words--> word numbers --level by level down a trie of names, all places at once--> spans --> entities

The trie is a sorted array per level: a node's key is (node of the words before, number of the next word). So a
million names cost about 40 bytes each, a batch of captions costs a few array operations per level, and a hit is exact:
words are compared as numbers of a vocabulary, not as hashes. What counts as a hit:

- words equal after folding (see `names`); the last word may be the plural of the name's last word, unless the form
  found is a name itself (`windows` is Windows before it is window);
- a name inside a longer name that was found does not count: `New York City` is neither `New York` nor `York`;
- a name of one word that has a capital and is also a common word (Turkey, Red) counts only where the caption writes the
  capital inside a sentence.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pleinair.curation.entities.names import capitals, folded_words, plurals, unqualified, usable
from pleinair.records.errors import SourceError

MAX_WORDS = 10
"""Longer names are left out; captions do not spell them."""
_FORMAT = "pleinair-names-1"
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

_LOWER = bytes(byte if chr(byte).isalnum() and byte < 128 else 32 for byte in range(256)).lower()
_CUT = bytes(byte if chr(byte).isalnum() and byte < 128 else 32 for byte in range(256))


@dataclass(frozen=True)
class Name:
    """A claim of an entity to a name. Of several claims to one name the smallest holds: by priority, then by rank."""

    priority: int
    """0 for the name that is the title, more for lesser claims."""
    entity: int
    """Number of the entity; a smaller number is a higher rank. Beyond the keys: an entity that is not looked for."""
    text: str
    proper: bool | None = None
    """Whether it is written with a capital inside a sentence; None where that is not known."""


@dataclass(frozen=True)
class Matches:
    """Entities by caption: caption i mentions `entities[offsets[i]:offsets[i + 1]]`, rising, each once."""

    offsets: Int64s
    entities: Int32s

    def of(self, caption: int) -> list[int]:
        """The entities of one caption."""
        found: list[int] = self.entities[self.offsets[caption] : self.offsets[caption + 1]].tolist()
        return found


@dataclass(frozen=True)
class _Level:
    """Names of one length and beginnings of longer ones."""

    keys: Int64s
    """Sorted: number of the node before * size + number of the word."""
    entities: Int32s
    """The entity that is called so, -1 for a mere beginning."""


class Matcher:
    """A built set of names; `match` may be called from one thread at a time."""

    def __init__(self, vocabulary: Sequence[str], arrays: dict[str, npt.NDArray[Any]], keys: Sequence[str]) -> None:
        self.vocabulary = vocabulary
        self.arrays = arrays
        self.keys = keys
        """Key of each entity, by number."""
        self._number = dict(zip(vocabulary, range(len(vocabulary)), strict=True))
        self._size = len(vocabulary) + 1
        self._singular: Int32s = arrays["singular"]
        self._first: Int32s = arrays["first"]
        self._capital: Int32s = arrays["capital"]
        self._begins: npt.NDArray[np.bool_] = arrays["begins"]
        depths = range(2, 1 + int(arrays["depth"]))
        self._levels = [_Level(arrays[f"keys{depth}"], arrays[f"entities{depth}"]) for depth in depths]

    @property
    def num_names(self) -> int:
        """Distinct names that are looked for."""
        longer = sum(int((level.entities >= 0).sum()) for level in self._levels)
        return longer + int((self._first >= 0).sum()) + int((self._capital >= 0).sum())

    def match(self, captions: Sequence[str]) -> Matches:
        """The entities each caption names."""
        numbers, ends = self._numbered(captions)
        starts, stops, entities = self._spans(numbers, captions, ends)
        starts, _, entities = _outermost(starts, stops, entities)
        caption = np.searchsorted(ends, starts, side="right")
        found = np.unique(caption.astype(np.int64) << 32 | entities)
        offsets = np.searchsorted(found, np.arange(len(captions) + 1, dtype=np.int64) << 32)
        return Matches(offsets, (found & 0xFFFFFFFF).astype(np.int32))

    def _numbered(self, captions: Sequence[str]) -> tuple[Int32s, Int64s]:
        """Word numbers of all captions, an unknown word after each, and the place after each caption's unknown word."""
        cut = [_folded(caption) for caption in captions]
        ends = np.cumsum([len(one) + 1 for one in cut], dtype=np.int64)
        unknown = self._size - 1
        flat = itertools.chain.from_iterable((*one, "") for one in cut)
        total = int(ends[-1]) if len(cut) else 0
        numbers = np.fromiter(map(self._number.get, flat, itertools.repeat(unknown)), np.int32, total)
        # Spans that begin in the last words may look this far beyond the end.
        return np.concatenate([numbers, np.full(MAX_WORDS, unknown, np.int32)]), ends

    def _spans(self, numbers: Int32s, captions: Sequence[str], ends: Int64s) -> tuple[Int64s, Int64s, Int32s]:
        """Every span that is a name: first word, word after the last, entity."""
        one = self._one_word(numbers, captions, ends)
        places = np.flatnonzero(one >= 0)
        spans = [(places, places + 1, one[places])]
        places = np.flatnonzero(self._begins[numbers])
        nodes = numbers[places].astype(np.int64)
        for depth, level in enumerate(self._levels, start=2):
            following = numbers[places + depth - 1]
            node, entities = _step(level, nodes, following, self._size)
            other = self._singular[following]
            plural = np.flatnonzero((entities < 0) & (other != self._size - 1))
            _, entities[plural] = _step(level, nodes[plural], other[plural], self._size)
            hit = entities >= 0
            spans.append((places[hit], places[hit] + depth, entities[hit]))
            places, nodes = places[node >= 0], node[node >= 0]
        starts, stops, entities = (np.concatenate(part) for part in zip(*spans, strict=True))
        return starts, stops, entities

    def _one_word(self, numbers: Int32s, captions: Sequence[str], ends: Int64s) -> Int32s:
        """The entity that each single word names, -1 for none."""
        found = self._first[numbers]
        found = np.where(found >= 0, found, self._first[self._singular[numbers]])
        proper = np.flatnonzero(self._capital[numbers] >= 0)
        written = _written_with_capital(captions, ends, proper)
        found[proper[written]] = self._capital[numbers[proper[written]]]
        return found


def _folded(caption: str) -> Sequence[str]:
    if caption.isascii():
        return caption.encode().translate(_LOWER).decode().split()
    return folded_words(caption)


def _written_with_capital(captions: Sequence[str], ends: Int64s, places: Int64s) -> npt.NDArray[np.bool_]:
    """Whether the words at `places` have a capital of their own; each caption with any is cut once more, case kept."""
    if not len(places):
        return np.zeros(0, bool)
    owners = np.searchsorted(ends, places, side="right").tolist()
    begins = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    of_caption: dict[int, list[bool]] = {}
    written = []
    for owner, place in zip(owners, places.tolist(), strict=True):
        if owner not in of_caption:
            of_caption[owner] = capitals(captions[owner])
        written.append(of_caption[owner][place - int(begins[owner])])
    return np.array(written)


def _step(level: _Level, nodes: Int64s, following: Int32s, size: int) -> tuple[Int64s, Int32s]:
    """One word down the trie: the node reached and the entity called so, -1 for none."""
    wanted = nodes * size + following
    at = np.minimum(np.searchsorted(level.keys, wanted), len(level.keys) - 1)
    there = level.keys[at] == wanted
    return np.where(there, at, -1), np.where(there, level.entities[at], np.int32(-1))


def _outermost(starts: Int64s, stops: Int64s, entities: Int32s) -> tuple[Int64s, Int64s, Int32s]:
    """Spans that lie in no other span."""
    order = np.lexsort((-stops, starts))
    starts, stops, entities = starts[order], stops[order], entities[order]
    reach = np.concatenate([np.zeros(1, np.int64), np.maximum.accumulate(stops)])[: len(stops)]
    outer = stops > reach
    return starts[outer], stops[outer], entities[outer]


def build_matcher(names: Iterable[Name], keys: Sequence[str], *, common: Set[str] = frozenset()) -> Matcher:
    """A matcher of these names; `keys` are the entities' keys, by number.

    A name that belongs to an entity beyond the keys is not looked for: if red is a colour that no picture is asked to
    show, it does not become the Red River. `common` are folded words that mean something without a capital.
    """
    plain, capital, nouns = _settled(names, common, len(keys))
    number: dict[str, int] = {}
    for name in itertools.chain(plain, capital):
        for word in name.split():
            number.setdefault(word, len(number))
    singular = _singulars(nouns, number)
    size = len(number) + 1
    arrays: dict[str, npt.NDArray[Any]] = {
        "singular": np.full(size, size - 1, np.int32),
        "first": np.full(size, -1, np.int32),
        "capital": np.full(size, -1, np.int32),
        "begins": np.zeros(size, bool),
    }
    arrays["singular"][list(singular)] = list(singular.values())
    for word, entity in capital.items():
        arrays["capital"][number[word]] = entity
    _add_levels(arrays, plain, number)
    return Matcher(list(number), arrays, keys)


def _settled(
    names: Iterable[Name], common: Set[str], num_entities: int
) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """The entity each name belongs to, that of names which need their capital, and the last words that have a plural.

    Names are folded words; the last words come in the order of their best claim.
    """
    plain: dict[str, int] = {}
    proper: dict[str, int] = {}
    nouns: dict[str, int] = {}
    for name in names:
        folded = folded_words(unqualified(name.text))
        if not usable(folded) or len(folded) > MAX_WORDS:
            continue
        claim = name.priority << 32 | name.entity
        kept = [(proper if len(folded) == 1 and name.proper else plain, " ".join(folded))]
        for claims, text in kept if name.proper else [*kept, (nouns, folded[-1])]:
            claims[text] = min(claim, claims.get(text, claim))
    capital = {text for text in proper if text in plain or text in common}
    single = {text: claim for text, claim in proper.items() if text not in capital}
    return (
        _held({**single, **plain}, num_entities),
        _held({text: proper[text] for text in capital}, num_entities),
        sorted(nouns, key=lambda word: (nouns[word], word)),
    )


def _held(claims: Mapping[str, int], num_entities: int) -> dict[str, int]:
    """Entity by name, of those that are looked for."""
    entities = ((text, claim & 0xFFFFFFFF) for text, claim in sorted(claims.items()))
    return {text: entity for text, entity in entities if entity < num_entities}


def _singulars(nouns: Iterable[str], number: dict[str, int]) -> dict[int, int]:
    """Number of the word each plural form is a plural of; forms no name has are added to the vocabulary."""
    found: dict[int, int] = {}
    for noun in nouns:
        for form in plurals(noun) if noun in number else ():
            found.setdefault(number.setdefault(form, len(number)), number[noun])
    return found


def _add_levels(arrays: dict[str, npt.NDArray[Any]], names: dict[str, int], number: dict[str, int]) -> None:
    size = len(number) + 1
    lengths = np.fromiter((name.count(" ") + 1 for name in names), np.int64, len(names))
    entities = np.fromiter(names.values(), np.int32, len(names))
    flat = np.fromiter((number[word] for name in names for word in name.split()), np.int64, int(lengths.sum()))
    begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])[:-1]
    arrays["first"][flat[begins[lengths == 1]]] = entities[lengths == 1]
    arrays["begins"][flat[begins[lengths > 1]]] = True
    nodes, depth = flat[begins], 1
    for depth in range(2, 1 + int(lengths.max(initial=1))):
        longer = lengths >= depth
        begins, lengths, entities, nodes = begins[longer], lengths[longer], entities[longer], nodes[longer]
        keys, nodes = np.unique(nodes * size + flat[begins + depth - 1], return_inverse=True)
        called = np.full(len(keys), -1, np.int32)
        called[nodes[lengths == depth]] = entities[lengths == depth]
        arrays[f"keys{depth}"], arrays[f"entities{depth}"] = keys, called
    arrays["depth"] = np.array(depth)


def save_matcher(matcher: Matcher, path: Path) -> str:
    """Write the names to one file, which appears whole or not at all; its version, a hash of all of it."""
    texts = {"vocabulary": _as_bytes(matcher.vocabulary), "keys": _as_bytes(matcher.keys)}
    arrays: dict[str, Any] = {**matcher.arrays, **{name: np.frombuffer(text, np.uint8) for name, text in texts.items()}}
    digest = hashlib.sha256(_FORMAT.encode())
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    version = digest.hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            marks: dict[str, Any] = {"version": np.array(version), "format": np.array(_FORMAT)}
            np.savez(file, **marks, **arrays)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return version


def load_matcher(path: Path) -> tuple[Matcher, str]:
    """Names written by `save_matcher`, and their version. Raises SourceError where there are none."""
    if not path.exists():
        raise SourceError(f"there is no file of names {path}: run `pleinair entities build` first")
    try:
        # Opened here: numpy leaves a file that is no archive open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if str(arrays.pop("format")) != _FORMAT:
            raise ValueError("another format")
        vocabulary, keys = (_from_bytes(arrays.pop(name)) for name in ("vocabulary", "keys"))
        version = str(arrays.pop("version"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} holds no names ({error}): run `pleinair entities build` again") from error
    return Matcher(vocabulary, arrays, keys), version


def _as_bytes(texts: Sequence[str]) -> bytes:
    return "\n".join(texts).encode()


def _from_bytes(data: npt.NDArray[np.uint8]) -> list[str]:
    return data.tobytes().decode().split("\n") if len(data) else []
