"""The page of a chain: what every link gained and lost, at what cost, who says so, and the same prompts through all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pleinair.checkpoint.merge import ORIGIN_DOCUMENT
from pleinair.checkpoint.store import read_document, read_manifest
from pleinair.config import from_document
from pleinair.evaluation.exploration.ledger import Entry, ledger, ledger_table, ledger_words
from pleinair.evaluation.exploration.measured import Comparison
from pleinair.evaluation.exploration.suite import MEANINGS, Result
from pleinair.packs.pairs import ORDERED
from pleinair.pages import GridCell, GridRow, Html, Section, element, grid, join, page, table, write_page
from pleinair.pages.picture import Pixels
from pleinair.posttraining.chain import Done
from pleinair.posttraining.links import Chain
from pleinair.posttraining.side_by_side import Changes, Measured
from pleinair.posttraining.witnesses import Witness
from pleinair.records.pairs import GapCheck
from pleinair.rewards.gold import GOLD

NAMES = {
    "concept_named": "thing named",
    "style_named": "style named",
    "entities_covered": "entities covered",
    "diversity": "different pictures of the thing",
    "diversity_ungated": "different pictures, of whatever",
    "frechet": "Frechet distance",
    "high_frequency": "high frequencies",
    "saturation": "saturation",
}
"""What is always measured; rewards follow under their own names."""
BETTER = {"concept_named": 1, "style_named": 1, "entities_covered": 1, "diversity": 1, "frechet": -1}
"""Which way is better; so is more of gold. Of fine detail and saturation neither is (they are to be near the real pictures'), of
pictures of whatever neither (noise has the most), and what is climbed rises because it is."""
NO_CHANGE = "no change shown"


@dataclass(frozen=True, kw_only=True)
class Story:
    """All that the page tells of one link, the base first."""

    name: str
    checkpoint: Path
    rows: Sequence[Measured]
    pictures: Mapping[str, Pixels]
    done: Done | None
    since_last: Changes
    """Against the link before, over the same prompts; empty for the base."""
    since_base: Changes
    explored: Result | None = None
    """By the suite `exploration`, where it looked."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the page tells beside the links."""

    witnesses: Sequence[Witness]
    real: Mapping[str, float]
    """Numbers of real held-out pictures."""
    prompts: Sequence[str]
    """Of the pictures that are shown."""
    footer: str
    """Commit and machine."""


def write_chain_page(path: Path, chain: Chain, stories: Sequence[Story], told: Told) -> Path:
    """Write it."""
    minutes = sum(one.done.seconds for one in stories if one.done) / 60
    opening = element(
        "div",
        element("p", f"Links after the base: {len(stories) - 1}, trained for {minutes:.1f} minutes in all."),
        element("ul", *(element("li", one) for one in changes(stories))),
    )
    sections = [
        Section(heading="What changed", lead=_legend(chain), body=changes_table(stories)),
        *_ledger(stories),
        Section(heading="Numbers", lead="Every way that every model was drawn.", body=numbers(stories, told.real)),
        Section(heading="Who looks", lead="Nobody is two at once, and who measures is never climbed.", body=who(told)),
        Section(heading="The same prompts and noise", body=pictures(stories, told.prompts)),
        Section(heading="Cost", body=costs(stories)),
        Section(heading="Where every checkpoint came from", body=lineage(stories)),
    ]
    write_page(path, page(chain.title, opening, sections, kicker="post-training", footer=told.footer))
    return path


def better(name: str) -> int:
    """1 where more of a value is better, -1 where less is, 0 where neither can be said."""
    return 1 if name.startswith(GOLD) and name.count(".") == 1 else BETTER.get(name, 0)


def changes(stories: Sequence[Story]) -> list[str]:
    """What each link gained and lost against the one before, and the last against the base, a sentence each."""
    sentences = [_sentence(after.name, before.name, after.since_last) for before, after in pairwise(stories)]
    if len(stories) > 2:
        sentences.append(_sentence(stories[-1].name, stories[0].name, stories[-1].since_base))
    return sentences


def _sentence(name: str, before: str, found: Changes) -> str:
    ordered = {value: found[value] for value in (*BETTER, *sorted(found.keys() - BETTER.keys())) if value in found}
    shown = {_named(value): one for value, one in ordered.items()}
    signs = {_named(value): one.sign * better(value) for value, one in ordered.items() if better(value)}
    return _told(f"{name} against {before}", signs, lambda value: f"{value} {_interval(shown[value])}")


def _told(subject: str, signs: Mapping[str, int], tell: Callable[[str], str]) -> str:
    """Gains, losses and what is neither, by the names that the page shows; `tell` gives one its number and interval."""
    parts = []
    for word, sign in (("gained", 1), ("lost", -1)):
        if of_sign := [tell(value) for value, own in signs.items() if own == sign]:
            parts.append(f"{word} {', '.join(of_sign)}")
    if still := [value for value, own in signs.items() if not own]:
        parts.append(f"{NO_CHANGE} in {', '.join(still)}")
    return f"{subject}: {'; '.join(parts)}."


def changes_table(stories: Sequence[Story]) -> Html:
    """A row for each value, a column for each link against the one before and for the last against the base; bold where the
    interval leaves zero."""
    steps = [(f"{after.name} against {before.name}", after.since_last) for before, after in pairwise(stories)]
    if len(stories) > 2:
        steps.append((f"{stories[-1].name} against {stories[0].name}", stories[-1].since_base))
    if not steps:
        return element("p", "No link is done yet.")
    keys = _ordered({name for _, found in steps for name in found})
    cells = [[_named(key), *(_change(found[key]) if key in found else "" for _, found in steps)] for key in keys]
    columns = [name for name, _ in steps]
    return table(["value", *columns], cells, number_columns=columns)


def _change(one: Comparison) -> Html:
    return element("b" if one.sign else "span", _interval(one))


def _interval(one: Comparison) -> str:
    low, high = one.interval
    return f"{one.difference:+.3f} ({low:+.3f} to {high:+.3f})"


def _named(value: str) -> str:
    return NAMES.get(value, value)


def _ordered(names: set[str]) -> list[str]:
    """Those that are always measured first, then gold, then what is climbed."""
    more = sorted(names - NAMES.keys(), key=lambda name: (not name.startswith(GOLD), name))
    return [name for name in (*NAMES, *more) if name in names]


def _ledger(stories: Sequence[Story]) -> list[Section]:
    """What each link cost and lost by the suite `exploration`, where it looked."""
    found = [one.explored for one in stories if one.explored is not None]
    if not found:
        return []
    rows = ledger(found)
    steps = [*pairwise(found), *([(found[0], found[-1])] if len(found) > 2 else [])]
    sentences = [_ledger_sentence(before, after) for before, after in steps]
    words = join(element("li", one) for one in sentences)
    lead = (
        f"By the suite exploration, {found[0].size} size, {found[0].num_pictures} pictures each. A change is claimed where its "
        "interval leaves zero, the suite's two judges agree on its sign and the self test passed; in brackets the change since "
        f"{found[0].subject}."
    )
    body = join([element("ul", words), ledger_table(rows), ledger_words(rows)])
    return [Section(heading="Ledger: what it cost and lost", lead=lead, body=body)]


def _ledger_sentence(before: Result, after: Result) -> str:
    entries = {entry.measure: entry for entry in ledger([before, after])[1][1]}
    signs = {axis: _claimed(entry) for axis, entry in entries.items() if not entry.doubts}
    said = _told(f"{after.subject} against {before.subject}", signs, lambda axis: f"{axis} {_since(entries[axis])}")
    doubted = [f"{axis} ({', '.join(entry.doubts)})" for axis, entry in entries.items() if entry.doubts]
    return f"{said} Not claimed: {', '.join(doubted)}." if doubted else said


def _claimed(entry: Entry) -> int:
    assert entry.since_first is not None
    return entry.since_first.sign * {"more": 1, "less": -1}.get(MEANINGS[entry.measure].better, 0)


def _since(entry: Entry) -> str:
    assert entry.since_first is not None
    return _interval(entry.since_first)


def who(told: Told) -> Html:
    """A row for everybody that looks."""
    cells = [[one.name, one.does, one.climbed or "never", one.identity[:27]] for one in told.witnesses]
    return table(["who", "what for", "climbed", "identity"], cells)


def numbers(stories: Sequence[Story], real: Mapping[str, float]) -> Html:
    """One row for every way that every model was drawn, and the real pictures."""
    rows = [row for story in stories for row in story.rows]
    keys = _ordered({name for row in rows for name in row.values})
    cells = [
        [row.name, str(row.num_steps), f"{row.guidance:g}", *(_shown(row.values, key) for key in keys)] for row in rows
    ]
    cells.append(["real pictures, held out", "", "", *(_shown(real, key) for key in keys)])
    return table(["model", "steps", "guidance", *(_named(key) for key in keys)], cells)


def pictures(stories: Sequence[Story], prompts: Sequence[str]) -> Html:
    """A row for each prompt, a column for each way."""
    columns = {name: pixels for story in stories for name, pixels in story.pictures.items()}
    rows = [
        GridRow(name=prompt, cells=[GridCell(picture=pixels[place], alt=prompt) for pixels in columns.values()])
        for place, prompt in enumerate(prompts)
    ]
    return grid(list(columns), rows)


def costs(stories: Sequence[Story]) -> Html:
    """Steps and minutes."""
    cells = [
        [one.name, str(one.done.num_steps), f"{one.done.seconds / 60:.1f}", _ended(one)] for one in stories if one.done
    ]
    return table(["link", "steps", "minutes", "ended itself because"], cells)


def _ended(story: Story) -> str:
    return read_document(story.checkpoint, "run.json").get("stopped") or ""


def lineage(stories: Sequence[Story]) -> Html:
    """Parents, data, rewards and code, as checkpoints say themselves."""
    cells = []
    for story in stories:
        if ORIGIN_DOCUMENT not in read_manifest(story.checkpoint).files:
            cells.append([story.name, "", "", "", "", ""])
            continue
        origin = read_document(story.checkpoint, ORIGIN_DOCUMENT)
        data, rewards = (
            ", ".join(f"{name} {digest[:12]}" for name, digest in origin[key].items()) for key in ("data", "rewards")
        )
        parents = ", ".join(one[:12] for one in origin["parents"])
        cells.append([story.name, parents, data, ordered(origin), rewards, origin["commit"]])
    return table(["link", "parents", "data", "pairs", "rewards", "code"], cells)


def ordered(origin: Mapping[str, Any]) -> str:
    """What ordered the pairs that a link was trained on, and what the judge says of their order."""
    told = [f"{number} {ORDERED[answer]}" for answer, number in origin.get("answers", {}).items()]
    gap = origin.get("gap")
    return "; ".join([*told, *([] if gap is None else [str(from_document(GapCheck, gap))])])


def _shown(values: Mapping[str, float], key: str) -> str:
    return f"{values[key]:.3f}" if key in values else ""


def _legend(chain: Chain) -> str:
    told = chain.side_by_side
    return (
        f"{told.num_prompts} held-out prompts, {told.pictures_per_prompt} pictures of each from noise that is the same for "
        "all; in brackets 95% intervals from drawing the same prompts again of both. Gained and lost are said where the "
        "interval leaves zero; of twenty values that nothing changed, one does by chance. Pictures of the thing are told apart "
        "only where the judge has the thing among its five first guesses."
    )
