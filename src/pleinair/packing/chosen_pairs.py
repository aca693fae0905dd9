"""Pairs of what people chose on the page of `pleinair sides`: preference events and the pictures that they are about.

events --chosen_pictures--> Choice (winner, loser) --Finder: drawn_again | handed_in--> latents --make_event_pairs--> PAIRS/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pleinair.model.pixels import to_signed_unit
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
from pleinair.packs.pair_writer import PairsWriter, PairTensors
from pleinair.packs.pairs import read_pairs_manifest
from pleinair.records.errors import ConfigError
from pleinair.records.pairs import PairSide, PairsManifest, PreferencePair
from pleinair.records.preferences import Attribute, Origin, PreferenceEvent, ShownPicture, ShownSide, holding
from pleinair.records.rewards import Pictures
from pleinair.sampling import Sampler, SamplingConfig

OF_ONE_PICTURE: tuple[Attribute, ...] = ("prefer", "follows_style", "shows_thing")
"""Questions whose answer says something of each picture; that for more styles speaks of a whole side."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Two pictures of one prompt, one of which was chosen."""

    event: PreferenceEvent
    prompt: str
    winner: tuple[ShownSide, ShownPicture]
    loser: tuple[ShownSide, ShownPicture]


@dataclass(frozen=True)
class Found:
    """A shown picture as it is stored in a pair."""

    latents_CHW: Tensor
    side: PairSide


@dataclass(frozen=True)
class Finder:
    """How shown pictures become latents."""

    find: Callable[[ShownSide, ShownPicture], Found]
    checkpoints: Mapping[str, str]
    """Identity of the weights that drew a side, by the side's: the pairs say it, so it is part of their plan."""


def chosen_pictures(
    events: Iterable[PreferenceEvent],
    *,
    origins: Sequence[Origin] = ("human",),
    attributes: Sequence[Attribute] = OF_ONE_PICTURE,
) -> list[Choice]:
    """The choices that events make: what holds, no controls, left or right; pictures of equal prompt, in the order shown."""
    choices = []
    for event in holding(events):
        if event.control or event.origin not in origins or event.attribute not in attributes:
            continue
        if event.answer not in ("left", "right"):
            continue
        winner, loser = (event.left, event.right) if event.answer == "left" else (event.right, event.left)
        for unit in dict.fromkeys(picture.unit for picture in winner.pictures):
            sides = [[picture for picture in side.pictures if picture.unit == unit] for side in (winner, loser)]
            choices += [
                Choice(event=event, prompt=unit.partition(": ")[2], winner=(winner, first), loser=(loser, second))
                for first, second in zip(*sides, strict=False)
            ]
    return choices


def drawn_again(sources: Mapping[str, tuple[Source, SamplingConfig]]) -> Finder:
    """Draws shown pictures with the weights and settings that `sources` has for the identities of sides.

    Finding raises ConfigError for a side that it does not know.
    """

    def find(side: ShownSide, picture: ShownPicture) -> Found:
        if side.identity not in sources:
            raise ConfigError(
                f"pictures of {side.subject} ({side.identity[:12]}) were judged and nothing says what draws them: name its "
                "checkpoint, or hand its pictures in"
            )
        source, config = sources[side.identity]
        prompt = picture.unit.partition(": ")[2]
        drawing = Drawing(source, config, prompt, picture.seed)
        return Found(draw_latents([drawing])[0].clone(), drawing.side(prompt))

    return Finder(find, {side: source.identity for side, (source, _) in sources.items()})


def handed_in(
    pictures: Mapping[tuple[str, str, int], Pictures], checkpoints: Mapping[str, str], sampler: Sampler
) -> Finder:
    """Takes shown pictures by (identity of the side, unit, seed), (H, W, 3) each, through the autoencoder.

    `checkpoints` says which weights drew a side; one that is not in it was drawn by none of ours. Whoever hands them in has
    made sure of it. Finding raises ConfigError for a picture that is not there.
    """

    @torch.inference_mode()
    def find(side: ShownSide, picture: ShownPicture) -> Found:
        key = (side.identity, picture.unit, picture.seed)
        if key not in pictures:
            raise ConfigError(
                f"the picture {picture.unit!r:.80}, seed {picture.seed}, of {side.subject} is not there: hand it in"
            )
        latents_CHW = sampler.codec.encode(to_signed_unit(pictures[key][None]))[0]
        checkpoint = checkpoints.get(side.identity, "")
        return Found(latents_CHW.clone(), PairSide(checkpoint=checkpoint, seed=picture.seed))

    return Finder(find, checkpoints)


def make_event_pairs(
    directory: Path,
    choices: Sequence[Choice],
    finder: Finder,
    sampler: Sampler,
    *,
    on_progress: Progress = lambda done, total: None,
) -> PairsManifest:
    """Pairs of what was chosen; `sampler` gives text features and the latent space. Goes on after a kill.

    Raises PackError when no choice is there.
    """
    told = [
        [choice.event.event, choice.prompt, _seen(choice.winner, finder), _seen(choice.loser, finder)]
        for choice in choices
    ]
    space = [sampler.codec.describe().identity, sampler.text_encoder.digest]
    writer = PairsWriter(directory, empty_manifest(sampler, "chosen", [told, space]))
    if writer.finished:
        return read_pairs_manifest(directory)
    for first in range(writer.num_pairs, len(choices), PIECE):
        chosen = choices[first : first + PIECE]
        texts = text_features([choice.prompt for choice in chosen], sampler)
        writer.add([_of_choice(choice, first + n, finder, texts[n]) for n, choice in enumerate(chosen)])
        on_progress(first + len(chosen), len(choices))
    return writer.finish({PROJECTION: projection_file(sampler)})


def _seen(shown: tuple[ShownSide, ShownPicture], finder: Finder) -> list[Any]:
    """What decides one side of a pair."""
    side, picture = shown
    return [side.identity, asdict(picture), finder.checkpoints.get(side.identity, "")]


def _of_choice(choice: Choice, number: int, finder: Finder, text_TLD: Tensor) -> tuple[PreferencePair, PairTensors]:
    winner, loser = finder.find(*choice.winner), finder.find(*choice.loser)
    pair = PreferencePair(
        key=f"{choice.event.event[:8]} {number} {choice.event.attribute}: {choice.prompt}",
        prompt=choice.prompt,
        winner=winner.side,
        loser=loser.side,
        origin=choice.event.origin,
        event=choice.event.event,
    )
    return pair, PairTensors(winner.latents_CHW, loser.latents_CHW, text_TLD)
