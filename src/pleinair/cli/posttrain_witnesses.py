"""Who looks at the pictures of `pleinair posttrain`: the suite `exploration` with its judges, and the gold reward.

warehouse's drawings --fit once, kept beside it--> second judge --+--> gold, watched and never climbed
shipped judge, copy embedding, reader ----------------------------+--> the suite, on every link's last checkpoint
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.cli.exploration import Bench
    from pleinair.evaluation.exploration.suite import Result
    from pleinair.posttraining.explored import Suite
    from pleinair.posttraining.links import Chain
    from pleinair.posttraining.materials import Materials
    from pleinair.rewards.gold import Gold
    from pleinair.sampling import SamplingConfig


def open_suite(chain: Chain, options: argparse.Namespace) -> Bench | None:
    """The suite's quick size over what the chain was trained on; None where neither page nor gold asks for it."""
    from pleinair.cli.exploration import Bench, ask_suite, home_of, ready_witnesses, ready_world
    from pleinair.recipes import find_recipe

    if chain.side_by_side.explore == "none" and options.gold is not None:
        return None
    work = home_of(options)
    world = ready_world(work, find_recipe(chain.data).concepts)
    asked = ask_suite(world, "quick", 0)
    return Bench(work, world, asked, *ready_witnesses(work, world), "quick", 0)


def gold_in(folder: Path) -> Gold:
    """The judge of a folder. Raises ConfigError where there is none."""
    from pleinair.cli.reward_places import JUDGE
    from pleinair.rewards.gold import Gold
    from pleinair.rewards.picture_judge import load_picture_judge
    from pleinair.rewards.rubric import RubricReward

    if not (folder / JUDGE).exists():
        raise ConfigError(f"{folder} has no {JUDGE}: make it with `pleinair rewards fit --judge-seed 2 --to {folder}`")
    judge = load_picture_judge(folder / JUDGE)
    return Gold(RubricReward(judge.parser(), judge))


def gold_of(opened: Bench | None) -> Gold:
    """The suite's second judge."""
    from pleinair.posttraining.second_opinion import second_gold

    assert opened is not None, "it is opened where no other gold is given"
    return second_gold(opened.witnesses.second, opened.witnesses.features)


def suite_of(chain: Chain, made: Materials, opened: Bench | None) -> Suite | None:
    """The suite as a chain uses it, where it does."""
    from pleinair.cli.exploration import explore
    from pleinair.config import config_digest
    from pleinair.evaluation.exploration.requests import to_document
    from pleinair.evaluation.exploration.subjects import Drawn
    from pleinair.model.digest import part_digest
    from pleinair.posttraining.explored import Suite

    if opened is None or chain.side_by_side.explore == "none":
        return None

    def measure(name: str, checkpoint: Path, config: SamplingConfig, folder: Path) -> Result:
        return explore(opened, Drawn(name, made.sampler(checkpoint), config), folder / "exploration")

    looking = opened.witnesses
    asked = [[to_document(one.request), one.seed] for one in opened.asked]
    return Suite(
        judges={
            "first": frozenset({part_digest(looking.judge)}),
            "second": frozenset({part_digest(looking.second), looking.features.name}),
        },
        asked=config_digest([asked, opened.size, opened.seed, opened.world.identity]),
        measure=measure,
    )
