"""The pages of the drop report, each a function of rows: the index, a list of one reason, one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pleinair.curation.drops import facts as known
from pleinair.curation.drops.reading import Dropped, ReasonDrops, StageDrops, verdicts_of, why
from pleinair.curation.drops.verdicts import Verdict
from pleinair.pages import Html, Node, Section, element, facts, headline_figures, join, page, table

Row = Mapping[str, Any]
_SHEET = "style.css"
_FOOTER = "Small copies of the pictures, each under the licence its page names. Made by 'pleinair drops'."


def index_page(
    stages: Sequence[StageDrops], addresses: Mapping[tuple[str, str], str], num_pictures: int, num_kept: int
) -> str:
    """Stages and reasons with their counts."""
    dropped = sum(stage.num_dropped for stage in stages)
    figures = headline_figures(
        [
            (f"{num_pictures:,}", "pictures", "listed by the sources"),
            (f"{num_kept:,}", "kept", "nothing speaks against them"),
            (f"{dropped:,}", "drops", f"by {sum(bool(stage.reasons) for stage in stages)} stages"),
        ]
    )
    rows = [_reason_row(stage, reason, addresses) for stage in stages for reason in stage.reasons]
    looked: list[list[Node]] = [[stage.stage, f"{stage.num_in:,}", f"{stage.num_dropped:,}"] for stage in stages]
    columns = ["reason", "stage", "pictures", "of those it saw", "nearest to the limit"]
    sections = [
        Section(
            heading="Reasons",
            lead="Each opens its pictures, nearest to the limit first; each picture opens all that is known of it.",
            body=table(columns, rows, number_columns=["pictures", "of those it saw"]),
        ),
        Section(heading="Stages", body=table(["stage", "looked at", "dropped"], looked)),
    ]
    return page("What was dropped, and why", figures, sections, kicker="curation", footer=_FOOTER, sheet=_SHEET)


def _reason_row(stage: StageDrops, reason: ReasonDrops, addresses: Mapping[tuple[str, str], str]) -> list[Node]:
    link = element("a", reason.kind, href=f"{addresses[stage.stage, reason.kind]}.html")
    nearest = reason.shown[0].verdict
    return [link, stage.stage, f"{reason.count:,}", f"{reason.count / stage.num_in:.2%}", _held(nearest)]


def reason_page(
    reason: ReasonDrops,
    shown: Sequence[Dropped],
    rows: Mapping[str, Row],
    number: int,
    pager: Sequence[tuple[str, str]],
) -> str:
    """One page of the pictures dropped for one reason."""
    total = len(reason.shown)
    sampled = (
        f"Shown are {total:,} of {reason.count:,}: the {(total + 1) // 2:,} nearest to the limit, the rest drawn from all. "
        "'pleinair drops --picture NAME' tells of any other."
        if total < reason.count
        else f"All {reason.count:,} are shown."
    )
    order = "Nearest to the limit first." if shown[0].verdict.distance is not None else "In the order of their names."
    cards = element("div", *(_card(drop, rows[drop.image_name], rows) for drop in shown), class_="cards")
    pages = _pager(number, pager)
    opening = join([element("p", f"{sampled} {order}", class_="lead"), pages, cards, pages])
    kicker = element("a", f"drops / {reason.stage}", href="index.html")
    return page(f"{reason.stage}: {reason.kind}", opening, [], kicker=kicker, footer=_FOOTER, sheet=_SHEET)


def _pager(number: int, pager: Sequence[tuple[str, str]]) -> Html:
    if len(pager) < 2:
        return Html("")
    links = (
        element("b", name, aria_current="page") if int(name) == number else element("a", name, href=address)
        for name, address in pager
    )
    return element("div", *links, class_="pager", role="navigation", aria_label="pages")


def _card(drop: Dropped, row: Row, rows: Mapping[str, Row]) -> Html:
    """A dropped picture in a list, beside its keeper if it has one."""
    keeper = rows.get(row["duplicate_of"]) if row.get("duplicate_of") else None
    pictures = [_figure(row, "thumbs", "dropped" if keeper else None)]
    if keeper:
        pictures.append(_figure(keeper, "thumbs", "kept"))
    said = [
        element("span", _held(drop.verdict), class_="value"),
        element("span", drop.verdict.reason, class_="said"),
        *_terms(drop, row),
        element("small", row["image_name"]),
    ]
    link = element(
        "a", element("div", *pictures, class_="pictures"), *map(_line, said), href=f"pictures/{row['page']}.html"
    )
    return element("div", link, class_="card")


def _line(node: Html) -> Html:
    return element("div", node)


def _terms(drop: Dropped, row: Row) -> list[Html]:
    """What the verdict is about: the caption with its failing claims, or licence and the signal that reserves it."""
    if row.get("failing_claims"):
        failing = element("ul", *(element("li", claim) for claim in row["failing_claims"]), class_="claims")
        caption = row.get("description") or row.get("caption_long") or ""
        return [element("span", caption), element("span", "does not hold:", class_="against"), failing]
    if row.get("consent") not in (None, "allowed") or drop.verdict.reason == row.get("fetch_drop"):
        told = [row.get("licence") or "licence unknown", row.get("consent"), row.get("consent_signal"), row["uri"]]
        return [element("span", ", ".join(filter(None, told)))]
    return []


def _held(verdict: Verdict) -> str:
    """The value against the limit."""
    if verdict.value is None:
        return ""
    if verdict.limit is None:
        return f"{verdict.value:g} of {verdict.whole:g}"
    side = "under" if verdict.value < verdict.limit else "over"
    return f"{verdict.value:g}, {side} {verdict.limit:g}"


def _figure(row: Row, folder: str, note: Node | None = None) -> Html:
    label = row.get("label") or row.get("caption_short") or row["image_name"]
    if row["thumb"]:
        shown = element("img", src=f"{folder}/{row['thumb']}", alt=label, loading="lazy", decoding="async")
    else:
        shown = element("div", "no picture: it was never fetched, or cannot be decoded", class_="none")
    return element("figure", shown, element("figcaption", note) if note is not None else "")


def picture_page(row: Row, keeper: Row | None, stages: Sequence[str]) -> str:
    """Everything about one picture."""
    figures = [_figure(row, "../thumbs", _size(row))]
    if keeper:
        figures.append(_figure(keeper, "../thumbs", f"kept instead: {keeper['image_name']}, {_size(keeper)}"))
    opening = join(
        [
            element("p", why(row, stages), class_="against"),
            element("div", *figures, class_="pictures large"),
        ]
    )
    sections = [
        Section(
            heading="Verdicts",
            body=table(["stage", "verdict", "last tried", "failures"], known.history(row, stages), number_columns=[]),
        ),
        *_about_captions(row),
        Section(heading="Where it came from", body=facts(known.origin(row))),
        *([Section(heading="The picture kept instead", body=_keeper(row, keeper))] if keeper else []),
        Section(heading="Measured", body=facts(known.measured(_stored(row)))),
    ]
    kickers = [
        element("a", "drops", href="../index.html"),
        *(f"{stage}: {one.kind}" for stage, one in verdicts_of(row, stages).items()),
    ]
    return page(row["image_name"], opening, sections, kicker=join(kickers, " / "), footer=_FOOTER, sheet=f"../{_SHEET}")


def _about_captions(row: Row) -> list[Section]:
    found = []
    if said := known.captions(row):
        found.append(Section(heading="What is said of it", body=facts(said)))
    if claims := known.claims(row):
        words = {True: "holds", False: "does not hold", None: "unknown"}
        body: list[list[Node]] = [
            [
                str(one.get("text", "")),
                words.get(one.get("holds"), ""),
                str(one.get("by") or ""),
                str(one.get("score") or ""),
            ]
            for one in sorted(claims, key=lambda one: one.get("holds") is not False)
        ]
        found.append(Section(heading="Claims", body=table(["claim", "found", "by", "score"], body)))
    return found


def _keeper(row: Row, keeper: Row) -> Html:
    """Dropped and kept, column by column, where they differ."""
    ours, theirs = (known.origin(one) | known.measured(_stored(one)) for one in (row, keeper))
    names = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    body: list[list[Node]] = [[name, ours.get(name, ""), theirs.get(name, "")] for name in names]
    return table(["column", "dropped", "kept"], body, number_columns=[])


def _stored(row: Row) -> dict[str, Any]:
    """The row as the warehouse has it."""
    return {name: value for name, value in row.items() if name not in ("thumb", "page")}


def _size(row: Row) -> str:
    return f"{row['width']} x {row['height']} {row['format']}" if row.get("width") else "size unknown"
