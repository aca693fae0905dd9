"""A checkpoint on the axes of the exploration suite, at the experiments' size: the ground's things and styles, both judges.

ground's pictures, enlarged --> World --fit once--> second judge, copy embedding
open and told prompts --checkpoint--> pictures, enlarged --look--> measures of the suite's ledger, by judge
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.experiments.drawn import SIDE
from benchmarks.experiments.ground import Ground
from pleinair.captioning.ocr import NoReader
from pleinair.cli.places import cache_dir, shipped
from pleinair.cli.progress import ProgressLine
from pleinair.curation.sources import STYLES
from pleinair.evaluation.exploration.asking import is_real
from pleinair.evaluation.exploration.fitting import fit_witnesses
from pleinair.evaluation.exploration.ledger import AXES
from pleinair.evaluation.exploration.looking import Witnesses
from pleinair.evaluation.exploration.requests import Asked, Plan, build_requests, plan_requests
from pleinair.evaluation.exploration.subjects import Drawn
from pleinair.evaluation.exploration.suite import Known, measure_all
from pleinair.evaluation.exploration.world import World
from pleinair.evaluation.features import PictureFeatures
from pleinair.evaluation.prompted import at_judges_size
from pleinair.model.efficientnet import fetch_efficientnet
from pleinair.model.judge import load_judge
from pleinair.sampling import Sampler, SamplingConfig

Axes = dict[str, dict[str, float]]
"""Measure to judge to value; a measure that no judge tells has the judge `none`."""
FULL = Plan(prompts={"default": 24, "specified": 96, "unseen": 32}, seeds={"default": 8})


@dataclass(frozen=True)
class Explorer:
    """Who measures, and what is asked."""

    world: World
    witnesses: Witnesses
    known: Known
    asked: Sequence[Asked]

    def axes(self, sampler: Sampler, config: SamplingConfig) -> Axes:
        """The ledger's axes of a model."""
        pictures = at_judges_size(Drawn("", sampler, config).draw(self.asked))
        measures = measure_all(self.witnesses.look(self.world, self.asked, pictures), self.known)
        return {axis: {judge: one.value for judge, one in measures[axis].items()} for axis in AXES if axis in measures}


def open_explorer(ground: Ground, plan: Plan, folder: Path) -> Explorer:
    """Judges fitted to the ground's pictures, or found in `folder`; the same prompts for every model."""
    world = world_of(ground)
    features = PictureFeatures(fetch_efficientnet(cache_dir() / "efficientnet-lite0"))
    judge = load_judge(shipped("judge"))
    witnesses, known = fit_witnesses(world, judge, features, NoReader(), folder, lambda said: ProgressLine(said).update)
    concepts = {label: world.concept_names[world.concept_of_label[label]] for label in world.trained_labels}
    requests = build_requests(concepts, {name: STYLES[name].words for name in world.style_names})
    real = [one for one in requests if one.kind in plan.prompts and is_real(one, world)]
    return Explorer(world, witnesses, known, plan_requests(real, plan))


def world_of(ground: Ground) -> World:
    """The ground's pictures of which the shipped judge has names, as the suite's world."""
    names = load_judge(shipped("judge")).config
    numbers: Mapping[str, int] = {name: number for number, name in enumerate(names.concept_names)}
    pictures = [one for one in ground.pictures if one.concept in numbers and one.style in names.style_names]
    labels = {one.label: numbers[one.concept or ""] for one in pictures if one.label}
    return World(
        keys=[one.key for one in pictures],
        pictures=at_judges_size(np.stack([one.pixels[SIDE] for one in pictures])),
        styles=np.array([names.style_names.index(one.style or "") for one in pictures]),
        concepts=np.array([numbers[one.concept or ""] for one in pictures]),
        held_out=np.array([one.held_out for one in pictures]),
        style_names=names.style_names,
        concept_names=names.concept_names,
        concept_of_label=labels,
        trained_labels=list(labels),
    )
