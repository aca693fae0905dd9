"""Pairs whose order is known from how they were drawn (delta learning; Geng et al. 2025).

    prompts --policy, as usual--> winners -+
            --fewer steps | less guidance | half the prompt | earlier weights--> losers -+-> pairs, `synthetic`

What teaches is the gap between two pictures, whose sign follows from how they were made, not how good either is. A reward looks
at the first of them, to say whether the sign is what we think: it chooses no pair, but ways of making them may be left out by
what it says. Winner and loser start from the same noise.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pleinair.config import to_document
from pleinair.model.pixels import to_bytes
from pleinair.packing.pair_drawing import (
    PIECE,
    PROJECTION,
    Drawing,
    Source,
    draw_latents,
    empty_manifest,
    projection_file,
    text_features,
)
from pleinair.packs.order import permutation
from pleinair.packs.pair_writer import PairsWriter, PairTensors
from pleinair.packs.pairs import read_pairs_manifest
from pleinair.packs.writer import key_hash
from pleinair.records.errors import ConfigError, PackError, RewardError
from pleinair.records.pairs import GapCheck, PairsManifest, PreferencePair, WayCheck
from pleinair.records.rewards import Pictures, Values
from pleinair.sampling import Sampler, SamplingConfig

Way = Literal["steps", "guidance", "prompt", "earlier", "weak"]
"""What makes a loser worse. `weak`: both sides are drawn by earlier weights, the loser with fewer steps; its winner is worse than
what the policy draws."""
WAYS: tuple[Way, ...] = get_args(Way)
Score = Callable[[Sequence[str], Pictures], Values]
"""What a reward says of pictures (N, H, W, 3), each of the prompt beside it; higher for better."""
Progress = Callable[[int, int], None]
Planned = tuple[Way, str, Drawing, Drawing]
"""Way, prompt, winner and loser of one pair."""
SEED_STEP = 1_000_003
"""Between the noise of two pairs."""


@dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """How pairs of known order are drawn."""

    sampling: SamplingConfig
    """How winners are drawn."""
    ways: tuple[Way, ...] = ("steps", "guidance", "prompt")
    """What makes losers worse, one after the other."""
    fewer_steps: int = 4
    """Steps of a loser by `steps` or `weak`."""
    lower_guidance: float = 0.0
    """Guidance of a loser by `guidance`."""
    kept_words: float = 0.5
    """Share of the words that a loser by `prompt` is drawn from."""
    num_judged: int = 128
    """Pairs that a reward looks at, the first ones."""
    least_right: float = 0.95
    """Share of them whose winner must get the higher value."""
    when_unsure: Literal["refuse", "drop", "say"] = "refuse"
    """What happens where they are not. `refuse`: no pairs. `drop` asks each way for winners that are better with 95% confidence
    in place of that share, and leaves out those whose are not; with none left there are no pairs. `say`: pairs whose manifest
    says so."""
    seed: int = 0
    """Of noise and dropped words."""

    def __post_init__(self) -> None:
        if not self.ways or not set(self.ways) <= set(WAYS):
            raise ConfigError(f"ways is {self.ways}: give some of {', '.join(WAYS)}")
        if {"steps", "weak"} & set(self.ways) and not 1 <= self.fewer_steps < self.sampling.num_steps:
            raise ConfigError(f"fewer_steps is {self.fewer_steps}: give 1 to {self.sampling.num_steps - 1}")
        if "guidance" in self.ways and not 0 <= self.lower_guidance < self.sampling.guidance:
            raise ConfigError(f"lower_guidance is {self.lower_guidance}: give 0 to below {self.sampling.guidance}")
        if not 0 <= self.kept_words < 1:
            raise ConfigError(f"kept_words is {self.kept_words}: it is a share, give one from 0 to below 1")
        if not 0.5 <= self.least_right <= 1:
            raise ConfigError(f"least_right is {self.least_right}: half is chance, give 0.5 to 1")


def make_delta_pairs(
    directory: Path,
    prompts: Sequence[str],
    policy: Source,
    config: DeltaConfig,
    *,
    earlier: Source | None = None,
    reward: tuple[str, Score] | None = None,
    on_progress: Progress = lambda done, total: None,
) -> PairsManifest:
    """Draw one pair for each prompt, in pieces; called again after a kill it goes on. What is there of the same plan stays.

    `reward` is a name and what looks at the first pairs. Raises ConfigError for a way that needs earlier weights and has none,
    and where nothing looks at pairs whose order must be shown; PackError where too few winners are better than their losers.
    """
    if earlier is None and (needing := [way for way in config.ways if way in ("earlier", "weak")]):
        raise ConfigError(f"the way {needing[0]!r} draws with earlier weights: name their checkpoint, or leave it out")
    if reward is None and config.when_unsure != "say":
        raise ConfigError(
            f"when_unsure is {config.when_unsure} and nothing looks at the order of the pairs: give prompts that a judge has "
            "names for, or set it to say"
        )
    writer = PairsWriter(directory, _manifest(prompts, policy, config, earlier, reward))
    if writer.finished:
        return read_pairs_manifest(directory)

    def planned_by(ways: Sequence[Way]) -> list[Planned]:
        return [_planned(number, prompt, ways, policy, config, earlier) for number, prompt in enumerate(prompts)]

    pilot = _pilot(writer, planned_by(config.ways), policy, config, reward)
    planned = planned_by(kept_ways(config, writer.gap))
    for first in range(writer.num_pairs, len(planned), PIECE):
        chosen = planned[first : first + PIECE]
        drawn = pilot.pop(first, None) or _drawn(chosen, policy, writer.manifest.plan)
        writer.add(drawn)
        on_progress(first + len(chosen), len(planned))
    return writer.finish({PROJECTION: projection_file(policy.sampler)})


def _manifest(
    prompts: Sequence[str],
    policy: Source,
    config: DeltaConfig,
    earlier: Source | None,
    reward: tuple[str, Score] | None,
) -> PairsManifest:
    sampler = policy.sampler
    told = [policy.identity, earlier.identity if earlier else None, reward[0] if reward else None]
    space = [sampler.codec.describe().identity, sampler.text_encoder.digest]
    return empty_manifest(sampler, "drawn", [list(prompts), to_document(config), told, space])


def kept_ways(config: DeltaConfig, gap: GapCheck | None) -> tuple[Way, ...]:
    """Those that pairs are made by."""
    return tuple(way for way in config.ways if gap is None or way not in gap.dropped)


def _planned(
    number: int, prompt: str, ways: Sequence[Way], policy: Source, config: DeltaConfig, earlier: Source | None
) -> Planned:
    way, normal = ways[number % len(ways)], config.sampling
    seed = config.seed + SEED_STEP * (number + 1)
    winner = loser = Drawing(policy, normal, prompt, seed)
    if way == "steps":
        loser = replace(loser, config=replace(normal, num_steps=config.fewer_steps))
    elif way == "guidance":
        loser = replace(loser, config=replace(normal, guidance=config.lower_guidance))
    elif way == "prompt":
        loser = replace(loser, prompt=shortened(prompt, config.kept_words, config.seed))
    else:
        assert earlier is not None  # refused before
        loser = replace(loser, source=earlier)
        if way == "weak":
            winner, loser = loser, replace(loser, config=replace(normal, num_steps=config.fewer_steps))
    return way, prompt, winner, loser


def shortened(prompt: str, kept_share: float, seed: int = 0) -> str:
    """The prompt with a share of its words, chosen by its own hash, in their order; at least one word is gone."""
    words = prompt.split()
    num_kept = min(round(kept_share * len(words)), len(words) - 1)
    kept = sorted(permutation(len(words), seed, key_hash(prompt))[:num_kept].tolist())
    return " ".join(words[place] for place in kept)


def _pilot(
    writer: PairsWriter,
    planned: Sequence[Planned],
    policy: Source,
    config: DeltaConfig,
    reward: tuple[str, Score] | None,
) -> dict[int, list[tuple[PreferencePair, PairTensors]]]:
    """The first pieces, drawn and looked at before the rest is paid for.

    None where that was done before, nor where a way is left out: then they are other pairs.
    """
    if reward is None or writer.gap is not None or not planned:
        return {}
    pieces = {}
    for first in range(0, min(config.num_judged, len(planned)), PIECE):
        pieces[first] = _drawn(planned[first : first + PIECE], policy, writer.manifest.plan)
    judged = [pair for piece in pieces.values() for pair in piece][: config.num_judged]
    gap = check_gap(judged, [way for way, *_ in planned[: len(judged)]], policy.sampler, *reward)
    if config.when_unsure == "drop":
        gap = with_shown_ways(gap, config.ways)
    if refusal := _refusal(gap, config):
        writer.discard()
        raise PackError(refusal)
    writer.keep_gap(gap)
    return {} if gap.dropped else {first: piece for first, piece in pieces.items() if first >= writer.num_pairs}


def _refusal(gap: GapCheck, config: DeltaConfig) -> str:
    """Why there are no pairs; empty where there are some."""
    remedy = "widen the gap (fewer_steps, lower_guidance, kept_words), or set when_unsure to say"
    if config.when_unsure == "refuse" and gap.share < config.least_right:
        return (
            f"{gap.num_right} of {gap.num_judged} winners ({gap.share:.0%}) are better than their losers by {gap.judged_by}, "
            f"and {config.least_right:.0%} must be: {remedy}"
        )
    if not kept_ways(config, gap):
        told = "; ".join(f"{way} {check}" for way, check in gap.by_way.items())
        return (
            f"in no way are winners better than their losers by {gap.judged_by} with 95% confidence ({told}): {remedy}"
        )
    return ""


def check_gap(
    pairs: Sequence[tuple[PreferencePair, PairTensors]], ways: Sequence[str], sampler: Sampler, name: str, score: Score
) -> GapCheck:
    """What a reward says of pairs, each made by the way beside it.

    Raises RewardError for anything but one finite number a picture.
    """
    prompts = [pair.prompt for pair, _ in pairs]
    winners, losers = (
        _scored(prompts, _pictures(torch.stack([getattr(held, side) for _, held in pairs]), sampler), name, score)
        for side in ("winner_CHW", "loser_CHW")
    )
    gaps = winners.astype(np.float64) - losers
    by_way = {way: _way_check(gaps[[one == way for one in ways]]) for way in dict.fromkeys(ways)}
    return GapCheck(
        judged_by=name,
        num_judged=len(gaps),
        num_right=int((gaps > 0).sum()),
        mean_gap=float(gaps.mean()),
        by_way=by_way,
    )


def _way_check(gaps: npt.NDArray[np.float64]) -> WayCheck:
    mean, interval = float(gaps.mean()), None
    if len(gaps) > 1:
        half = 1.96 * float(gaps.std(ddof=1)) / len(gaps) ** 0.5
        interval = (mean - half, mean + half)
    return WayCheck(num_judged=len(gaps), num_right=int((gaps > 0).sum()), mean_gap=mean, interval=interval)


def with_shown_ways(gap: GapCheck, ways: Sequence[Way]) -> GapCheck:
    """The check of those ways alone whose order is shown; unchanged but for `dropped` where none is."""
    kept = {way: check for way, check in gap.by_way.items() if check.is_shown}
    dropped = tuple(way for way in ways if way not in kept)
    if not kept:
        return replace(gap, dropped=dropped)
    num_judged = sum(check.num_judged for check in kept.values())
    return replace(
        gap,
        num_judged=num_judged,
        num_right=sum(check.num_right for check in kept.values()),
        mean_gap=sum(check.mean_gap * check.num_judged for check in kept.values()) / num_judged,
        dropped=dropped,
    )


def _scored(prompts: Sequence[str], pictures: Pictures, name: str, score: Score) -> Values:
    values = np.asarray(score(prompts, pictures))
    if values.shape != (len(prompts),) or not np.isfinite(values).all():
        raise RewardError(
            f"the reward {name} gave {values.shape} values, {int(np.isfinite(values).sum())} of them finite, for "
            f"{len(prompts)} pictures: it must give one number for each"
        )
    return values


@torch.inference_mode()
def _pictures(latents_BCHW: Tensor, sampler: Sampler) -> Pictures:
    return to_bytes(sampler.codec.decode(latents_BCHW.float()))


def _drawn(planned: Sequence[Planned], policy: Source, plan: str) -> list[tuple[PreferencePair, PairTensors]]:
    """Pairs with their tensors."""
    winners = draw_latents([winner for _, _, winner, _ in planned])
    losers = draw_latents([loser for _, _, _, loser in planned])
    texts = text_features([prompt for _, prompt, _, _ in planned], policy.sampler)
    pairs = []
    for (way, prompt, winner, loser), *held in zip(planned, winners, losers, texts, strict=True):
        key = f"{plan[:8]} {winner.seed} {way}: {prompt}"
        pair = PreferencePair(
            key=key,
            prompt=prompt,
            winner=winner.side(prompt),
            loser=loser.side(prompt),
            origin="synthetic",
            event=str(uuid.uuid5(uuid.NAMESPACE_URL, key)),
            weak_winner=way == "weak",
        )
        pairs.append((pair, PairTensors(*held)))
    return pairs
