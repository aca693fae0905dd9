"""The questions of "Datasheets for Datasets" (Gebru et al. 2018), answered from what the warehouse knows of a mix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pleinair.packing.mixing import MixRecord
from pleinair.packing.tallies import UNKNOWN

Asked = Sequence[tuple[str, str]]


def questions(record: MixRecord) -> Mapping[str, Asked]:
    """Chapter to questions with their answers; `unknown` where only people can say."""
    return {
        "Motivation": _motivation(record),
        "Composition": _composition(record),
        "Collection": _collection(record),
        "Preprocessing, cleaning, labelling": _preprocessing(record),
        "Uses": _uses(record),
        "Distribution and maintenance": _distribution(record),
    }


def _motivation(record: MixRecord) -> Asked:
    return (
        (
            "For what purpose was the set created?",
            f"To train a text-to-image model at {record.mix.stage.resolution} px.",
        ),
        ("Who created it, and on whose behalf?", UNKNOWN),
        ("Who funded it?", UNKNOWN),
    )


def _composition(record: MixRecord) -> Asked:
    manifest, facets = record.manifest, record.tallies.facets
    sample = f"{manifest.num_rows:,} of {manifest.num_offered:,} pictures that fit; the choice is a keyed hash"
    balance = " evened over clusters," if record.mix.clusters else ""
    rare = " rare entities first" if record.mix.entities else ""
    return (
        ("What do the instances represent?", "Pictures with captions; 'Contents' has styles, groups and sizes."),
        ("How many are there?", f"{manifest.num_rows:,} pictures, {manifest.num_draws:,} with repeats."),
        ("Is it all or a sample?", f"{sample},{balance}{rare}.".replace(",.", ".")),
        ("Is anything missing from individual instances?", _missing(record)),
        ("Are there recommended splits?", "Held-out pairs of concept and style are in no mix."),
        ("Are there errors or redundancies?", _redundancies(record)),
        ("Does it rely on external resources?", "No: pictures are kept in the object store, by content."),
        ("Could it be offensive, or identify people?", f"{UNKNOWN}: no stage here has looked for that."),
        ("Which languages?", f"Writing systems: {', '.join(sorted(facets['writing'].chosen))}. Languages: {UNKNOWN}."),
    )


def _missing(record: MixRecord) -> str:
    facets = record.tallies.facets
    said = [f"{facets[name].chosen[UNKNOWN]:,} without {name}" for name in ("licence", "author", "style", "group")]
    return "; ".join(said) + "."


def _redundancies(record: MixRecord) -> str:
    removed = sum(drops.num_dropped for drops in record.drops if drops.stage == "duplicate")
    checked = any(drops.stage == "check" for drops in record.drops)
    captions = "captions were checked claim by claim" if checked else "captions were not checked against the pictures"
    return f"{removed:,} near-duplicates were removed from everything ingested; {captions}."


def _collection(record: MixRecord) -> Asked:
    decisions = ", ".join(f"{name} {count:,}" for name, count in record.tallies.facets["consent"].chosen.most_common())
    return (
        (
            "How was the data acquired?",
            f"From the sources {', '.join(sorted(record.tallies.facets['source'].chosen))}.",
        ),
        ("Over what time?", f"{UNKNOWN} here; every row keeps the time it was fetched."),
        ("Who collected it, and were they paid?", UNKNOWN),
        ("Was it reviewed by an ethics board?", UNKNOWN),
        ("Did people consent to its use?", f"Decisions recorded for the pictures: {decisions}."),
        (
            "Can consent be revoked?",
            f"Yes, by a takedown, which survives re-ingestion; {record.num_takedowns:,} are in force.",
        ),
    )


def _preprocessing(record: MixRecord) -> Asked:
    stages = ", ".join(f"{drops.stage} ({drops.num_dropped:,} dropped)" for drops in record.drops)
    return (
        ("Was it preprocessed or cleaned?", f"By {stages}."),
        ("Did a score of quality or beauty shape it?", _scores(record)),
        ("Is the raw data kept?", "Yes, as stored in the object store; dropped pictures too, but for takedowns."),
        ("Is the software available?", "Yes: pleinair, Apache-2.0."),
    )


def _scores(record: MixRecord) -> str:
    from pleinair.packing.conditions import is_quality

    floors = [column for column in record.mix.stage.limits if is_quality(column)]
    said = f"A floor under {', '.join(floors)} cut failures; " if floors else "No: "
    return said + "no score weighs a picture or a source."


def _uses(record: MixRecord) -> Asked:
    return (
        ("Has it been used already?", UNKNOWN),
        ("What should it not be used for?", f"{UNKNOWN}; the licences of the pictures bind every use."),
        ("Could its composition affect future uses?", _tilt(record)),
    )


def _tilt(record: MixRecord) -> str:
    draws = record.tallies.facets["style"].draws
    if not draws:
        return UNKNOWN
    [(style, count)] = draws.most_common(1)
    return f"Yes: what is common here is drawn more easily. The commonest style is {style}, {count / draws.total():.0%} of a pass."


def _distribution(record: MixRecord) -> Asked:
    licences = ", ".join(sorted(record.tallies.facets["licence"].chosen))
    return (
        ("Under which licences?", f"Those of its pictures: {licences}."),
        ("Will it be distributed, and how?", UNKNOWN),
        ("Who maintains it?", UNKNOWN),
        ("Will it be updated?", "A new run of the same file takes up what was ingested and drops what was taken down."),
        ("Do older versions remain?", "A list is replaced by the next; its digest tells versions apart."),
    )
