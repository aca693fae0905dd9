"""Choices between pictures that two checkpoints of a small chain draw, answered by the judge in the place of people."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pleinair.evaluation.exploration.subjects import Drawn
from pleinair.evaluation.prompted import naming_score
from pleinair.packing.chosen_pairs import chosen_pictures, handed_in, make_event_pairs
from pleinair.posttraining.materials import Materials, identity_at
from pleinair.records.preferences import PreferenceEvent, PreferenceLog, ShownPicture, ShownSide
from pleinair.records.rewards import Pictures
from pleinair.sampling import SamplingConfig
from tests.posttraining.small_chains import SIDE

SAMPLING = SamplingConfig(num_steps=3, resolution=SIDE, precision="fp32")


def choose_in_place_of_people(folder: Path, first: Path, second: Path, made: Materials) -> Path:
    """Pairs of the judge's choices between both checkpoints' pictures, one of each prompt; the log is beside them."""
    prompts = [prompt for prompt, _, _ in made.prompts]
    score, seeds = naming_score(made.judge, made.prompts), list(range(len(prompts)))
    drawn: dict[tuple[str, str, int], Pictures] = {}
    sides, merits = [], []
    for checkpoint in (first, second):
        sampler = made.sampler(checkpoint)
        identity = Drawn("model", sampler, SAMPLING).identity
        pictures = sampler.sample(prompts, seeds, SAMPLING)
        units = [f"default: {prompt}" for prompt in prompts]
        drawn |= {(identity, unit, seed): one for unit, seed, one in zip(units, seeds, pictures, strict=True)}
        sides.append([side_of(identity, unit, seed) for unit, seed in zip(units, seeds, strict=True)])
        merits.append(score(prompts, pictures))
    log = PreferenceLog(folder.with_suffix(".jsonl"))
    log.append([choice(*both, left > right) for *both, left, right in zip(*sides, *merits, strict=True)])
    checkpoints = {sides[place][0].identity: identity_at(one) for place, one in enumerate((first, second))}
    sampler = made.sampler(first)
    choices = chosen_pictures(log.events(), origins=("human", "synthetic"))
    make_event_pairs(folder, choices, handed_in(drawn, checkpoints, sampler), sampler)
    return folder


def side_of(identity: str, unit: str, seed: int) -> ShownSide:
    return ShownSide(subject="model", identity=identity, pictures=(ShownPicture(unit=unit, seed=seed),))


def choice(left: ShownSide, right: ShownSide, is_left: bool) -> PreferenceEvent:
    """Of the same id whenever it is made of the same."""
    trial = left.pictures[0].unit
    told: dict[str, Any] = {"comparison": trial, "attribute": "prefer", "about": "", "question": "Which?"}
    return PreferenceEvent(
        event=str(uuid.uuid5(uuid.NAMESPACE_URL, trial)),
        trial=trial,
        left=left,
        right=right,
        prompts_sha256="0",
        answer="left" if is_left else "right",
        control="",
        repeat=False,
        person="the judge",
        origin="synthetic",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=0.0,
        **told,
    )
