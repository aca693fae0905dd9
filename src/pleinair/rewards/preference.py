"""What people like, learnt from pairs of which one was preferred: Bradley-Terry on features of picture and prompt.

    pairs of pictures, the preferred one first --PairFeatures--> winners (N, F), losers (N, F) --fit--> head
    fit: pairs of some prompts train the head, of others set its scale, of others measure it

A prompt's pairs stay together, so that what is measured is taste, not memory of a prompt. Pairs come from preference events
that hold, without controls (`records.preferences`); of what origin they were is the caller's to know and to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pleinair.checkpoint.compact import load_compact, save_compact
from pleinair.config import from_document, to_document
from pleinair.model.digest import part_digest
from pleinair.model.image_encoder import ImageEncoder
from pleinair.model.preference import PreferenceHead, PreferenceHeadConfig, bradley_terry_loss, rescale
from pleinair.model.two_tower import TwoTower
from pleinair.records.errors import CheckpointError, ConfigError, RewardError
from pleinair.records.rewards import Pictures, RewardContext, RewardValues
from pleinair.rewards.calibration import calibration_error, sigmoid

_KIND = "preference"
Features = npt.NDArray[np.float32]
PairFeatures = Callable[[Sequence[str], Pictures], Features]
"""Prompts and (N, H, W, 3) pictures to (N, F)."""


class TowerFeatures:
    """`PairFeatures` of an image-text tower: the picture, what it shares with the prompt, and how much that is."""

    def __init__(self, model: TwoTower, encoder: ImageEncoder) -> None:
        if encoder.name != model.config.encoder_name:
            raise ConfigError(
                f"the tower was trained on {model.config.encoder_name}, not on {encoder.name}: load that one"
            )
        self.model, self.encoder = model.eval(), encoder
        self.name = f"tower {part_digest(model)[:16]} on {encoder.name}"

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> Features:
        """(N, 2 D + 1). Raises ValueError for a prompt without a word."""
        images_ND = self.model.image_features(torch.from_numpy(self.encoder.embed(list(pictures))))
        distinct = list(dict.fromkeys(prompts))
        texts_TD = self.model.text_features(distinct)
        texts_ND = texts_TD[[distinct.index(prompt) for prompt in prompts]]
        shared_ND = images_ND * texts_ND
        return torch.cat([images_ND, shared_ND, shared_ND.sum(dim=1, keepdim=True)], dim=1).numpy()


@dataclass(frozen=True, kw_only=True)
class PreferenceTraining:
    """How the head is fitted."""

    hidden: int = 0
    """Width of an MLP beside the linear score; 0: linear, which some hundred pairs can carry."""
    penalty: float = 0.01
    """Of squared weights over standardised features (ridge)."""
    num_steps: int = 300
    """Full-batch updates of AdamW."""
    learning_rate: float = 0.03
    """Peak rate; a cosine to zero."""
    held_out_share: float = 0.3
    """Of prompts: kept from fitting, a third of them to set the scale and the rest to measure."""
    seed: int = 0
    """Of the split and of initial weights."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out_share < 1:
            raise ConfigError(f"held_out_share is {self.held_out_share}: give a share between 0 and 1")
        if self.penalty < 0 or self.num_steps < 1 or self.hidden < 0:
            raise ConfigError(
                f"penalty {self.penalty}, num_steps {self.num_steps}, hidden {self.hidden}: give 0, 1 and 0 or more"
            )


@dataclass(frozen=True)
class PreferenceReport:
    """What the fitted head does on pairs of prompts it never saw."""

    accuracy: float
    """Share of pairs whose winner scores higher, ties half."""
    calibration_error: float
    """Of P(winner), over each pair both ways round."""
    num_pairs: int
    train_accuracy: float
    num_train_pairs: int


def fit_preference(
    winners_NF: Features,
    losers_NF: Features,
    prompts: Sequence[str],
    features_by: str,
    config: PreferenceTraining | None = None,
) -> tuple[PreferenceHead, PreferenceReport]:
    """Fit on N pairs, of which `prompts` says what each was drawn from. The same arguments give the same head.

    Raises ConfigError for pairs of too few prompts.
    """
    config = config or PreferenceTraining()
    if not winners_NF.shape == losers_NF.shape or len(winners_NF) != len(prompts):
        raise ValueError(
            f"features of winners {winners_NF.shape} and losers {losers_NF.shape} of {len(prompts)} prompts: give one each"
        )
    parts = split_by_prompt(prompts, config)
    torch.manual_seed(config.seed)
    head = PreferenceHead(
        PreferenceHeadConfig(features=winners_NF.shape[1], hidden=config.hidden, features_by=features_by)
    )
    winners, losers = (torch.from_numpy(np.ascontiguousarray(one, np.float32)) for one in (winners_NF, losers_NF))
    train = torch.from_numpy(parts == 0)
    head.set_statistics(torch.cat([winners[train], losers[train]]))
    _fit(head, winners[train], losers[train], config)
    with torch.inference_mode():
        margin = (head(winners) - head(losers)).numpy().astype(np.float64)
    scale = best_scale(margin[parts == 1])
    rescale(head, scale)
    return head.eval(), _report(scale * margin, parts)


def split_by_prompt(prompts: Sequence[str], config: PreferenceTraining) -> npt.NDArray[np.int64]:
    """(N,): 0 to fit, 1 to set the scale, 2 to measure; the pairs of a prompt stay together."""
    distinct = sorted(set(prompts))
    num_held = round(config.held_out_share * len(distinct))
    if num_held < 2 or num_held >= len(distinct):
        raise ConfigError(
            f"pairs of {len(distinct)} prompts cannot be fitted and measured with held_out_share={config.held_out_share}: "
            "give pairs of more prompts"
        )
    order = np.random.default_rng(config.seed).permutation(len(distinct))
    part = {distinct[row]: 1 if place < max(num_held // 3, 1) else 2 for place, row in enumerate(order[:num_held])}
    return np.array([part.get(prompt, 0) for prompt in prompts])


def _fit(head: PreferenceHead, winners: torch.Tensor, losers: torch.Tensor, config: PreferenceTraining) -> None:
    optimiser = torch.optim.AdamW(head.parameters(), config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.num_steps)
    for _ in range(config.num_steps):
        squares = sum((weight.square().sum() for weight in head.parameters() if weight.ndim > 1), torch.zeros(()))
        loss = bradley_terry_loss(head(winners), head(losers)) + config.penalty * squares
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def best_scale(margin_N: npt.NDArray[np.float64]) -> float:
    """The factor of the margins, from 1/30 to 30, under which what was preferred was likeliest."""
    factors = np.geomspace(1 / 30, 30, 200)
    losses = [np.logaddexp(0, -factor * margin_N).mean() for factor in factors]
    return float(factors[int(np.argmin(losses))])


def _report(margin_N: npt.NDArray[np.float64], parts_N: npt.NDArray[np.int64]) -> PreferenceReport:
    fitted, measured = margin_N[parts_N == 0], margin_N[parts_N == 2]
    both_ways = sigmoid(np.concatenate([measured, -measured]))
    return PreferenceReport(
        accuracy=_share_right(measured),
        calibration_error=calibration_error(both_ways, np.arange(len(both_ways)) < len(measured)),
        num_pairs=len(measured),
        train_accuracy=_share_right(fitted),
        num_train_pairs=len(fitted),
    )


def _share_right(margin_N: npt.NDArray[np.float64]) -> float:
    return float((margin_N > 0).mean() + (margin_N == 0).mean() / 2)


class PreferenceReward:
    """Value `preference`, a score in units of log odds: 1 more is preferred in 73 of 100 pairs."""

    pointwise = True
    bounds = None

    def __init__(self, head: PreferenceHead, features: PairFeatures, *, name: str = "preference") -> None:
        """Raises ConfigError where the features are not those that the head was fitted on."""
        made_by = str(getattr(features, "name", ""))
        if head.config.features_by != made_by:
            raise ConfigError(
                f"the head was fitted on {head.config.features_by!r}, not on {made_by!r}: load those features"
            )
        self.head, self.features, self.name = head.eval(), features, name

    @cached_property
    def identity(self) -> str:
        """Digest of the head, with the name of its features."""
        return part_digest(self.head, self.head.config.features_by, self.name)

    @cached_property
    def parts(self) -> frozenset[str]:
        """The head and what its features are made by."""
        return frozenset({part_digest(self.head), self.head.config.features_by})

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        """Scores. Raises RewardError for features of another width."""
        features_NF = self.features(prompts, pictures)
        if features_NF.shape != (len(prompts), self.head.config.features):
            raise RewardError(
                f"{self.name}: features have shape {features_NF.shape}, the head takes {self.head.config.features} for each "
                f"of {len(prompts)} pictures: give those it was fitted on"
            )
        scores = self.head(torch.from_numpy(np.ascontiguousarray(features_NF, np.float32)))
        return RewardValues(values={self.name: scores.numpy()})


@dataclass(frozen=True, kw_only=True)
class PreferenceSource:
    """What a preference model was fitted on; `str()` makes a sentence of it."""

    pairs: str = ""
    """Plan of the pairs, as their manifest names it."""
    origins: dict[str, int] = field(default_factory=dict)
    """Pairs by origin: `human` where people chose, `synthetic` where the order follows from how the two were made."""
    encoder: str = ""
    """Name or folder of the image encoder behind the features."""

    def __str__(self) -> str:
        told = ", ".join(f"{count} {origin}" for origin, count in sorted(self.origins.items()))
        return f"fitted on pairs {self.pairs[:12] or 'unknown'}, {told or 'of unknown origin'}"


@dataclass(frozen=True)
class SavedPreference:
    """What is in a file."""

    head: PreferenceHead
    report: PreferenceReport
    source: PreferenceSource


def save_preference(
    head: PreferenceHead, report: PreferenceReport, path: Path, source: PreferenceSource | None = None
) -> None:
    """Head, what was measured and what it was fitted on, in 8 bits, as one file that appears by rename."""
    told = to_document(source or PreferenceSource())
    document = {"config": to_document(head.config), "report": asdict(report), "source": told}
    save_compact(path, head.state_dict(), {_KIND: document})


def load_preference(path: Path) -> SavedPreference:
    """What `save_preference` wrote. Raises CheckpointError for anything else."""
    state, document = load_compact(path, _KIND)
    try:
        written: dict[str, Any] = document[_KIND]
        head = PreferenceHead(from_document(PreferenceHeadConfig, written["config"]))
        head.load_state_dict(state)
        source = from_document(PreferenceSource, written.get("source", {}))
        return SavedPreference(head.eval(), PreferenceReport(**written["report"]), source)
    except (KeyError, TypeError, RuntimeError) as problem:
        raise CheckpointError(f"{path} holds no preference head ({problem}): fit one") from problem
