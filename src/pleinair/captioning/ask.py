"""Asking a model until its answer can be used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pleinair.endpoints import Chat, ChatRequest, Reply
from pleinair.records.errors import AnswerError, EndpointError

_RETRY_TEMPERATURE = 0.7


def ask(
    chat: Chat, requests: Sequence[ChatRequest], fault: Callable[[Reply], str], *, tries: int = 3
) -> list[Reply | EndpointError]:
    """Replies in which `fault` finds none, in order; AnswerError with the last fault after `tries`.

    The first try is greedy; the next ones are sampled, or the same bad answer would come back. Errors of the way, and a
    spent budget, are returned at once: asking again is the queue's to do.
    """
    answers: dict[int, Reply | EndpointError] = {}
    open_ = list(range(len(requests)))
    for attempt in range(tries):
        replies = chat.chat([_varied(requests[number], attempt) for number in open_])
        answers.update(zip(open_, (_judged(reply, fault) for reply in replies), strict=True))
        open_ = [number for number in open_ if isinstance(answers[number], AnswerError)]
        if not open_:
            break
    return [answers[number] for number in range(len(requests))]


def _varied(request: ChatRequest, attempt: int) -> ChatRequest:
    return request if attempt == 0 else replace(request, seed=request.seed + attempt, temperature=_RETRY_TEMPERATURE)


def _judged(reply: Reply | EndpointError, fault: Callable[[Reply], str]) -> Reply | EndpointError:
    if isinstance(reply, EndpointError):
        return reply
    return AnswerError(found) if (found := fault(reply)) else reply
