"""What a link is expected to cost: calls of the network, counted, times what one picture's call takes.

A forward and backward pass counts as three calls. Encoding text, decoding, rewards and the optimiser are left out.
"""

from __future__ import annotations

from pleinair.evaluation.exploration.requests import PLANS
from pleinair.packing.delta_pairs import DeltaConfig
from pleinair.posttraining.links import Chain, DistilLink, FlowLink, Link, PreferenceLink, RewardLink
from pleinair.sampling import SamplingConfig

TRAINED = 3
"""Calls that one trained picture counts as."""
PICTURES_OF_SUITE = sum(num * PLANS["quick"].seeds.get(kind, 1) for kind, num in PLANS["quick"].prompts.items())
"""Drawn by the suite's quick size, where real pictures answer all of it."""


def expected_minutes(chain: Chain, until: str | None = None) -> dict[str, float]:
    """By link, `base` first, from the chain's `call_seconds`; what is drawn to measure each is in them."""
    steps: list[tuple[str, Link | None]] = [("base", None), *chain.links(until).items()]
    ends = (steps[0][0], steps[-1][0])
    needed = {
        name: (0 if link is None else calls(link)) + calls_of_measuring(chain, link, name in ends)
        for name, link in steps
    }
    return {name: count * chain.call_seconds / 60 for name, count in needed.items()}


def calls_of_measuring(chain: Chain, link: Link | None, at_end: bool) -> int:
    """Side by side, and by the suite where the chain says so; a distilled model by its own few steps."""
    told = chain.side_by_side
    sampling = link.tdm.sampling() if isinstance(link, DistilLink) else told.sampling
    unguided = sampling.num_steps if told.unguided and sampling.guidance else 0
    drawn = told.num_prompts * told.pictures_per_prompt * (calls_of_sampling(sampling) + unguided)
    explored = told.explore == "all" or (told.explore == "ends" and at_end)
    return drawn + (calls_of_sampling(sampling) * PICTURES_OF_SUITE if explored else 0)


def calls(link: Link) -> int:
    """Calls of one picture that a link makes to be trained."""
    if isinstance(link, FlowLink):
        specialists = len(link.packs) * link.num_steps * link.batch_size * TRAINED
        return specialists + (calls_of_student(link) if link.combine == "on_policy" else 0)
    if isinstance(link, PreferenceLink):
        pair_and_anchor = 3 * (TRAINED + 1)  # the reference sees all three
        drawn = 0 if link.pairs is None else link.num_pairs * calls_of_pair(link.pairs)
        return drawn + link.num_steps * link.batch_size * pair_and_anchor
    if isinstance(link, RewardLink):
        return _calls_of_rewards(link)
    assert isinstance(link, DistilLink)
    sampled = link.tdm.num_steps // 2  # a row's segment begins half way, on average
    teacher = 2 if link.tdm.guidance else 1
    return link.num_steps * link.batch_size * (sampled + 2 * TRAINED + teacher)


def calls_of_student(link: FlowLink) -> int:
    """Of a student of the link's specialists: its trajectories, and at every state it, one teacher and the anchor."""
    told = link.student.distillation
    compared = TRAINED + 1 + (told.anchor_weight > 0)
    return link.student.num_steps * link.batch_size * (told.num_steps + told.num_visits * compared)


def _calls_of_rewards(link: RewardLink) -> int:
    drawing = link.rollout.drawing
    drawn = link.num_iterations * link.rollout.num_pictures * drawing.num_steps
    states = drawing.window_size if link.method == "grpo" else 1
    frozen = 1 if link.method == "grpo" else 2
    return drawn + link.num_steps * link.batch_size * states * (TRAINED + frozen)


def calls_of_sampling(config: SamplingConfig) -> int:
    """Of one picture."""
    return config.num_steps * (2 if config.guidance else 1)


def calls_of_pair(config: DeltaConfig) -> int:
    """Both sides at most: losers by `prompt` cost as much as winners."""
    return 2 * calls_of_sampling(config.sampling)
