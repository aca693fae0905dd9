"""Do the measures measure? Real pictures with planted faults, and with changes that must not matter.

    the result's requests --as many of each kind as `quick` asks--> real --+-- seven faults   --> every order of SELF_TEST
                                                                           +-- other seed     --> intervals must overlap
                                                                           `-- another order  --> values must be equal

A measure that fails one of these by a judge is rejected by that judge: its value is shown and claims nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pleinair.config import config_digest
from pleinair.evaluation.exploration import damage
from pleinair.evaluation.exploration.looking import Witnesses
from pleinair.evaluation.exploration.measuring import measure_subject
from pleinair.evaluation.exploration.orders import SELF_TEST, Agreement, Step, agreements, check_orders
from pleinair.evaluation.exploration.requests import KINDS, PLANS, Asked
from pleinair.evaluation.exploration.sheet import Flags, Sheet
from pleinair.evaluation.exploration.subjects import Real, Subject
from pleinair.evaluation.exploration.suite import VERSION, Known, Result, from_document, measure_all, to_document
from pleinair.evaluation.exploration.world import World

ALL, REAL, OTHER_SEED, REORDERED = "all real", "real", "other seed", "reordered"
EQUAL = 1e-6
"""Values of the same pictures differ by rounding at most."""


@dataclass(frozen=True)
class SelfTest:
    """What the measures made of pictures whose truth is known."""

    real: Result
    """Real pictures of all that the result was asked."""
    steps: Sequence[Step]
    """Every order under damage."""
    moved: Mapping[str, Sequence[Agreement]]
    """By a change that is no damage: measures that saw it."""

    @property
    def rejected(self) -> dict[str, tuple[str, ...]]:
        """Measures that failed, with their judges."""
        failed = [(step.measure, step.judge) for step in self.steps if not step.holds]
        failed += [(one.measure, one.judge) for seen in self.moved.values() for one in seen]
        names = sorted({measure for measure, _ in failed})
        return {name: tuple(sorted({judge for measure, judge in failed if measure == name})) for name in names}


def self_test(
    sheet: Sheet, witnesses: Witnesses, known: Known, folder: Path, on_progress: Callable[[int, int], None]
) -> SelfTest:
    """The self test of a sheet's requests; what was measured for it is kept in `folder` per list of requests."""
    world, asked = sheet.world, sheet.asked
    requests = [[one.request.unit, one.seed] for one in asked]
    stamp = config_digest([VERSION, world.identity, requests, witnesses.features.name, witnesses.reader.name])
    kept = folder / f"self-test-{stamp[:12]}.json"
    if kept.exists():
        found = {name: from_document(document) for name, document in json.loads(kept.read_text()).items()}
    else:
        found = plant(world, asked, witnesses, known, on_progress)
        staging = kept.with_name(f".{kept.name}")
        staging.write_text(json.dumps({name: to_document(result) for name, result in found.items()}))
        os.replace(staging, kept)
    return SelfTest(found[ALL], check_orders(SELF_TEST, found), unsteady(found))


def plant(
    world: World, asked: Sequence[Asked], witnesses: Witnesses, known: Known, on_progress: Callable[[int, int], None]
) -> dict[str, Result]:
    """Real pictures of all requests; of a share of them real ones again, and each change."""
    real = Real(world)
    found: dict[str, Result] = {}
    found[ALL], sheet = measure_subject(real, asked, world, witnesses, known)
    few = sheet.take(as_many_as_quick(asked))
    found[REAL] = measured_again(found[ALL], few, known)
    order = np.random.default_rng(0).permutation(len(few))
    found[REORDERED] = measured_again(found[ALL], few.rows(order), known)
    subjects = changes(world, few.asked)
    for number, (subject, of) in enumerate(subjects):
        if len(of):
            found[subject.name], _ = measure_subject(subject, of, world, witnesses, known)
        on_progress(number + 1, len(subjects))
    return found


def as_many_as_quick(asked: Sequence[Asked]) -> Flags:
    """(N,) which requests to test on: of each kind as many prompts, and of each as many seeds, as `quick` draws."""
    quick = PLANS["quick"]
    units: dict[str, int] = {}
    for kind in KINDS:
        of_kind = list(dict.fromkeys(one.request.unit for one in asked if one.request.kind == kind))
        num = min(quick.prompts[kind], len(of_kind))
        # Spread over the list, where prompts of one thing lie together.
        spread = [of_kind[place * len(of_kind) // num] for place in range(num)]
        units |= dict.fromkeys(spread, quick.seeds.get(kind, 1))
    chosen = []
    for one in asked:
        left = units.get(one.request.unit, 0)
        chosen.append(left > 0)
        units[one.request.unit] = left - 1
    return np.array(chosen, bool)


def measured_again(whole: Result, sheet: Sheet, known: Known) -> Result:
    """The measures of some of a result's pictures, which are not looked at again."""
    return replace(whole, num_pictures=len(sheet), measures=measure_all(sheet, known))


def changes(world: World, asked: Sequence[Asked]) -> list[tuple[Subject, Sequence[Asked]]]:
    """Seven faults, one change that is none, and what each is asked."""
    real, of_things = Real(world), ("default", "specified", "unseen")
    things = [one for one in asked if one.request.kind in of_things]
    return [
        (damage.style_collapse(real, world.style_names[0]), asked),
        (damage.concept_collapse(real, world.trained_labels[0]), asked),
        (damage.copies(real), asked),
        (damage.noise(real), asked),
        (damage.wrong_prompts(real), asked),
        (damage.TrainingCopies(world), things),
        (damage.Forgetful(real, world), things),
        (damage.other_seed(real), asked),
    ]


def unsteady(found: Mapping[str, Result]) -> dict[str, list[Agreement]]:
    """Measures that saw another seed, or another order of work."""
    by_order = agreements(found[REAL], found[REORDERED])
    return {
        OTHER_SEED: [one for one in agreements(found[REAL], found[OTHER_SEED]) if not one.agrees],
        REORDERED: [one for one in by_order if abs(one.second.value - one.first.value) > EQUAL],
    }
