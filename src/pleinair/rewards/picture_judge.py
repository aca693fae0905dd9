"""A `RequirementJudge` from a small network, for small pictures on a plain ground: named things, styles, colours, numbers.

    picture  --Judge network--> P(thing), P(style), calibrated         (object, style)
             --pixels---------> share of its ink that has the colour   (colour, background)
             --pieces, each named by the network--> number, middles    (count, relation)
             --reader, if one is given--> letters                      (text)

The network is one of the reward's own: trained from another seed than the judge of `evaluation`, which measures and is
never climbed. What it has no name for, it says nothing of (NaN).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pleinair.checkpoint.compact import load_compact, save_compact
from pleinair.model.digest import part_digest
from pleinair.model.judge import PICTURE_SIZE, Judge, JudgeScores, config_from, judge_pictures
from pleinair.records.colours import share_of
from pleinair.records.errors import CheckpointError
from pleinair.records.letters import character_error
from pleinair.records.rewards import Pictures
from pleinair.rewards.calibration import (
    Calibration,
    Floats,
    area_under_curve,
    calibration_error,
    fit_calibration,
    log_odds,
    sigmoid,
)
from pleinair.rewards.parser import COLOURS, RELATIONS, PromptParser
from pleinair.rewards.pieces import Piece, ground_of, ink_of, pieces_of
from pleinair.rewards.requirements import Kind, Requirement, Rubric
from pleinair.rewards.rubric import Probabilities
from pleinair.rewards.vocabulary import Vocabulary
from pleinair.rewards.writing import ReadText

VERSION = 1
_KIND = "picture_judge"
_COLOUR_SHARE, _COLOUR_WIDTH = 0.25, 0.06
"""Share of a thing's pixels that make people call it by a colour, and how sharply they do."""
_SIDE_WIDTH = 0.04
"""Of the picture: how far middles must lie apart for a relation to be plain."""
_MOST_PIECES = 12
"""Of one picture; the rest of a picture full of specks is not named one by one."""


@dataclass(frozen=True)
class PictureJudge:
    """Answers requirements about pictures (N, H, W, 3) as the network saw them in training: on white, centred."""

    judge: Judge
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """For `object` and `style`, from log odds of the network's softmax; see `calibrated`."""
    read: ReadText | None = None

    @cached_property
    def identity(self) -> str:
        """Digest of network, calibrations and version."""
        told = {name: asdict(one) for name, one in sorted(self.calibrations.items())}
        reader = getattr(self.read, "__qualname__", type(self.read).__qualname__)
        return part_digest(self.judge, VERSION, told, reader)

    @cached_property
    def parts(self) -> frozenset[str]:
        """The network's digest, whatever it is calibrated to."""
        return frozenset({part_digest(self.judge)})

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What it can name."""
        return Vocabulary(self.judge.config.concept_names, self.judge.config.style_names)

    def parser(self) -> PromptParser:
        """A parser of prompts that knows these names."""
        return self.vocabulary.parser()

    def knows(self, requirement: Requirement) -> bool:
        """Whether it has a name, or a rule, for it."""
        kind, value = requirement.kind, requirement.value
        named = self.vocabulary.thing(requirement.subject) is not None
        known: Mapping[Kind, bool] = {
            "object": named,
            "count": named and value.isdecimal(),
            "relation": named and self.vocabulary.thing(requirement.other) is not None and value in RELATIONS,
            "colour": value in COLOURS,
            "style": self.vocabulary.style(value) is not None,
            "background": value in COLOURS,
            "text": self.read is not None and bool(value.strip()),
        }
        return known.get(kind, False)

    def answer(self, pictures: Pictures, rubrics: Sequence[Rubric]) -> list[Probabilities]:
        """Probabilities of each picture's requirements; NaN for those it does not know."""
        small = at_size(pictures)
        whole = judge_pictures(self.judge, small)
        pieces = self._pieces(small, rubrics)
        looks = [
            _Look(self, picture, large, scores, found)
            for picture, large, scores, found in zip(small, pictures, rows_of(whole), pieces, strict=True)
        ]
        return [
            np.array([look.chance(one) if self.knows(one) else np.nan for one in rubric], np.float32)
            for look, rubric in zip(looks, rubrics, strict=True)
        ]

    def features(self, pictures: Pictures) -> npt.NDArray[np.float32]:
        """(N, D) of length 1: the network's embedding, for diversity within a group."""
        return judge_pictures(self.judge, at_size(pictures)).embedding

    def _pieces(self, pictures: Pictures, rubrics: Sequence[Rubric]) -> list[list[tuple[Piece, JudgeScores]]]:
        """Each picture's things with the network's scores, where a requirement asks for them; all named in one go."""
        asks = [any(one.kind in ("count", "relation") for one in rubric) for rubric in rubrics]
        cut = [
            pieces_of(picture)[:_MOST_PIECES] if wanted else [] for picture, wanted in zip(pictures, asks, strict=True)
        ]
        flat = [piece.picture for found in cut for piece in found]
        scores = iter(rows_of(judge_pictures(self.judge, np.stack(flat))) if flat else [])
        return [[(piece, next(scores)) for piece in found] for found in cut]

    def thing_chance(self, scores: JudgeScores, name: str) -> float:
        """P(this is one), of one picture or piece."""
        return self._calibrated("object", scores.concept_logits, self.vocabulary.thing(name))

    def style_chance(self, scores: JudgeScores, name: str) -> float:
        """P(it is in the style)."""
        return self._calibrated("style", scores.style_logits, self.vocabulary.style(name))

    def _calibrated(self, kind: str, logits_1K: Floats, number: int | None) -> float:
        if number is None:
            raise KeyError(f"no class to tell {kind} by: ask `knows` first")
        evidence = evidence_of(logits_1K, np.array([number]))
        return float(self.calibrations.get(kind, Calibration()).probability(evidence)[0])


@dataclass(frozen=True)
class _Look:
    """One picture before the judge."""

    judge: PictureJudge
    picture: Pictures
    large: Pictures
    scores: JudgeScores
    pieces: Sequence[tuple[Piece, JudgeScores]]

    def chance(self, one: Requirement) -> float:
        """The probability of one requirement that the judge knows."""
        match one.kind:
            case "object":
                return self._shown(one.subject)
            case "style":
                return self.judge.style_chance(self.scores, one.value)
            case "colour":
                return self._coloured(one.value)
            case "background":
                ground_113 = ground_of(self.picture)[None, None]
                return share_of(ground_113, one.value)
            case "count":
                return chance_of_count(self._each(one.subject), int(one.value))
            case "relation":
                return self._related(one)
            case _:
                assert self.judge.read is not None
                return 1 - character_error(one.value, self.judge.read(self.large))

    def _each(self, name: str) -> list[float]:
        return [self.judge.thing_chance(scores, name) for _, scores in self.pieces]

    def _shown(self, name: str) -> float:
        """Anywhere: as the whole picture or as a piece of it."""
        return max([self.judge.thing_chance(self.scores, name), *self._each(name)])

    def _coloured(self, colour: str) -> float:
        """By the share of what is drawn that somebody may call so."""
        ink_N = self.picture[ink_of(self.picture)]
        if not len(ink_N):
            return 0.0
        return float(sigmoid(np.array((share_of(ink_N[None], colour) - _COLOUR_SHARE) / _COLOUR_WIDTH)))

    def _related(self, one: Requirement) -> float:
        """The best pair of pieces that are the two things and lie so."""
        first, second = self._each(one.subject), self._each(one.other)
        pairs = [
            first[a] * second[b] * lies(self.pieces[a][0], self.pieces[b][0], one.value)
            for a in range(len(first))
            for b in range(len(second))
            if a != b
        ]
        return max(pairs, default=0.0)


def lies(first: Piece, second: Piece, relation: str) -> float:
    """How plainly the first thing's middle lies so to the second's."""
    ahead = {
        "to the left of": second.right - first.right,
        "to the right of": first.right - second.right,
        "above": second.down - first.down,
        "below": first.down - second.down,
    }[relation]
    return float(sigmoid(np.array(ahead / _SIDE_WIDTH)))


def chance_of_count(chances: Sequence[float], wanted: int) -> float:
    """P(exactly so many of the pieces are the thing), pieces taken for independent; other things do not matter."""
    if len(chances) < wanted:
        return 0.0
    exactly = np.zeros(len(chances) + 1)
    exactly[0] = 1.0
    for chance in chances:
        exactly[1:] = exactly[1:] * (1 - chance) + exactly[:-1] * chance
        exactly[0] *= 1 - chance
    return float(exactly[wanted])


def rows_of(scores: JudgeScores) -> list[JudgeScores]:
    """The scores of each picture."""
    return [scores.take(np.array([row])) for row in range(len(scores.embedding))]


def evidence_of(logits_NK: Floats, numbers_N: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """(N,) log odds of each row's softmax for one class."""
    shifted = logits_NK.astype(np.float64) - logits_NK.max(axis=1, keepdims=True)
    chances = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    return log_odds(chances[np.arange(len(numbers_N)), numbers_N])


def calibrated(
    judge: PictureJudge,
    pictures: Pictures,
    styles_N: npt.NDArray[np.integer],
    concepts_N: npt.NDArray[np.integer],
    *,
    seed: int = 0,
) -> PictureJudge:
    """The judge with calibrations from real pictures it was not trained on: what each is, against what it is not.

    Half the claims are true. A false claim is what the network itself holds likely, drawn from its softmax among other
    classes, because a model that learns from the judge is asked about near misses, not about anything at random.
    """
    calibrations = {}
    for kind, logits, truth, wrong in _claims(judge, pictures, styles_N, concepts_N, seed):
        evidence = np.concatenate([evidence_of(logits, truth), evidence_of(logits, wrong)])
        calibrations[kind] = fit_calibration(evidence, np.arange(len(evidence)) < len(truth))
    return replace(judge, calibrations=calibrations)


@dataclass(frozen=True)
class JudgeReport:
    """How right the judge is about one kind of requirement, on real pictures."""

    accuracy: float
    """Share of pictures whose class it names first."""
    area_under_curve: float
    """The chance that a true claim is held likelier than a near miss."""
    calibration_error: float
    """Over equal numbers of true claims and near misses."""
    num_pictures: int


def measure(
    judge: PictureJudge,
    pictures: Pictures,
    styles_N: npt.NDArray[np.integer],
    concepts_N: npt.NDArray[np.integer],
    *,
    seed: int = 1,
) -> dict[str, JudgeReport]:
    """For `object` and `style`, on pictures that neither trained nor calibrated it."""
    reports = {}
    for kind, logits, truth, wrong in _claims(judge, pictures, styles_N, concepts_N, seed):
        calibration = judge.calibrations.get(kind, Calibration())
        right, missed = (calibration.probability(evidence_of(logits, numbers)) for numbers in (truth, wrong))
        reports[kind] = JudgeReport(
            accuracy=float((logits.argmax(axis=1) == truth).mean()),
            area_under_curve=area_under_curve(right, missed),
            calibration_error=calibration_error(
                np.concatenate([right, missed]), np.arange(2 * len(right)) < len(right)
            ),
            num_pictures=len(pictures),
        )
    return reports


Claims = tuple[str, Floats, npt.NDArray[np.integer], npt.NDArray[np.integer]]
"""Kind, (N, K) logits, (N,) true classes, (N,) near misses."""


def _claims(
    judge: PictureJudge,
    pictures: Pictures,
    styles_N: npt.NDArray[np.integer],
    concepts_N: npt.NDArray[np.integer],
    seed: int,
) -> Iterator[Claims]:
    scores, rng = judge_pictures(judge.judge, at_size(pictures)), np.random.default_rng(seed)
    for kind, logits, truth in (
        ("object", scores.concept_logits, concepts_N),
        ("style", scores.style_logits, styles_N),
    ):
        yield kind, logits, truth, _near_misses(logits, truth, rng)


def _near_misses(
    logits_NK: Floats, truth_N: npt.NDArray[np.integer], rng: np.random.Generator
) -> npt.NDArray[np.integer]:
    """Another class for each row, drawn by the square root of its softmax (Gumbel's trick)."""
    drawn = logits_NK / 2 + rng.gumbel(size=logits_NK.shape)
    drawn[np.arange(len(truth_N)), truth_N] = -np.inf
    return np.asarray(drawn.argmax(axis=1))


def at_size(pictures: Pictures) -> Pictures:
    """Pictures at the side that the network knows."""
    if pictures.shape[1:3] == (PICTURE_SIZE, PICTURE_SIZE):
        return pictures
    size = (PICTURE_SIZE, PICTURE_SIZE)
    return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.LANCZOS)) for one in pictures])


def save_picture_judge(judge: PictureJudge, path: Path) -> None:
    """Network and calibrations in 8 bits, as one file that appears by rename."""
    told = {name: asdict(one) for name, one in judge.calibrations.items()}
    document = {_KIND: {"judge": asdict(judge.judge.config), "calibrations": told, "version": VERSION}}
    save_compact(path, judge.judge.state_dict(), document)


def load_picture_judge(path: Path, read: ReadText | None = None) -> PictureJudge:
    """What `save_picture_judge` wrote. Raises CheckpointError for anything else, a judge of `evaluation` included."""
    state, document = load_compact(path, _KIND)
    try:
        written = document[_KIND]
        judge = Judge(config_from(written["judge"]))
        judge.load_state_dict(state)
        calibrations = {name: Calibration(**one) for name, one in written["calibrations"].items()}
    except (KeyError, TypeError, RuntimeError) as problem:
        raise CheckpointError(f"{path} holds no judge of rewards ({problem}): train one") from problem
    return PictureJudge(judge.eval(), calibrations, read)
