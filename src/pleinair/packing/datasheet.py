"""The datasheet of a mix: one page that says what is in it, where it came from, what was lost, and how to make it again.

After "Datasheets for Datasets" (Gebru et al. 2018): what a machine can answer is answered, the rest is said to be unknown.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from pleinair.curation import ObjectStore
from pleinair.curation.drops.reading import Dropped, ReasonDrops, StageDrops
from pleinair.curation.entities.coverage import BINS
from pleinair.curation.pictures import decode
from pleinair.packing.mix import CAPTION_KINDS
from pleinair.packing.mixing import MixRecord
from pleinair.packing.pool import CAPTION_COLUMNS
from pleinair.packing.questions import questions
from pleinair.packing.tallies import ASPECTS, UNKNOWN, Tally, side_names
from pleinair.pages import (
    GridCell,
    Html,
    Node,
    Section,
    code,
    element,
    facts,
    folded,
    headline_figures,
    join,
    page,
    strip,
    table,
    write_page,
)
from pleinair.records.errors import ImageError, SourceError

SAMPLE_SIDE = 144
DROP_SIDE = 72
_MOST_ROWS = 16
_MOST_DROPS = 8
_LONGEST_CAPTION = 320
_BAR = Html("&nbsp;")
"""Heading of a column of bars."""
_ORDERED = {"short side": side_names(), "aspect": [name for name, _, _ in ASPECTS]}
"""Facts whose values have an order of their own."""

FACET_LEADS: Mapping[str, str] = {
    "licence": "As the source states it.",
    "style": "The author set or style a source names.",
    "group": "The coarse group of what is shown, where a source names one.",
    "writing": "Any writing but Latin in the longest caption, else Latin. No stage tells languages.",
    "short side": "Of the stored picture, before any resizing.",
    "aspect": "Width to height.",
}


def write_datasheet(path: Path, record: MixRecord, store: ObjectStore) -> None:
    """Write the datasheet, whole or not at all."""
    write_page(path, datasheet(record, store))


def datasheet(record: MixRecord, store: ObjectStore) -> str:
    """The page as text."""
    sections = [
        Section(
            heading="Lost on the way", body=_lost(record), lead="From everything ingested to the list, step by step."
        ),
        Section(heading="Sources", body=_sources(record), lead="Pictures offered are those that pass every condition."),
        Section(heading="Samples", body=_samples(record, store), lead="The first pictures of each source in the list."),
        Section(
            heading="Contents", body=_contents(record), lead="Offered beside chosen, by what is known of a picture."
        ),
        Section(heading="Captions", body=_captions(record), lead="One caption is drawn each time a picture comes."),
        Section(heading="Entities", body=_entities(record), lead="Which of the world's things the captions name."),
        Section(heading="Clusters", body=_clusters(record), lead="Which kinds of pictures there are, by their looks."),
        Section(heading="Filters", body=_filters(record, store), lead="What each stage of curation dropped, and why."),
        Section(heading="Rights", body=_rights(record), lead="Licences are above; here are consent and takedowns."),
        Section(
            heading="Questions", body=_questions(record), lead="The datasheet's questions, as far as a machine knows."
        ),
        Section(heading="Make it again", body=_again(record)),
    ]
    footer = f"pleinair {record.manifest.code}. Pictures under the licences named beneath them."
    return page(record.mix.name, _opening(record), sections, kicker="datasheet of a mix", footer=footer)


def _opening(record: MixRecord) -> Html:
    manifest, ingested = record.manifest, record.funnel[0][1]
    repeats = f"{manifest.num_draws:,} a pass" if manifest.num_draws != manifest.num_rows else "each once a pass"
    lost = len(record.tallies.entities.offered) - len(record.tallies.entities.chosen)
    coverage = f"{lost:,} lost of those offered" if record.kept_entities.offered else "nobody has looked for any"
    licences = len(record.tallies.facets["licence"].chosen)
    return headline_figures(
        [
            (f"{manifest.num_rows:,}", "pictures", repeats),
            (f"{percent(manifest.num_rows, ingested)}", "of what was ingested", f"{ingested:,} pictures"),
            (f"{manifest.resolution} px", "stage", f"{len(manifest.sources)} sources"),
            (f"{licences}", "licences", f"{len(record.tallies.facets['author'].chosen):,} authors or sets"),
            (f"{len(record.tallies.entities.chosen):,}", "entities", coverage),
        ]
    )


def _lost(record: MixRecord) -> Html:
    steps = [*record.funnel, ("chosen", record.manifest.num_rows)]
    ingested = steps[0][1]
    rows: list[list[Node]] = [
        [name, count, before - count if before is not None else "", percent(count, ingested), bar(count, ingested)]
        for (name, count), before in zip(steps, [None, *(count for _, count in steps[:-1])], strict=True)
    ]
    head = ["pictures", "left", "lost here", "of ingested", _BAR]
    funnel = table(head, thousands(rows), number_columns=head[1:-1])
    kept, tallies = record.kept_entities, record.tallies
    coverage: list[list[Node]] = [
        [name, len(before.offered), len(after.offered), len(after.chosen), len(after.offered) - len(after.chosen)]
        for name, before, after in (
            ("entities named", kept, tallies.entities),
            ("finest clusters with a picture", record.kept_clusters, tallies.clusters),
        )
        if before.offered
    ]
    if not coverage:
        return funnel
    head = ["coverage", "in kept pictures", "in offered ones", "in the list", "lost by choosing"]
    return join([funnel, element("h3", "Entities and clusters"), table(head, thousands(coverage))])


def _sources(record: MixRecord) -> Html:
    mix, choice, pool = record.mix, record.choice, record.pool
    total = max(1, record.manifest.num_draws)
    rows: list[list[Node]] = []
    for place, source in enumerate(mix.sources):
        own = pool.source_N == place
        taken = choice.repeats_N[own]
        weight = "own size" if source.weight is None else f"{source.weight:g}"
        counts = [int(own.sum()), int((taken > 0).sum()), choice.targets[place]]
        rows.append(
            [source.name, weight, *counts, percent(choice.targets[place], total), bar(choice.targets[place], total)]
        )
    head = ["source of the mix", "weight", "offered", "chosen", "repeats counted", "share", _BAR]
    of_mix = table(head, thousands(rows), number_columns=head[1:-1])
    chosen = record.tallies.facets["source"]
    warehouse: list[list[Node]] = [
        [name, ingested, kept, chosen.offered[name], chosen.chosen[name], percent(chosen.chosen[name], ingested)]
        for name, (ingested, kept) in record.by_source.items()
    ]
    head = ["source of the warehouse", "ingested", "kept", "offered", "chosen", "of ingested"]
    conditions = facts({source.name: element("code", source.where) for source in mix.sources})
    return join([of_mix, conditions, element("h3", "In the warehouse"), table(head, thousands(warehouse))])


def _samples(record: MixRecord, store: ObjectStore) -> Html:
    return join(
        join([element("h3", source.name), element("div", strip(_shown_cells(record, place, store)), class_="large")])
        for place, source in enumerate(record.mix.sources)
    )


def _shown_cells(record: MixRecord, place: int, store: ObjectStore) -> list[GridCell]:
    return [
        GridCell(
            picture=drawn,
            alt=shown.row["caption_short"] or shown.row["image_name"],
            note=", ".join([shown.row["licence"] or "licence unknown", shown.row["author"] or "author unknown"]),
        )
        for shown in record.tallies.shown[place]
        if (drawn := thumbnail(store, shown.row["image_path"], SAMPLE_SIDE)) is not None
    ]


def _contents(record: MixRecord) -> Html:
    return join(
        join(
            [
                element("h3", name.capitalize()),
                element("p", lead, class_="lead"),
                _facet(name, record.tallies.facets[name]),
            ]
        )
        for name, lead in FACET_LEADS.items()
    )


def _facet(name: str, tally: Tally, label: Callable[[str], str] = str) -> Html:
    total = max(1, tally.draws.total())
    own_order = _ORDERED.get(name, ())
    ordered = [value for value in own_order if value in tally.offered]
    ordered += sorted(set(tally.offered) - set(ordered), key=lambda value: (-tally.draws[value], value))
    rows: list[list[Node]] = [
        [
            label(value),
            tally.offered[value],
            tally.chosen[value],
            percent(tally.draws[value], total),
            bar(tally.draws[value], total),
        ]
        for value in ordered
    ]
    head = [name, "offered", "chosen", "share of a pass", _BAR]
    numbers = head[1:-1]
    shown = table(head, thousands(rows)[:_MOST_ROWS], number_columns=numbers)
    if len(rows) <= _MOST_ROWS:
        return shown
    return join(
        [
            shown,
            folded(
                f"{len(rows) - _MOST_ROWS:,} more", table(head, thousands(rows[_MOST_ROWS:300]), number_columns=numbers)
            ),
        ]
    )


def _captions(record: MixRecord) -> Html:
    asked, total = record.mix.captions.weights, max(1, record.manifest.num_draws)
    rows: list[list[Node]] = []
    for kind, weight in zip(CAPTION_KINDS, asked, strict=True):
        tally = record.tallies.captions[kind]
        words = f"{tally.words / tally.pictures:.1f}" if tally.pictures else ""
        rows.append([kind, percent(weight, sum(asked)), percent(tally.share, total), tally.pictures, words])
    head = ["caption", "asked", "drawn", "pictures that have one", "words each"]
    return join([table(head, thousands(rows), number_columns=head[1:]), *_caption_examples(record)])


def _caption_examples(record: MixRecord) -> Iterable[Html]:
    for place, source in enumerate(record.mix.sources):
        for shown in record.tallies.shown[place][:1]:
            said = {
                kind: shorten(shown.row[column])
                for kind, column in zip(CAPTION_KINDS, CAPTION_COLUMNS, strict=True)
                if shown.row[column]
            }
            rows: list[list[Node]] = [[kind, text] for kind, text in said.items()]
            yield join([element("h3", f"{source.name}: {shown.row['image_name']}"), table(["caption", "text"], rows)])


def _entities(record: MixRecord) -> Html:
    tally, kept = record.tallies.entities, record.kept_entities
    if not kept.offered:
        return element("p", "Unknown: the names of no entity were looked for (pleinair entities build, match).")
    rows: list[list[Node]] = [
        [name, *(_in_bin(counter, least, most) for counter in (kept.offered, tally.offered, tally.chosen))]
        for name, least, most in BINS[1:]
    ]
    bins = table(["pictures that name it", "entities in kept", "in offered", "in the list"], thousands(rows))
    gone = sorted(set(tally.offered) - set(tally.chosen), key=lambda key: (-tally.offered[key], key))
    early = sorted(set(kept.offered) - set(tally.offered), key=lambda key: (-kept.offered[key], key))
    named = join(
        [
            _entity_list(record, "Lost by choosing", gone, tally),
            _entity_list(record, "Lost by the mix's conditions", early, kept),
        ]
    )
    rare = sorted(tally.chosen, key=lambda key: (tally.offered[key], record.titles.get(key, key)))[:40]
    return join([_proof(record), bins, named, _entity_list(record, "Rarest in the list", rare, tally)])


def _proof(record: MixRecord) -> Html:
    if not record.mix.entities:
        return element("p", "The mix has no [entities]: nothing held on to rare ones.", class_="note")
    how = "by matching the list's captions anew" if record.manifest.matched_anew else "from the list's rows, read again"
    return element(
        "p",
        f"No entity of the {record.manifest.num_entities:,} offered was lost, proven {how}. "
        f"{record.manifest.num_required:,} pictures are here because an entity had too few others.",
        class_="note",
    )


def _entity_list(record: MixRecord, heading: str, keys: Sequence[str], tally: Tally) -> Html:
    if not keys:
        return Html("")
    said = ", ".join(f"{record.titles.get(key, key)} ({tally.offered[key]:,})" for key in keys[:40])
    more = f", and {len(keys) - 40:,} more" if len(keys) > 40 else ""
    return join([element("h3", heading), element("p", f"{said}{more}.")])


def _in_bin(counter: Mapping[str, int], least: int, most: int) -> int:
    return sum(least <= count <= most for count in counter.values())


def _clusters(record: MixRecord) -> Html:
    tally = record.tallies.clusters
    if not record.kept_clusters.offered:
        return element("p", "Unknown: the pictures are not clustered (pleinair embed, cluster).")
    balance = record.mix.clusters
    said = (
        "The mix has no [clusters]: shares are as they fall."
        if balance is None
        else "Shares are even from the top down."
    )
    empty = len(tally.offered) - len(tally.chosen)
    note = f"{said} {len(tally.chosen):,} of {len(tally.offered):,} finest clusters are in the list, {empty:,} are not."
    top = _topmost(tally)
    return join(
        [
            element("p", note, class_="note"),
            _facet("top cluster", top, lambda path: record.cluster_names.get(path, path)),
        ]
    )


def _topmost(tally: Tally) -> Tally:
    top = Tally()
    for counter, sums in ((tally.offered, top.offered), (tally.chosen, top.chosen), (tally.draws, top.draws)):
        for path, count in counter.items():
            sums[path.partition("/")[0]] += count
    return top


def _filters(record: MixRecord, store: ObjectStore) -> Html:
    rows: list[list[Node]] = [
        [drops.stage, drops.num_in, drops.num_dropped, percent(drops.num_dropped, drops.num_in)]
        for drops in record.drops
    ]
    head = ["stage", "looked at", "dropped", "share"]
    return join(
        [
            table(head, thousands(rows), number_columns=head[1:]),
            *(_stage(drops, store) for drops in record.drops if drops.reasons),
        ]
    )


def _stage(drops: StageDrops, store: ObjectStore) -> Html:
    return join(
        [element("h3", f"{drops.stage}: {drops.num_dropped:,}"), *(_reason(reason, store) for reason in drops.reasons)]
    )


def _reason(reason: ReasonDrops, store: ObjectStore) -> Html:
    cells = [cell for example in reason.shown[:_MOST_DROPS] if (cell := _dropped(example, store))]
    said = f"{reason.kind}: {reason.count:,}. " + f"Nearest to the limit: {reason.shown[0].verdict.reason}"
    return join([element("p", shorten(said)), strip(cells) if cells else Html("")])


def _dropped(example: Dropped, store: ObjectStore) -> GridCell | None:
    drawn = thumbnail(store, example.image_path, DROP_SIDE)
    return None if drawn is None else GridCell(picture=drawn, alt=example.image_name, note=example.image_name)


def _rights(record: MixRecord) -> Html:
    authors = record.tallies.facets["author"]
    without = authors.chosen[UNKNOWN]
    known = facts(
        {
            "takedowns in force": f"{record.num_takedowns:,}",
            "pictures without a licence": f"{record.tallies.facets['licence'].chosen[UNKNOWN]:,}",
            "pictures without an author": f"{without:,}",
        }
    )
    return join(
        [
            known,
            element("h3", "Consent"),
            _facet("decision", record.tallies.facets["consent"]),
            element("h3", "Authors"),
            _facet("author", authors),
        ]
    )


def _questions(record: MixRecord) -> Html:
    return join(
        folded(chapter, table(["question", "answer"], [list(pair) for pair in asked], number_columns=[]))
        for chapter, asked in questions(record).items()
    )


def _again(record: MixRecord) -> Html:
    manifest, name = record.manifest, record.mix.name
    known = facts(
        {
            "list": element("code", manifest.digest),
            "pool": element("code", manifest.pool_digest),
            "rules": f"version {manifest.version}, pleinair {manifest.code}",
            "seed": f"{record.mix.seed}",
        }
    )
    told = "Equal pools and equal files give equal lists; the pool is equal when curation left the same pictures."
    command = f"pleinair mix {name}.toml --expect {manifest.digest}"
    limits = "\n".join(f"{stage}: {limits}" for stage, limits in manifest.curation_limits.items()) or UNKNOWN
    return join(
        [
            element("p", told, class_="lead"),
            known,
            code(command),
            element("h3", "The mix file"),
            code(record.text),
            element("h3", "Limits of the curation"),
            code(limits),
        ]
    )


def thumbnail(store: ObjectStore, image_path: str | None, side: int) -> bytes | None:
    """A small WebP of a stored picture; None for one that is not there or cannot be decoded."""
    if image_path is None:
        return None
    try:
        picture = Image.fromarray(decode(store.get(image_path)))
    except (SourceError, ImageError):
        return None
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    picture.save(written, "WEBP", quality=76)
    return written.getvalue()


def thousands(rows: Iterable[Sequence[Node]]) -> list[list[Node]]:
    """Rows with their integers grouped by three digits."""
    return [[f"{node:,}" if isinstance(node, int) else node for node in row] for row in rows]


def percent(part: float, whole: float) -> str:
    """A share as people read it."""
    if not whole:
        return ""
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 10 or not part else f"{share:.1f} %" if share >= 0.1 else "< 0.1 %"


def bar(part: float, whole: float) -> Html:
    """A share as a bar."""
    share = part / whole if whole else 0.0
    track = element("rect", x=0, y=5, width="100%", height=6, rx=1, class_="track")
    filled = element("rect", x=0, y=5, width=f"{100 * share:.2f}%", height=6, rx=1, class_="bar")
    return element("svg", track, filled, class_="interval", role="img", aria_label=percent(part, whole))


def shorten(text: str) -> str:
    """A text cut at a word where it is long."""
    return text if len(text) <= _LONGEST_CAPTION else text[:_LONGEST_CAPTION].rpartition(" ")[0] + " ..."
