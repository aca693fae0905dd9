"""Small results with pictures that carry their truth in their first pixels, written as `evaluate` writes them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from pleinair.evaluation.drawings import write_drawings
from pleinair.evaluation.exploration.requests import Asked, build_requests, digest_requests, to_document
from pleinair.evaluation.exploration.world import Pictures
from pleinair.evaluation.people.shown import Showing, read_showing
from pleinair.model.judge import JudgeScores
from pleinair.records.preferences import PreferenceEvent, ShownPicture, ShownSide

STYLES = {"noto": "noto", "openmoji": "openmoji", "blob": "blob"}
LABELS = ("fox", "banana", "house", "sun", "key")
CONCEPTS = {label: number for number, label in enumerate(LABELS)}
PIECE = 16
Truth = Callable[[Asked], tuple[str, str]]
"""What a subject draws: a style and a thing."""


def asked() -> list[Asked]:
    """Eight pictures of each open prompt, one of each told pair."""
    concepts = {label: label for label in LABELS}
    built = [one for one in build_requests(concepts, STYLES) if one.kind in ("default", "specified", "unseen")]
    seeds = {"default": 8}
    return [
        Asked(one, 1000 * place + again) for place, one in enumerate(built) for again in range(seeds.get(one.kind, 1))
    ]


def rich(one: Asked) -> tuple[str, str]:
    """What was asked for, in every style where none was."""
    return one.request.style or list(STYLES)[one.seed % len(STYLES)], one.request.label


def narrow(one: Asked) -> tuple[str, str]:
    """The thing asked for, always in one style."""
    return "noto", one.request.label


def drawn(truth: Truth, requests: Sequence[Asked], seed: int) -> Pictures:
    """Coloured noise whose first pixel says style and thing."""
    pictures = np.random.default_rng(seed).integers(0, 256, (len(requests), 64, 64, 3), dtype=np.uint8)
    for picture, one in zip(pictures, requests, strict=True):
        style, label = truth(one)
        picture[0, 0] = list(STYLES).index(style), LABELS.index(label), 77
    return pictures


def write_result(folder: Path, subject: str, truth: Truth, *, seed: int = 1, requests: Sequence[Asked] = ()) -> Path:
    """A finished result."""
    requests = requests or asked()
    (folder / "pictures").mkdir(parents=True)
    pictures = drawn(truth, requests, seed)
    for start in range(0, len(pictures), PIECE):
        write_drawings(
            folder / "pictures" / f"{start // PIECE:04}.npz", f"{subject} {seed} {start}", pictures[start:][:PIECE]
        )
    digest = digest_requests(list({one.request.unit: one.request for one in requests}.values()))
    metrics = {"subject": subject, "identity": f"{subject} {seed}", "prompts_sha256": digest}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    lines = [json.dumps({"request": to_document(one.request), "seed": one.seed}) for one in requests]
    (folder / "requests.jsonl").write_text("\n".join(lines))
    return folder


def write_three(home: Path) -> list[Path]:
    """A rich subject, a narrow one, and real pictures."""
    truths: Mapping[str, Truth] = {"rich-model": rich, "narrow-model": narrow, "real": rich}
    return [write_result(home / name, name, truth, seed=place) for place, (name, truth) in enumerate(truths.items())]


def read_three(home: Path) -> Showing:
    """These, read."""
    first, second, real = write_three(home)
    return read_showing([first, second], real)


def look(pictures: Pictures) -> dict[str, JudgeScores]:
    """Judges that read the first pixel, and see nothing in a picture without one."""
    style = np.zeros((len(pictures), len(STYLES)), np.float32)
    # Six things that nobody asks for come first where nothing is recognised.
    concept = np.tile(np.array([0.0] * len(LABELS) + [1.0] * 6, np.float32), (len(pictures), 1))
    for place, (of_style, of_thing, mark) in enumerate(pictures[:, 0, 0].tolist()):
        if mark == 77:
            style[place, of_style] = concept[place, of_thing] = 9
        else:
            style[place, of_style % len(STYLES)] = 1  # a judge names some style, whatever it sees
    scores = JudgeScores(style_logits=style, concept_logits=concept, embedding=np.zeros((len(pictures), 1), np.float32))
    return {"first judge": scores, "second judge": scores}


SIDES = {
    name: ShownSide(subject=name, identity=name * 2, pictures=(ShownPicture(unit="default: a fox", seed=7),))
    for name in "ABC"
}


def event(**changes: Any) -> PreferenceEvent:
    """A person prefers A, on the left, to B."""
    plain: dict[str, Any] = {
        "event": str(uuid.uuid4()),
        "trial": "t1",
        "comparison": "c1",
        "attribute": "prefer",
        "about": "",
        "question": "Which?",
        "left": SIDES["A"],
        "right": SIDES["B"],
        "prompts_sha256": "0" * 64,
        "answer": "left",
        "control": "",
        "repeat": False,
        "person": "ada",
        "origin": "human",
        "at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=1),
        "seconds": 2.5,
    }
    return PreferenceEvent(**{**plain, **changes})
