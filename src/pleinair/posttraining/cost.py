"""What a link is expected to cost: calls of the network, counted, times what one picture's call takes.

A forward and backward pass counts as three calls. Encoding text, decoding, rewards and the optimiser are left out.
"""

from __future__ import annotations

from pleinair.packing.delta_pairs import DeltaConfig
from pleinair.posttraining.links import Chain, DistilLink, FlowLink, Link, LinkName, PreferenceLink, RewardLink
from pleinair.sampling import SamplingConfig

TRAINED = 3
"""Calls that one trained picture counts as."""


def expected_minutes(chain: Chain, until: str | None = None) -> dict[LinkName, float]:
    """By link, from the chain's `call_seconds`; what is drawn after each link is in them."""
    drawn = calls_of_side_by_side(chain)
    own = calls_of_sampling(chain.tdm.tdm.sampling()) * chain.side_by_side.num_prompts if chain.tdm else 0
    seen = {
        name: own * chain.side_by_side.pictures_per_prompt if name == "tdm" else drawn for name in chain.links(until)
    }
    return {name: (calls(link) + seen[name]) * chain.call_seconds / 60 for name, link in chain.links(until).items()}


def calls(link: Link) -> int:
    """Calls of one picture that a link makes to be trained."""
    if isinstance(link, FlowLink):
        return len(link.packs) * link.num_steps * link.batch_size * TRAINED
    if isinstance(link, PreferenceLink):
        pair_and_anchor = 3 * (TRAINED + 1)  # the reference sees all three
        return link.num_pairs * calls_of_pair(link.pairs) + link.num_steps * link.batch_size * pair_and_anchor
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


def calls_of_side_by_side(chain: Chain) -> int:
    """Of all pictures that are drawn after a link."""
    told = chain.side_by_side
    unguided = told.sampling.num_steps if told.unguided and told.sampling.guidance else 0
    return told.num_prompts * told.pictures_per_prompt * (calls_of_sampling(told.sampling) + unguided)
