"""Who names a cluster: the words of its captions, or a vision-language model that sees the pictures nearest its centre.

A namer is a function of those pictures (encoded) and of the words that set the cluster apart. A model may also flag the
cluster; a flag asks a person to look and drops nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

QUESTION = """These pictures are the ones nearest to the centre of one cluster of a training set.
Words that set their captions apart: {words}.
Answer with JSON only: {{"name": "<what they share, at most six words>", "flag": "<reason or empty>"}}.
Flag the cluster only when its pictures would harm an image model: watermarks, frames, screenshots, placeholders, broken
or nearly identical pictures, generated pictures."""


@dataclass(frozen=True)
class ClusterName:
    """A cluster's name, and why a model would have a person look at it."""

    name: str
    flag: str = ""


class Namer(Protocol):
    """Names a cluster."""

    def __call__(self, pictures: Sequence[bytes], words: Sequence[str]) -> ClusterName:
        """A name for the pictures; `words` are those of their captions that set them apart, best first."""
        ...


def name_by_words(pictures: Sequence[bytes], words: Sequence[str]) -> ClusterName:
    """The words themselves."""
    return ClusterName(" ".join(words) or "no common word")


def name_by_model(ask: Callable[[str, Sequence[bytes]], str]) -> Namer:
    """A namer that asks a vision-language model: `ask(question, pictures)` gives its answer as text.

    An answer that is not what was asked for falls back to the words and flags the cluster as unnamed.
    """

    def name(pictures: Sequence[bytes], words: Sequence[str]) -> ClusterName:
        answer = ask(QUESTION.format(words=", ".join(words) or "none"), pictures)
        return read_answer(answer) or ClusterName(name_by_words(pictures, words).name, "the model gave no usable name")

    return name


def read_answer(answer: str) -> ClusterName | None:
    """The name and flag in a model's answer, with or without a code fence around the JSON; None when there is none."""
    start, end = answer.find("{"), answer.rfind("}")
    try:
        written = json.loads(answer[start : end + 1])
        name, flag = " ".join(str(written["name"]).split()), " ".join(str(written.get("flag") or "").split())
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return ClusterName(name[:80], flag[:200]) if name else None
