"""Types, labels and aliases from a Wikidata dump in the published form, and what they decide about articles."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pleinair.curation.entities.build import matcher_of, rank_concepts
from pleinair.curation.entities.concepts import reasons_of, wikipedia_concepts
from pleinair.curation.entities.wikidata import Facts, read_wikidata, unrepresentable_items
from pleinair.records.errors import SourceError
from tests.curation.entities.dump_files import Wiki, write_dumps

YEAR, SONG, HUMAN = 577, 7366, 5
PROTEST_SONG = 900
CHAPTER = 901


def claim(item: int, rank: str = "normal") -> dict[str, Any]:
    value = {"value": {"entity-type": "item", "numeric-id": item, "id": f"Q{item}"}, "type": "wikibase-entityid"}
    return {"mainsnak": {"snaktype": "value", "property": "P", "datavalue": value}, "type": "statement", "rank": rank}


def entity(
    item: int, label: str | None = None, aliases: list[str] | None = None, **claims: list[Any]
) -> dict[str, Any]:
    labels = {"en": {"language": "en", "value": label}, "de": {"language": "de", "value": "?"}} if label else []
    given = {"en": [{"language": "en", "value": alias} for alias in aliases or []]}
    return {"type": "item", "id": f"Q{item}", "labels": labels, "aliases": given, "claims": claims or []}


ENTITIES = [
    entity(PROTEST_SONG, P279=[claim(SONG)]),
    entity(SONG, P279=[claim(2188189)]),
    entity(1, "Imagine", ["Imagine (song)"], P31=[claim(PROTEST_SONG)]),
    entity(2, "turkey", ["gobbler", "Meleagris"], P31=[claim(16521)]),
    entity(3, "1969", P31=[claim(YEAR), {"mainsnak": {"snaktype": "somevalue"}, "rank": "normal"}]),
    entity(4, "Chanson", P31=[claim(SONG), claim(HUMAN)]),
    entity(6, "Old claim", P31=[claim(SONG, rank="deprecated"), claim(HUMAN)]),
    entity(7, "not asked for", P31=[claim(SONG)]),
    {"type": "property", "id": "P31", "labels": {}},
]
WANTED = np.array([1, 2, 3, 4, 6, 0])


def dump(folder: Path, suffix: str = ".json.gz") -> Path:
    path = folder / f"wikidata-20240501-all{suffix}"
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in ENTITIES)
    data = f"[\n{lines}\n]\n".encode()
    path.write_bytes({".json": bytes, ".json.gz": gzip.compress, ".json.bz2": bz2.compress}[suffix](data))
    return path


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".json.bz2"])
def test_facts_are_those_of_the_wanted_items_and_all_superclasses(tmp_path: Path, suffix: str) -> None:
    facts = read_wikidata(dump(tmp_path, suffix), WANTED)
    assert list(zip(*facts.superclasses, strict=True)) == [(PROTEST_SONG, SONG), (SONG, 2188189)]
    assert set(zip(*facts.types, strict=True)) == {
        (1, PROTEST_SONG),
        (2, 16521),
        (3, YEAR),
        (4, SONG),
        (4, HUMAN),
        (6, HUMAN),
    }
    assert facts.labels == {1: "Imagine", 2: "turkey", 3: "1969", 4: "Chanson", 6: "Old claim"}
    assert (2, "gobbler") in facts.names


def test_an_item_goes_when_all_its_types_are_unseen_and_stays_with_one_other(tmp_path: Path) -> None:
    facts = read_wikidata(dump(tmp_path), WANTED)
    assert unrepresentable_items(facts, {SONG: "song", YEAR: "year"}) == {1: "song", 3: "year"}
    assert unrepresentable_items(Facts.none(), {SONG: "song"}) == {}


def test_a_circle_of_classes_ends() -> None:
    facts = Facts()
    for child, parent in ((10, 11), (11, 10), (11, SONG)):
        facts.superclasses[0].append(child)
        facts.superclasses[1].append(parent)
    facts.types[0].append(1)
    facts.types[1].append(10)
    assert unrepresentable_items(facts, {SONG: "song"}) == {1: "song"}


def test_a_damaged_dump_is_refused_with_its_line(tmp_path: Path) -> None:
    path = dump(tmp_path, ".json")
    text = path.read_text()
    path.write_text(text.replace('"id":"Q2",', '"id":"Q2",,'))
    with pytest.raises(SourceError, match="line 5 is not JSON"):
        read_wikidata(path, WANTED)
    whole = dump(tmp_path)
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(SourceError, match="damaged or cut off"):
        read_wikidata(whole, WANTED)


def test_a_wikis_concepts_know_their_kind_names_and_why_they_go(tmp_path: Path) -> None:
    titles = ["Imagine_(John_Lennon_song)", "Turkey_(bird)", "1969", "Chanson", "List_of_birds", "Turkey", "Turkish"]
    items = dict(zip(titles, (1, 2, 3, 4), strict=False))
    links = [(one, "Turkey_(bird)") for one in titles if one != "Turkey_(bird)"]
    write_dumps(Wiki(titles, links, {"Wild_turkey": "Turkey_(bird)"}, items, disambiguation=["Turkish"]), tmp_path)
    dump(tmp_path)
    concepts = wikipedia_concepts(tmp_path, tmp_path / "graph")
    assert concepts.keys.to_pylist()[:4] == ["Q1", "Q2", "Q3", "Q4"]
    assert concepts.keys.to_pylist()[4].startswith("page:")
    assert concepts.reasons.to_pylist() == ["song", None, "date", None, "list", None, "disambiguation page"]
    ranked, _ = rank_concepts(concepts, share=1.0)
    assert [concepts.titles[int(node)].as_py() for node in ranked.kept] == ["Turkey (bird)", "Chanson", "Turkey"]
    names = matcher_of(concepts, ranked)
    found = [
        names.match([caption]).of(0) for caption in ("two gobblers", "wild turkeys", "the Meleagris", "Imagine 1969")
    ]
    assert found == [[0], [0], [0], []]


def test_every_class_has_a_scheme_an_id_a_label_and_a_reason() -> None:
    for scheme, number in (("wikidata", 35), ("wordnet", 12)):
        classes = reasons_of(scheme)
        assert len(classes) >= number
        assert all(label and reason for label, reason in classes.values())
    assert all(one[0] == "Q" and one[1:].isdecimal() for one in reasons_of("wikidata"))
