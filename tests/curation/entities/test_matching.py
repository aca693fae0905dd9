"""Names in captions: against a matcher of a few lines, and the rules one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pleinair.curation.entities.build import matcher_of, rank_concepts
from pleinair.curation.entities.concepts import Concepts
from pleinair.curation.entities.matching import Matcher, Name, build_matcher, load_matcher, save_matcher
from pleinair.curation.entities.names import folded_words, plurals, usable, words
from pleinair.records.errors import SourceError


def matcher(*names: str | Name, common: frozenset[str] = frozenset()) -> Matcher:
    given = [name if isinstance(name, Name) else Name(0, number, name) for number, name in enumerate(names)]
    return build_matcher(given, [f"Q{name.entity}" for name in given], common=common)


def found(names: Matcher, caption: str) -> list[int]:
    return names.match([caption]).of(0)


def naive(entities: dict[str, int], caption: str) -> list[int]:
    """Every name, singular or plural, looked for in the caption as text; names inside longer names are struck out."""
    text = " " + " ".join(folded_words(caption)) + " "
    spans = []
    for name, entity in entities.items():
        *head, last = name.split(" ")
        for form in (last, *plurals(last)):
            surface = " " + " ".join([*head, form]) + " "
            at = text.find(surface)
            while at >= 0:
                spans.append((at, at + len(surface) - 1, form != last, entity))
                at = text.find(surface, at + 1)
    exact = {(start, stop) for start, stop, plural, _ in spans if not plural}
    spans = [one for one in spans if not one[2] or one[:2] not in exact]
    outer = [
        entity
        for start, stop, _, entity in spans
        if not any(a <= start and stop <= b and (a, b) != (start, stop) for a, b, _, _ in spans)
    ]
    return sorted(set(outer))


def test_hits_are_those_of_a_naive_matcher_on_real_names_and_sentences(wordnet: Concepts, glosses: list[str]) -> None:
    texts = [text for text in wordnet.name_texts.to_pylist()[::40] if usable(folded_words(text))]
    texts += [
        "dog",
        "young dog",
        "ball",
        "person",
        "small country",
        "plant of",
        "body of water",
        "man",
        "genus of plants",
    ]
    names = list(dict.fromkeys(" ".join(folded_words(text)) for text in texts))
    ours = build_matcher([Name(0, number, name) for number, name in enumerate(names)], names)
    entities = {name: number for number, name in enumerate(names)}
    captions = [*glosses[::400], "Young dogs, and a DOG's men on Genus-of-plants", "", "..."]
    matches = ours.match(captions)
    hits = [matches.of(number) for number in range(len(captions))]
    assert hits == [naive(entities, caption) for caption in captions]
    assert sum(map(len, hits)) > 100
    assert len({one for of_caption in hits for one in of_caption}) > 40


def test_captions_apart_and_together_give_the_same(wordnet: Concepts, glosses: list[str]) -> None:
    ranked, _ = rank_concepts(wordnet)
    names = matcher_of(wordnet, ranked)
    together = names.match(glosses[:500])
    assert [together.of(number) for number in range(500)] == [found(names, gloss) for gloss in glosses[:500]]


def test_a_name_never_spans_two_captions() -> None:
    matches = matcher("New York", "York").match(["something new", "York is old"])
    assert (matches.of(0), matches.of(1)) == ([], [1])


@pytest.mark.parametrize(
    ("caption", "entities"),
    [
        ("A FOX, and", [0]),
        ("foxes", [0]),
        ("firefox", []),
        ("two wolves", [1]),
        ("the O\u2019Neill's house", [2]),
        ("\u00e9clairs at night", [3]),
        ("e\u0301clairs at night", [3]),
        ("STRASSE", [4]),
        ("a city-of-light", [5]),
        ("city of_light", [5]),
    ],
)
def test_case_plurals_and_punctuation_do_not_matter(caption: str, entities: list[int]) -> None:
    names = matcher("Fox", "wolf", "O'Neill", "\u00c9clair", "Stra\u00dfe", "City of Light (disambiguation)")
    assert found(names, caption) == entities


def test_the_longest_name_counts_and_not_what_is_inside_it() -> None:
    names = matcher("New York", "York", "New York City", "city hall")
    assert found(names, "New York City") == [2]
    assert found(names, "York, not New York") == [0, 1]
    assert found(names, "New York City Hall") == [2, 3], "neither is inside the other"


def test_a_word_that_is_a_name_is_not_the_plural_of_another() -> None:
    assert found(matcher("window", "Windows"), "windows") == [1]
    assert found(matcher("window"), "windows") == [0]
    assert found(matcher("young dog", "Young Dogs"), "young dogs") == [1]
    proper = matcher("window", Name(0, 1, "Windows", proper=True))
    assert found(proper, "windows") == [1], "nothing else is called so"


def test_a_proper_name_that_is_a_common_word_needs_its_capital() -> None:
    names = matcher(Name(0, 0, "turkey", proper=False), Name(0, 1, "Turkey", proper=True))
    assert found(names, "a roast turkey") == [0]
    assert found(names, "a bazaar in Turkey") == [1]
    assert found(names, "Turkey on a plate. Turkeys, too") == [0], "a sentence begins with a capital anyway"
    red = matcher(Name(0, 0, "Red", proper=True), common=frozenset({"red"}))
    assert (found(red, "a red apple"), found(red, "the Red in flood")) == ([], [0])


def test_a_name_goes_to_the_strongest_claim_and_is_dropped_with_it() -> None:
    first, second = Name(1, 0, "Mercury"), Name(0, 1, "mercury")
    assert found(build_matcher([first, second], ["a", "b"]), "mercury") == [1]
    assert found(build_matcher([first, second], ["a"]), "mercury") == [], (
        "entity 1 is not looked for, the name stays its"
    )
    assert found(build_matcher([first], ["a"]), "mercury") == [0]


@pytest.mark.parametrize("name", ["the", "It", "1984", "Io", "A'man", "of the", "", "..."])
def test_names_that_would_be_everywhere_are_not_looked_for(name: str) -> None:
    assert found(matcher(name, "Fox"), "it is a man of the 1984 ... io: fox") == [1]


def test_names_survive_a_file_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    names = matcher("New York", "fox", Name(0, 2, "Fox", proper=True))
    path = tmp_path / "names.npz"
    version = save_matcher(names, path)
    again, stored = load_matcher(path)
    captions = ["the Fox and foxes of New York", "fox"]
    assert (stored, again.keys) == (version, names.keys)
    np.testing.assert_array_equal(again.match(captions).entities, names.match(captions).entities)
    assert save_matcher(matcher("New York", "foxes"), tmp_path / "other.npz") != version
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(SourceError, match="holds no names"):
        load_matcher(path)
    with pytest.raises(SourceError, match="there is no file of names .*none.npz: run `pleinair entities build` first"):
        load_matcher(tmp_path / "none.npz")


def test_no_names_and_no_captions_are_no_error() -> None:
    assert found(matcher(), "a fox") == []
    assert len(matcher("fox").match([]).offsets) == 1


def test_words_and_folded_words_are_cut_alike() -> None:
    text = "St. Peter's \u0130stanbul_x \u00bd"
    assert [word.casefold() for word in words(text)] == list(folded_words(text))
