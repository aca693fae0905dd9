"""Who looks at a chain's pictures, and who of them may be climbed: nobody is two at once.

judge          tells judge accuracy, diversity, Frechet distance       never climbed, never gold
gold           watched beside them                                     never climbed, another network than the judge
suite's judges tell the ledger                                         never climbed
rewards        climbed in the link `rl`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pleinair.model.digest import part_digest
from pleinair.posttraining.links import Chain
from pleinair.posttraining.materials import Materials
from pleinair.records.errors import ConfigError
from pleinair.rewards.gold import refuse_gold
from pleinair.rewards.identity import identity_of, parts_of

Parts = Mapping[str, frozenset[str]]
"""Of the suite's judges, by name: digests of their networks."""


@dataclass(frozen=True)
class Witness:
    """One that looks."""

    name: str
    does: str
    """In a few words."""
    climbed: str
    """With which weights; empty for nobody."""
    identity: str
    """What decides its numbers."""


def refuse_shared(made: Materials, suite: Parts) -> None:
    """Raise ConfigError where gold is the judge that measures, or where what is climbed is gold or a judge of the suite."""
    measuring = part_digest(made.judge)
    for held in made.gold:
        if measuring in parts_of(held.reward):
            raise ConfigError(
                f"{held.name} is built on the judge that tells judge accuracy, so that the two are one witness: fit another "
                "with `pleinair rewards fit --judge-seed 2 --to FOLDER` and give it as --gold FOLDER"
            )
    refuse_gold(made.rewards, [], made.gold)
    for reward in made.rewards:
        for name, parts in suite.items():
            if shared := parts_of(reward) & parts:
                raise ConfigError(
                    f"{reward.name} would be climbed and is built on the {name} judge of the suite exploration "
                    f"({min(shared):.40}), which measures what the chain cost: fit a reward of its own with `pleinair rewards "
                    "fit`, or leave the suite out with --measure none"
                )


def witnesses_of(chain: Chain, made: Materials, suite: Parts) -> list[Witness]:
    """Everybody, for the page."""
    measuring = part_digest(made.judge)
    found = [Witness("judge", "tells judge accuracy, diversity and Frechet distance", "", measuring)]
    gold_parts = frozenset[str]().union(*(parts_of(held.reward) for held in made.gold))
    for name, parts in suite.items():
        does = "the same judge, in the suite" if measuring in parts else "in the suite"
        does += " and as gold" if gold_parts & parts else ""
        found.append(Witness(f"{name} judge of the suite", does, "", " ".join(sorted(one[:12] for one in parts))))
    found += [Witness(held.name, "watched", "", identity_of(held.reward)) for held in made.gold]
    weights = chain.rl.weights if chain.rl is not None else {}
    for reward in made.rewards:
        own = [f"{name} x {weight:g}" for name, weight in weights.items() if name.split(".")[0] == reward.name]
        found.append(Witness(reward.name, "climbed in the link rl", ", ".join(own), identity_of(reward)))
    return found
