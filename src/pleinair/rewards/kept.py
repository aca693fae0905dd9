"""Values remembered on disk by reward, prompt and picture, in the cache that `endpoints` keeps answers in.

A rollout that is replayed, or a run that was killed between scoring and updating, asks no reward twice. `kept` does so where
an answer is dear: of a reward behind a server, whose time is somebody's, and of one that reads letters. The judge of 64 px
drawings takes 2 ms of one core a picture and a value found 0.04 ms, but pictures are asked about again after a kill only:
0.13 s for the 64 of an iteration, against a file that grows by every picture ever drawn. It is left as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pleinair.endpoints import Reply
from pleinair.endpoints.cache import ReplyCache
from pleinair.records.errors import ConfigError
from pleinair.records.rewards import Pictures, Reward, RewardContext, RewardValues
from pleinair.rewards.answers import check_answer, check_bounds, merged, part_of
from pleinair.rewards.identity import Identified, bounds_of, is_pointwise, unanswerable_by
from pleinair.rewards.remote import RemoteReward
from pleinair.rewards.writing import WritingReward

Row = Mapping[str, Mapping[str, Any]]


class KeptReward:
    """A reward that is asked about no picture twice; processes of one machine may share the folder."""

    def __init__(self, reward: Identified, place: Path) -> None:
        """Raises ConfigError for a reward whose values depend on more than prompt and picture, or that does not tell."""
        if not is_pointwise(reward):
            raise ConfigError(
                f"{reward.name} cannot be remembered: its values depend on the other pictures of a group, or it does not say "
                "what it is made of; use it as it is"
            )
        self.reward, self.name = reward, reward.name
        self.identity, self.parts, self.pointwise = reward.identity, reward.parts, True
        self.bounds = bounds_of(reward)
        self._cache = ReplyCache(place / "rewards.sqlite")
        self.num_asked, self.num_found = 0, 0

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        """Values found, and new ones for the rest, each kept once it was checked."""
        digests = [self._digest(prompt, picture) for prompt, picture in zip(prompts, pictures, strict=True)]
        found = {row: reply.value for row, digest in enumerate(digests) if (reply := self._cache.get(digest))}
        # The same picture twice in a batch is asked about once.
        first = {digest: row for row, digest in reversed(list(enumerate(digests))) if row not in found}
        rows = np.array(sorted(first.values()), np.int64)
        if len(rows):
            told, known = [prompts[row] for row in rows], part_of(context, rows)
            answer = self.reward.score(told, pictures[rows], known)
            check_answer(self.name, answer, told, known)
            check_bounds(self.name, self.bounds, answer, told, known)
            for place, row in enumerate(rows.tolist()):
                found[row] = row_of(answer, place)
                self._cache.put(digests[row], Reply(text="", value=found[row], model=self.name))
        self.num_asked, self.num_found = self.num_asked + len(rows), self.num_found + len(prompts) - len(rows)
        by_digest = {digests[row]: value for row, value in found.items()}
        parts = [(np.array([row]), answer_of(by_digest[digest])) for row, digest in enumerate(digests)]
        return merged(parts, len(prompts))

    def unanswerable(self, prompts: Sequence[str]) -> list[str]:
        """Those of the reward."""
        return unanswerable_by(self.reward, prompts)

    def close(self) -> None:
        """Close the file."""
        self._cache.close()

    def _digest(self, prompt: str, picture: Pictures) -> str:
        pixels = hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()
        question = ["reward", self.name, self.identity, prompt, list(picture.shape), pixels]
        return hashlib.sha256(json.dumps(question).encode()).hexdigest()


def kept(rewards: Sequence[Reward], place: Path) -> list[Reward]:
    """The rewards, those whose answers are dear remembered in a folder; asks served ones what they are."""
    return [
        KeptReward(reward, place) if isinstance(reward, RemoteReward | WritingReward) and reward.pointwise else reward
        for reward in rewards
    ]


def row_of(answer: RewardValues, row: int) -> Row:
    """What an answer says of one picture, as JSON; values that do not apply are left out."""
    applies = {name: bool(told[row]) for name, told in answer.applies.items()}
    return {
        "values": {name: float(told[row]) for name, told in answer.values.items() if applies.get(name, True)},
        "gates": {name: bool(told[row]) for name, told in answer.gates.items()},
        "silent": {name: False for name, told in applies.items() if not told},
    }


def answer_of(row: Row) -> RewardValues:
    """The answer about one picture."""
    values = {name: np.array([value], np.float32) for name, value in row["values"].items()}
    silent = {name: np.zeros(1, np.float32) for name in row["silent"]}
    return RewardValues(
        values=values | silent,
        gates={name: np.array([passes], np.bool_) for name, passes in row["gates"].items()},
        applies={name: np.zeros(1, np.bool_) for name in silent},
    )
