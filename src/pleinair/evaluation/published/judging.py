"""Every picture of a benchmark before its judge, question by question.

    files --cut out of grids--> PNG --with each question--> ChatRequest --Chat--> Answer

The judge keeps its answers (see `judges`), so that an interrupted run asks only what is left. An answer that cannot be
used counts as no and is counted; one that could not be had ends the run, since a score without it would be another score.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from pleinair.endpoints import Chat, ChatRequest, EncodedPicture, Message, Reply
from pleinair.evaluation.published.benchmark import Answer, Benchmark, Item, Judged, Question
from pleinair.evaluation.published.drawing import Pictures, Progress, from_grid, read_picture
from pleinair.records.errors import AnswerError, EndpointError

T = TypeVar("T")
_AT_ONCE = 256
"""Questions handed to a judge together."""
_MOST_LOGPROBS = 20
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class _Asked:
    """A question about one picture of one prompt."""

    item: int
    picture: int
    question: Question
    request: ChatRequest


def ask(
    chat: Chat, benchmark: Benchmark[T], items: Sequence[Item[T]], copies: int, pictures: Path, on_progress: Progress
) -> list[Judged[T]]:
    """What the judge says of all pictures. Raises EndpointError when an answer cannot be had."""
    answers: list[list[list[Answer]]] = [[] for _ in items]
    official, total = is_official(chat.name, benchmark), num_questions(items, copies)
    done, batch = 0, []
    for asked in _questions(benchmark, items, copies, pictures, official):
        batch.append(asked)
        if len(batch) == _AT_ONCE:
            _answer(chat, benchmark, batch, answers)
            done, batch = done + len(batch), []
            on_progress(done, total)
    _answer(chat, benchmark, batch, answers)
    on_progress(total, total)
    return [
        Judged(item, tuple(tuple(of_picture) for of_picture in of_item))
        for item, of_item in zip(items, answers, strict=True)
    ]


def num_questions(items: Sequence[Item[Any]], copies: int) -> int:
    """How many questions there are about all pictures."""
    return sum(len(item.questions) for item in items) * copies


def is_official(judge: str, benchmark: Benchmark[Any]) -> bool:
    """Whether a judge is the benchmark's own, by its name with or without the owner."""
    names = {name.lower() for name in benchmark.official_judges}
    return judge.lower() in names | {name.rsplit("/", 1)[-1] for name in names}


def _questions(
    benchmark: Benchmark[T], items: Sequence[Item[T]], copies: int, folder: Path, official: bool
) -> Iterator[_Asked]:
    for number, item in enumerate(items):
        if not item.questions:
            continue
        shown = [
            cell for file in item.files for cell in from_grid(read_picture(folder / file), copies // len(item.files))
        ]
        seen = [cell for cell in shown if cell.any() or not benchmark.skips_black]
        for place, cell in enumerate(seen):
            encoded = encoded_png(cell)
            for question in item.questions:
                yield _Asked(number, place, question, _request(question, encoded, official))


def encoded_png(picture: Pictures) -> EncodedPicture:
    """A picture as it travels."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return EncodedPicture(buffer.getvalue(), "image/png")


def _request(question: Question, picture: EncodedPicture, official: bool) -> ChatRequest:
    text = f"{question.text} {question.hint}" if question.hint and not official else question.text
    return ChatRequest(
        messages=(Message("user", text, (picture,)),),
        max_tokens=question.max_tokens,
        top_logprobs=_MOST_LOGPROBS if question.accepted else 0,
    )


def _answer(chat: Chat, benchmark: Benchmark[T], batch: Sequence[_Asked], answers: list[list[list[Answer]]]) -> None:
    replies = chat.chat([asked.request for asked in batch])
    lost = [one for one in replies if isinstance(one, EndpointError) and not _counts_as_no(one, benchmark)]
    if lost:
        raise EndpointError(
            f"{len(lost)} of {len(batch)} answers of {chat.name} could not be had, the first since {lost[0]}; "
            "those that were had are kept, and the same command goes on"
        )
    for asked, reply in zip(batch, replies, strict=True):
        of_item = answers[asked.item]
        if asked.picture == len(of_item):
            of_item.append([])
        of_item[asked.picture].append(_decoded(asked.question, reply, benchmark, chat.name))


def _counts_as_no(error: EndpointError, benchmark: Benchmark[T]) -> bool:
    return isinstance(error, AnswerError) and benchmark.wants != "number"


def _decoded(question: Question, reply: Reply | EndpointError, benchmark: Benchmark[T], judge: str) -> Answer:
    if isinstance(reply, EndpointError):
        return Answer(usable=False)
    if benchmark.wants == "number":
        found = _NUMBER.search(reply.text)
        if found is None:
            raise EndpointError(
                f"{judge} answered {reply.text[:60]!r}, which holds no number: {benchmark.title} needs a judge that "
                "answers with a score alone"
            )
        return Answer(reply.text, float(found.group()))
    if question.accepted:
        if not reply.first_token:
            raise EndpointError(
                f"{judge} told no probabilities, and {benchmark.title} is made of them: use a server that knows "
                "logprobs and top_logprobs (vLLM does), or a model's folder"
            )
        chance = sum(chance for token, chance in reply.first_token.items() if token in question.accepted)
        return Answer(reply.text, min(1.0, chance))
    return Answer(reply.text)
