"""Is the picture sound? A classifier of real pictures against planted faults and a model's own failures.

    real pictures, half of them corrupted, failures --fit--> network --real pictures kept apart--> calibration
    picture --network--> P(sound), and which fault

Give as real what the autoencoder makes of real pictures, or the classifier learns to see the autoencoder, which no update
of the transformer can change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from pleinair.checkpoint.compact import load_compact, save_compact
from pleinair.config import from_document, to_document
from pleinair.model.artefacts import ArtefactConfig, ArtefactNet
from pleinair.model.digest import part_digest
from pleinair.model.judge import as_tensor
from pleinair.quantise import as_stored
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.records.rewards import Pictures, RewardContext, RewardValues
from pleinair.rewards.calibration import (
    Calibration,
    area_under_curve,
    calibration_error,
    fit_calibration,
    log_odds,
)
from pleinair.rewards.corruptions import CORRUPTIONS, corrupted

FAILURE = "failure"
"""The class of a model's own failures, where some are given."""
_KIND = "artefact"
_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class ArtefactTraining:
    """How the classifier is trained."""

    num_steps: int = 400
    """Updates."""
    batch_size: int = 64
    """Pictures in a step, half of them sound."""
    learning_rate: float = 3e-3
    """Peak rate of AdamW; a cosine to zero."""
    weight_decay: float = 0.02
    """Decoupled."""
    held_out_share: float = 0.2
    """Of real pictures and failures: kept from training, for calibration and for the numbers, half each."""
    leave_out: tuple[str, ...] = ()
    """Faults that training does not see, to find out whether they are found all the same."""
    seed: int = 0
    """Of weights, order and faults."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 2 or more")
        if not 0 < self.held_out_share < 1:
            raise ConfigError(f"held_out_share is {self.held_out_share}: give a share between 0 and 1")
        if unknown := [name for name in self.leave_out if name not in CORRUPTIONS]:
            raise ConfigError(f"leave_out names {unknown[0]!r}: faults are {', '.join(CORRUPTIONS)}")


@dataclass(frozen=True)
class ArtefactReport:
    """What the fitted classifier does on pictures it never saw."""

    area_under_curve: Mapping[str, float]
    """By fault, those left out included: the chance that a sound picture scores above one with the fault."""
    calibration_error: float
    """Of P(sound), over equal numbers of sound and faulty pictures."""
    num_pictures: int


@dataclass(frozen=True)
class Classifier:
    """The network and what makes its answer a probability."""

    network: ArtefactNet
    calibration: Calibration = field(default_factory=Calibration)

    def chances(self, pictures: Pictures) -> npt.NDArray[np.float32]:
        """(N, K) softmax over sound and each fault, uncalibrated."""
        self.network.eval()
        with torch.inference_mode():
            parts = [
                self.network(as_tensor(pictures[start : start + _BATCH])).softmax(dim=1).numpy()
                for start in range(0, len(pictures), _BATCH)
            ]
        return np.concatenate(parts)

    def sound(self, pictures: Pictures) -> npt.NDArray[np.float32]:
        """(N,) calibrated P(sound), were half of all pictures sound."""
        return self.calibration.probability(log_odds(self.chances(pictures)[:, 0]))


class ArtefactReward:
    """Value `artefact`, P(sound); gate `artefact.sound` where a threshold is given."""

    pointwise = True
    bounds = (0.0, 1.0)

    def __init__(self, classifier: Classifier, *, gate_above: float = 0.0, name: str = "artefact") -> None:
        """`gate_above`: a picture less likely to be sound fails the gate; 0: there is no gate."""
        if not 0 <= gate_above < 1:
            raise ConfigError(f"gate_above is {gate_above}: give a probability from 0 to below 1")
        self.classifier, self.gate_above, self.name = classifier, gate_above, name

    @cached_property
    def identity(self) -> str:
        """Digest of network, calibration and threshold."""
        return part_digest(self.classifier.network, asdict(self.classifier.calibration), self.gate_above, self.name)

    @cached_property
    def parts(self) -> frozenset[str]:
        """The network's digest."""
        return frozenset({part_digest(self.classifier.network)})

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        """P(sound) of each picture, whatever its prompt."""
        sound = self.classifier.sound(pictures)
        gates = {f"{self.name}.sound": sound >= self.gate_above} if self.gate_above else {}
        return RewardValues(values={self.name: sound}, gates=gates)


def fit_artefacts(
    real: Pictures,
    failures: Pictures | None = None,
    config: ArtefactTraining | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Classifier, ArtefactReport]:
    """Train, calibrate and measure on (N, H, W, 3) real pictures and, if given, a model's failures, (M, H, W, 3).

    Weights are rounded to what `save_classifier` keeps before they are calibrated: a file says the same.
    The same arguments give the same classifier (CPU, same threads). Raises ValueError for fewer than 20 real pictures.
    """
    config = config or ArtefactTraining()
    if len(real) < 20 or (failures is not None and len(failures) < 20):
        raise ValueError(
            f"{len(real)} real pictures and {'no' if failures is None else len(failures)} failures: give 20 or more of what "
            "is given, some are kept for measuring"
        )
    taught = tuple(name for name in CORRUPTIONS if name not in config.leave_out)
    faults = (*taught, FAILURE) if failures is not None else taught
    sets = _Sets.split(real, failures, config)
    torch.manual_seed(config.seed)
    network = ArtefactNet(ArtefactConfig(faults=faults))
    _train(network, sets, config, on_progress)
    network.load_state_dict(as_stored(network.state_dict()))
    classifier = _calibrated(network, sets, config.seed)
    return classifier, _measured(classifier, sets, config.seed)


@dataclass(frozen=True)
class _Sets:
    """Real pictures, and failures if there are any, for each purpose."""

    train: tuple[Pictures, Pictures | None]
    calibrate: tuple[Pictures, Pictures | None]
    measure: tuple[Pictures, Pictures | None]

    @classmethod
    def split(cls, real: Pictures, failures: Pictures | None, config: ArtefactTraining) -> _Sets:
        rng = np.random.default_rng([config.seed, 1])

        def three(pictures: Pictures) -> tuple[Pictures, Pictures, Pictures]:
            order = rng.permutation(len(pictures))
            half = max(round(config.held_out_share * len(pictures) / 2), 4)
            return pictures[order[2 * half :]], pictures[order[:half]], pictures[order[half : 2 * half]]

        none = (None, None, None)
        return cls(*zip(three(real), none if failures is None else three(failures), strict=True))


def _train(
    network: ArtefactNet, sets: _Sets, config: ArtefactTraining, on_progress: Callable[[int, int], None]
) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.num_steps)
    network.train()
    for step in range(config.num_steps):
        pictures, labels_B = _batch(sets, network.config.faults, config, step)
        loss = F.cross_entropy(network(as_tensor(pictures)), labels_B, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        on_progress(step + 1, config.num_steps)


def _batch(sets: _Sets, faults: Sequence[str], config: ArtefactTraining, step: int) -> tuple[Pictures, torch.Tensor]:
    """Sound pictures, and as many with a fault; every fault equally often. A function of seed and step."""
    rng = np.random.default_rng([config.seed, 2, step])
    half = config.batch_size // 2
    sound, spoilt = (sets.train[0][rng.integers(len(sets.train[0]), size=half)] for _ in range(2))
    names = [str(name) for name in rng.choice(faults, size=half)]
    both = np.concatenate([sound, _with_faults(spoilt, names, sets.train[1], int(rng.integers(2**31)))])
    flip = rng.random(len(both)) < 0.5
    both[flip] = both[flip][:, :, ::-1]
    return both, torch.tensor([0] * half + [1 + faults.index(name) for name in names])


def _with_faults(pictures: Pictures, names: Sequence[str], failures: Pictures | None, seed: int) -> Pictures:
    """Each picture with the fault named beside it; a failure takes its place altogether."""
    out, own = pictures.copy(), np.array([name == FAILURE for name in names], np.bool_)
    if (~own).any():
        planted = np.flatnonzero(~own)
        out[planted] = corrupted(pictures[planted], [names[row] for row in planted.tolist()], seed)
    if own.any():
        assert failures is not None
        out[own] = failures[np.random.default_rng(seed).integers(len(failures), size=int(own.sum()))]
    return out


def _calibrated(network: ArtefactNet, sets: _Sets, seed: int) -> Classifier:
    """With P(sound) fitted on pictures kept apart, as many sound as faulty."""
    plain, (real, failures) = Classifier(network), sets.calibrate
    faulty = _with_faults(real, _in_turn(network.config.faults, len(real)), failures, seed + 1)
    evidence = [log_odds(plain.chances(one)[:, 0]) for one in (real, faulty)]
    return Classifier(network, fit_calibration(np.concatenate(evidence), _halves(len(real))))


def _measured(classifier: Classifier, sets: _Sets, seed: int) -> ArtefactReport:
    real, failures = sets.measure
    names = [*CORRUPTIONS] if failures is None else [*CORRUPTIONS, FAILURE]
    sound = classifier.sound(real)
    by_fault = {name: classifier.sound(_with_faults(real, [name] * len(real), failures, seed + 2)) for name in names}
    in_turn = _in_turn(classifier.network.config.faults, len(real))
    mixed = np.array([by_fault[name][row] for row, name in enumerate(in_turn)])
    return ArtefactReport(
        area_under_curve={name: area_under_curve(sound, found) for name, found in by_fault.items()},
        calibration_error=calibration_error(np.concatenate([sound, mixed]), _halves(len(real))),
        num_pictures=len(real),
    )


def _halves(count: int) -> npt.NDArray[np.bool_]:
    """True for the first `count`, False for as many more."""
    return np.arange(2 * count) < count


def _in_turn(names: Sequence[str], count: int) -> list[str]:
    return [names[row % len(names)] for row in range(count)]


def save_classifier(classifier: Classifier, path: Path) -> None:
    """In 8 bits, as one file that appears by rename."""
    document = {"config": to_document(classifier.network.config), "calibration": asdict(classifier.calibration)}
    save_compact(path, classifier.network.state_dict(), {_KIND: document})


def load_classifier(path: Path) -> Classifier:
    """What `save_classifier` wrote. Raises CheckpointError for anything else."""
    state, document = load_compact(path, _KIND)
    try:
        network = ArtefactNet(from_document(ArtefactConfig, document[_KIND]["config"]))
        network.load_state_dict(state)
        return Classifier(network.eval(), Calibration(**document[_KIND]["calibration"]))
    except (KeyError, TypeError, RuntimeError) as problem:
        raise CheckpointError(f"{path} holds no classifier of artefacts ({problem}): train one") from problem
