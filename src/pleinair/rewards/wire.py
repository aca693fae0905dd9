"""How a question to a reward and its answer travel: JSON, the pictures' bytes compressed inside it.

    {"reward", "prompts", "seeds", "groups", "checkpoint", "passes", "shape", "pictures": base64 of zlib of uint8}
    {"values": {name: [number, ...]}, "gates": {name: [true, ...]}, "applies": {name: [true, ...]}}

    {"reward", "prompts"} --which of them has it no value for?--> {"unanswerable": [prompt, ...]}

Nothing is lost on the way: float32 numbers in JSON's decimals are the same numbers again.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pleinair.records.errors import RewardError
from pleinair.records.rewards import Gates, Pictures, RewardContext, RewardValues, Values

MOST_PICTURE_BYTES = 1 << 30
"""Of one question, unpacked; more is no question."""


@dataclass(frozen=True)
class Question:
    """What a reward is asked."""

    reward: str
    prompts: tuple[str, ...]
    pictures: Pictures
    context: RewardContext


def to_body(question: Question) -> bytes:
    """The question as JSON."""
    context = question.context
    pixels = zlib.compress(np.ascontiguousarray(question.pictures).tobytes(), level=1)
    document = {
        "reward": question.reward,
        "prompts": list(question.prompts),
        "seeds": list(context.seeds),
        "groups": list(context.groups),
        "checkpoint": context.checkpoint,
        "passes": list(context.passes),
        "shape": list(question.pictures.shape),
        "pictures": base64.b64encode(pixels).decode(),
    }
    return json.dumps(document).encode()


def from_body(body: bytes) -> Question:
    """The inverse. Raises ValueError saying what is wrong with it."""
    try:
        document: Mapping[str, Any] = json.loads(body)
        shape = tuple(int(length) for length in document["shape"])
        pixels = _unpacked(document["pictures"], math.prod(shape))
        context = RewardContext(
            seeds=tuple(int(seed) for seed in document["seeds"]),
            groups=tuple(int(group) for group in document["groups"]),
            checkpoint=str(document["checkpoint"]),
            passes=tuple(bool(passes) for passes in document.get("passes", ())),
        )
        pictures = np.frombuffer(pixels, np.uint8).reshape(shape)
        prompts = tuple(str(prompt) for prompt in document["prompts"])
        return Question(str(document["reward"]), prompts, pictures, context)
    except (ValueError, KeyError, TypeError, zlib.error) as wrong:
        raise ValueError(f"this is no question to a reward ({type(wrong).__name__}: {wrong})") from wrong


def prompts_of(body: bytes) -> tuple[str, list[str]]:
    """A reward's name, and prompts that it is asked about without pictures. Raises ValueError for something else."""
    try:
        document: Mapping[str, Any] = json.loads(body)
        return str(document["reward"]), [str(prompt) for prompt in document["prompts"]]
    except (ValueError, KeyError, TypeError) as wrong:
        raise ValueError(f"this is no question about prompts ({type(wrong).__name__}: {wrong})") from wrong


def _unpacked(text: str, num_bytes: int) -> bytes:
    if not 0 < num_bytes <= MOST_PICTURE_BYTES:
        raise ValueError(f"{num_bytes} bytes of pictures: give 1 to {MOST_PICTURE_BYTES}")
    opened = zlib.decompressobj()
    pixels = opened.decompress(base64.b64decode(text, validate=True), num_bytes + 1)
    if len(pixels) != num_bytes:
        raise ValueError(f"pictures of another size than their shape, {num_bytes} bytes")
    return pixels


def to_answer(answer: RewardValues) -> dict[str, Any]:
    """The answer as a document."""
    return {
        "values": {name: np.asarray(told, np.float32).tolist() for name, told in answer.values.items()},
        "gates": {name: np.asarray(told, np.bool_).tolist() for name, told in answer.gates.items()},
        "applies": {name: np.asarray(told, np.bool_).tolist() for name, told in answer.applies.items()},
    }


def from_answer(document: Any, name: str) -> RewardValues:
    """The inverse. Raises RewardError for a document of another form, in the name of the reward asked."""
    try:
        return RewardValues(
            values={str(key): _numbers(told) for key, told in document["values"].items()},
            gates={str(key): _flags(told) for key, told in document.get("gates", {}).items()},
            applies={str(key): _flags(told) for key, told in document.get("applies", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as wrong:
        raise RewardError(
            f"{name} answered in another form than a reward's ({type(wrong).__name__}: {str(wrong)[:200]}): see that the "
            "server is one of rewards, and of this version"
        ) from wrong


def _numbers(told: Sequence[Any]) -> Values:
    # null is what some servers make of NaN, and no number either way.
    return np.array([float("nan") if one is None else float(one) for one in told], np.float32)


def _flags(told: Sequence[Any]) -> Gates:
    if not all(isinstance(one, bool) for one in told):
        raise TypeError(f"{told!r:.80} are not all true or false")
    return np.array(told, np.bool_)
