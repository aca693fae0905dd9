"""Which requests a world's subjects get: the suite's, as far as real pictures answer them, or the reader's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pleinair.evaluation.exploration.requests import PLANS, Asked, Request, Size, build_requests, plan_requests
from pleinair.evaluation.exploration.world import World
from pleinair.records.errors import ConfigError


def suite_requests(world: World, style_words: Mapping[str, str], size: Size, *, seed: int = 0) -> list[Asked]:
    """The suite's share for a size; `style_words` says how a prompt names each style."""
    concepts = {label: world.concept_names[world.concept_of_label[label]] for label in world.trained_labels}
    requests = build_requests(concepts, {style: style_words[style] for style in world.style_names})
    return plan_requests([one for one in requests if is_real(one, world)], PLANS[size], seed=seed)


def is_real(request: Request, world: World) -> bool:
    """Whether a real picture shows what is asked, so that every subject has a real one beside it."""
    if request.style:
        return world.row(request.label, request.style) is not None
    if request.kind == "any-colour":
        return any(label.endswith(f" {request.label}") for label in world.concept_of_label)
    needed = [request.label] if request.kind == "colour" else request.variants
    return all(label in world.concept_of_label for label in needed)


def own_requests(own: Sequence[Request], world: World, *, seed: int = 0) -> list[Asked]:
    """The reader's own, each once. Raises ConfigError for a single one, and for a thing or style that no judge knows."""
    if len(own) < 2:
        raise ConfigError(f"{len(own)} prompt gives a single picture, and an interval needs two or more: add prompts")
    for one in own:
        shown = one.variants or (one.label, one.other)
        unknown = [label for label in shown if label and label not in world.concept_of_label]
        if one.kind == "any-colour":  # of which pictures show a thing of a colour, and none the thing alone
            unknown = [] if is_real(one, world) else [one.label]
        if unknown or (one.style and one.style not in world.style_names):
            raise ConfigError(
                f"{one.prompt!r} should show {(unknown or [one.style])[0]!r}, which no judge knows: use labels of the "
                f"drawing sets, and styles {', '.join(world.style_names)}"
            )
    return [Asked(one, seed * 1_000_003 + place) for place, one in enumerate(own)]
