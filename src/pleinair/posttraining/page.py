"""The page of a chain: every link's numbers, what it gained and lost, what it cost, and the same prompts through all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pleinair.checkpoint.merge import ORIGIN_DOCUMENT
from pleinair.checkpoint.store import read_document, read_manifest
from pleinair.config import from_document
from pleinair.packs.pairs import ORDERED
from pleinair.pages import GridCell, GridRow, Html, Section, element, grid, page, table, write_page
from pleinair.pages.picture import Pixels
from pleinair.posttraining.chain import Done
from pleinair.posttraining.links import Chain
from pleinair.posttraining.side_by_side import Measured
from pleinair.records.pairs import GapCheck

NAMES = {
    "concept_named": "thing named",
    "style_named": "style named",
    "entities_covered": "entities covered",
    "diversity": "different pictures of a prompt",
    "frechet": "Frechet distance",
    "high_frequency": "high frequencies",
    "saturation": "saturation",
}
"""What is always measured; rewards follow under their own names."""
BETTER = {"concept_named": 1, "style_named": 1, "entities_covered": 1, "diversity": 1, "frechet": -1}
"""Which way is better; of fine detail and saturation neither is: they are to be near the real pictures'."""


@dataclass(frozen=True)
class Story:
    """All that the page tells of one link, the base first."""

    name: str
    checkpoint: Path
    rows: Sequence[Measured]
    pictures: Mapping[str, Pixels]
    done: Done | None


def write_chain_page(
    path: Path, chain: Chain, stories: Sequence[Story], real: Mapping[str, float], prompts: Sequence[str], told: str
) -> Path:
    """Write it; `told` is the footer, commit and machine."""
    minutes = sum(one.done.seconds for one in stories if one.done) / 60
    opening = element(
        "div",
        element("p", f"{len(stories) - 1} links after the base, {minutes:.1f} minutes of training."),
        element("ul", *(element("li", one) for one in changes(stories))),
    )
    sections = [
        Section(heading="Numbers", lead=_legend(chain), body=numbers(stories, real)),
        Section(heading="The same prompts and noise", body=pictures(stories, prompts)),
        Section(heading="Cost", body=costs(stories)),
        Section(heading="Where every checkpoint came from", body=lineage(stories)),
    ]
    write_page(path, page(chain.title, opening, sections, kicker="post-training", footer=told))
    return path


def changes(stories: Sequence[Story]) -> list[str]:
    """What each link gained and lost against the one before, drawn as usual, a sentence each."""
    sentences = []
    for before, after in pairwise(stories):
        own, theirs = after.rows[0].values, before.rows[0].values
        gained: list[str] = []
        lost: list[str] = []
        for name, sign in BETTER.items():
            if name in own and name in theirs and own[name] != theirs[name]:
                change = own[name] - theirs[name]
                (gained if change * sign > 0 else lost).append(f"{NAMES[name]} {change:+.3f}")
        sentences.append(
            f"{after.name} gained {', '.join(gained) or 'nothing'} and lost {', '.join(lost) or 'nothing'} against {before.name}."
        )
    return sentences


def numbers(stories: Sequence[Story], real: Mapping[str, float]) -> Html:
    """One row for every way that every model was drawn, and the real pictures."""
    rows = [row for story in stories for row in story.rows]
    more = sorted({name for row in rows for name in row.values} - set(NAMES))
    keys = [name for name in (*NAMES, *more) if any(name in row.values for row in rows)]
    cells = [
        [row.name, str(row.num_steps), f"{row.guidance:g}", *(_shown(row.values, key) for key in keys)] for row in rows
    ]
    cells.append(["real pictures, held out", "", "", *(_shown(real, key) for key in keys)])
    return table(["model", "steps", "guidance", *(NAMES.get(key, key) for key in keys)], cells)


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
        "all. The judge is no reward; what is climbed stands at the right, gold rewards are only watched."
    )
