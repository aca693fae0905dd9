"""A checkpoint on the axes of the exploration suite, at the experiments' size: the ground's things and styles, both judges.

ground's pictures, enlarged --> World --fit once--> second judge, copy embedding
open and told prompts --checkpoint, a seed's noise--> pictures, enlarged --look--> measures by judge, with what each prompt gave

Diversity is told by each judge's own embedding, not by features that both share, so that two judges are two. With the gate
(pictures that miss the thing do not count) better drawing raises it; without it worse drawing does. Both are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.drawn import SIDE
from benchmarks.experiments.ground import Ground
from pleinair.captioning.ocr import NoReader
from pleinair.cli.places import cache_dir, shipped
from pleinair.cli.progress import ProgressLine
from pleinair.curation.sources import STYLES
from pleinair.evaluation.exploration.asking import is_real
from pleinair.evaluation.exploration.diversity import counted
from pleinair.evaluation.exploration.fitting import fit_witnesses
from pleinair.evaluation.exploration.looking import Witnesses
from pleinair.evaluation.exploration.measured import STATISTICS, Measured, as_array, itself, measured
from pleinair.evaluation.exploration.requests import (
    Asked,
    Plan,
    Request,
    build_requests,
    digest_requests,
    plan_requests,
)
from pleinair.evaluation.exploration.sheet import JUDGES, Sheet
from pleinair.evaluation.exploration.subjects import Drawn, Real, Subject
from pleinair.evaluation.exploration.suite import Known, measure_all
from pleinair.evaluation.exploration.world import World
from pleinair.evaluation.features import PictureFeatures
from pleinair.evaluation.prompted import at_judges_size
from pleinair.model.efficientnet import fetch_efficientnet
from pleinair.model.judge import load_judge
from pleinair.sampling import Sampler, SamplingConfig

AXES = ("diversity", "diversity_ungated", "can_both", "can_unseen", "transfer", "default_styles", "near_copies")
Axes = dict[str, dict[str, Any]]
"""Measure to judge to what `value_of` reads: what each prompt gave, and of how many pictures. A measure that no judge tells has
the judge `none`."""
FULL = Plan(prompts={"default": 60, "specified": 336, "unseen": 222}, seeds={"default": 8})


@dataclass(frozen=True)
class Explorer:
    """Who measures, and what may be asked."""

    world: World
    witnesses: Witnesses
    known: Known
    requests: Sequence[Request]
    plan: Plan

    @property
    def identity(self) -> str:
        """Of pictures, judges' training data and prompts."""
        return f"{self.world.identity}.{digest_requests(self.requests)}"

    def asked(self, seed: int = 0) -> list[Asked]:
        """The same prompts for every model; the noise is the seed's."""
        return plan_requests(self.requests, self.plan, seed=seed)

    def open_prompts(self) -> set[str]:
        """Prompts of which default-mode diversity is measured: to be left out of what is trained."""
        return {one.request.prompt for one in self.asked() if one.request.kind == "default"}

    def axes(self, sampler: Sampler, config: SamplingConfig, seed: int) -> Axes:
        """A model's axes."""
        return self._axes(Drawn("", sampler, config), seed)

    def real_axes(self) -> Axes:
        """Of real pictures of the same prompts: how far each judge's numbers reach."""
        return self._axes(Real(self.world), 0)

    def _axes(self, subject: Subject, seed: int) -> Axes:
        asked = self.asked(seed)
        sheet = self.witnesses.look(self.world, asked, at_judges_size(subject.draw(asked)))
        found = {**measure_all(sheet, self.known), **own_diversity(sheet)}
        return {
            axis: {judge: {"units": one.units, "n": one.num_pictures} for judge, one in found[axis].items()}
            for axis in AXES
            if axis in found
        }


def own_diversity(sheet: Sheet) -> dict[str, dict[str, Measured]]:
    """`diversity` and `diversity_ungated` as the suite defines them, each judge by its own embedding and its own gate."""
    open_prompts = sheet.of_kind("default")
    rows: dict[str, list[int]] = {}
    for row, unit in enumerate(open_prompts.units):
        rows.setdefault(unit, []).append(row)
    found: dict[str, dict[str, Measured]] = {"diversity": {}, "diversity_ungated": {}}
    for judge in JUDGES if rows else ():
        embedding_ND = open_prompts.scores[judge].embedding.astype(np.float64)
        hits_N = open_prompts.concept_hit(judge)
        for name, passes_N in (("diversity", hits_N), ("diversity_ungated", np.ones_like(hits_N))):
            units = {unit: counted(embedding_ND[of], passes_N[of]) for unit, of in rows.items()}
            found[name][judge] = measured(name, units, len(open_prompts))
    return found


def value_of(axes: Axes, axis: str, judge: str) -> float:
    """One measure, as the suite makes it of what each prompt gave."""
    means_1D = as_array(axis, axes[axis][judge]["units"]).mean(axis=0, keepdims=True)
    return float(STATISTICS.get(axis, itself)(means_1D)[0])


def open_explorer(ground: Ground, plan: Plan, folder: Path) -> Explorer:
    """Judges fitted to the ground's pictures, or found in `folder`."""
    world = world_of(ground)
    features = PictureFeatures(fetch_efficientnet(cache_dir() / "efficientnet-lite0"))
    judge = load_judge(shipped("judge"))
    own = folder / world.identity[:12]
    witnesses, known = fit_witnesses(world, judge, features, NoReader(), own, lambda said: ProgressLine(said).update)
    concepts = {label: world.concept_names[world.concept_of_label[label]] for label in world.trained_labels}
    requests = build_requests(concepts, {name: STYLES[name].words for name in world.style_names})
    real = [one for one in requests if one.kind in plan.prompts and is_real(one, world)]
    return Explorer(world, witnesses, known, real, plan)


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
