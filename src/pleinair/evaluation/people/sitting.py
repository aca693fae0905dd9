"""One person before the page: the trials, what was answered, and what the browser may know of them.

    GET  /<token>/state         trials in their order: question, ids of pictures, the answer so far
    GET  /<token>/picture/ID    a picture
    POST /<token>/answers       [{event, trial, answer, seconds}]; durable before it is answered
    POST /<token>/end           which side was which, once all trials are answered; nothing can be changed after it

Which subject drew what, which trial is a control and which a repeat never reaches the browser before the end: pictures go
by ids made of a secret, drawn anew by each server, the trial and the place.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from pleinair.evaluation.people.shown import Showing
from pleinair.evaluation.people.trials import Half, Trial
from pleinair.pages import encode_png
from pleinair.pages.loopback import File, Query
from pleinair.records.errors import ConfigError
from pleinair.records.preferences import (
    ANSWERS,
    Answer,
    Origin,
    PreferenceEvent,
    PreferenceLog,
    checked_uuid,
    holding,
)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a page sends of one trial; `event` is a UUID made there."""

    event: str
    trial: str
    answer: Answer
    seconds: float

    def __post_init__(self) -> None:
        checked_uuid(self.event)
        if self.answer not in ANSWERS:
            raise ConfigError(f"the answer {self.answer!r:.60} is unknown: give {', '.join(ANSWERS)}")
        if not isinstance(self.seconds, int | float) or not 0 <= self.seconds < float("inf"):
            raise ConfigError(f"an answer took {self.seconds!r:.60} seconds: give a number from 0")


class Sitting:
    """The trials of one person and their answers; any thread may call."""

    def __init__(
        self, showing: Showing, trials: Sequence[Trial], log: PreferenceLog, person: str, origin: Origin = "human"
    ) -> None:
        self.person, self.origin = person, origin
        self.trials = {one.trial: one for one in trials}
        self._prompts, self._log = showing.prompts_sha256, log
        self._lock = threading.Lock()
        # Who has answered all may have seen the names: no server may let them go on.
        self.ended = not self.left_open

    @property
    def answers(self) -> Mapping[str, Answer]:
        """The answers that hold, by trial."""
        own = [
            one
            for one in self._log.events()
            if (one.person, one.origin) == (self.person, self.origin) and one.trial in self.trials
        ]
        return {one.trial: one.answer for one in holding(own)}

    @property
    def left_open(self) -> int:
        """Trials without an answer."""
        return len(self.trials.keys() - self.answers.keys())

    def answer(self, given: Sequence[Answered]) -> Mapping[str, Answer]:
        """Make answers events, on the disk on return. Raises ConfigError for an unknown trial, or after the end."""
        with self._lock:
            known = {one.event for one in self._log.events()}
            new = [one for one in given if one.event not in known]
            unknown = [one.trial for one in new if one.trial not in self.trials]
            if unknown:
                raise ConfigError(f"no trial {unknown[0]!r:.60} is asked here: load the page again")
            if self.ended and new:
                raise ConfigError("which side was which is known by now: answers can no longer be given or changed")
            self._log.append([self._event(one) for one in new])
            return self.answers

    def _event(self, given: Answered) -> PreferenceEvent:
        trial = self.trials[given.trial]
        comparison = trial.comparison
        return PreferenceEvent(
            event=given.event,
            trial=trial.trial,
            comparison=comparison.key,
            attribute=comparison.attribute,
            about=comparison.about,
            question=comparison.question,
            left=trial.left.gallery.side(trial.left.rows),
            right=trial.right.gallery.side(trial.right.rows),
            prompts_sha256=self._prompts,
            answer=given.answer,
            control=trial.control,
            repeat=trial.repeat,
            person=self.person,
            origin=self.origin,
            at=datetime.now(UTC),
            seconds=given.seconds,
        )

    def end(self) -> list[dict[str, Any]]:
        """Which side was which. Raises ConfigError while a trial is open."""
        with self._lock:
            if self.left_open:
                raise ConfigError(f"{self.left_open} trials are not answered yet: answer them first")
            self.ended = True
            return [
                {
                    "trial": one.trial,
                    "left": one.left.gallery.subject,
                    "right": one.right.gallery.subject,
                    "about": "control" if one.control else "asked again" if one.repeat else "",
                }
                for one in self.trials.values()
            ]


class SidesSite:
    """A sitting as a page."""

    command = "pleinair sides"
    page = files(__package__).joinpath("page")

    def __init__(self, sitting: Sitting, showing: Showing) -> None:
        self._sitting, self._real = sitting, showing.real
        self._secret = secrets.token_bytes(16)
        self._pictures = {
            self._id(one.trial, place, number): half.gallery.pictures[row]
            for one in sitting.trials.values()
            for place, half in enumerate(self._halves(one))
            for number, row in enumerate(half.rows)
        }

    def get(self, path: Sequence[str], query: Query) -> object | None:
        """The state, or a picture."""
        match path:
            case ["state"]:
                return self._state()
            case ["picture", name] if name in self._pictures:
                return File(encode_png(self._pictures[name]), "image/png", keep=True)
        return None

    def post(self, path: Sequence[str], document: Any) -> object | None:
        """The answers that hold, or the names."""
        match path:
            case ["answers"]:
                return {"answers": self._sitting.answer([Answered(**one) for one in document])}
            case ["end"]:
                return {"sides": self._sitting.end()}
        return None

    def _state(self) -> dict[str, Any]:
        answers = self._sitting.answers
        return {
            "person": self._sitting.person,
            "ended": self._sitting.ended,
            "trials": [
                {
                    "trial": one.trial,
                    "question": one.comparison.question,
                    "style": one.comparison.about if one.comparison.attribute == "follows_style" else "",
                    "answer": answers.get(one.trial),
                    **dict(zip(("left", "right", "examples"), self._shown(one), strict=True)),
                }
                for one in self._sitting.trials.values()
            ],
        }

    def _halves(self, trial: Trial) -> tuple[Half, Half, Half]:
        return trial.left, trial.right, Half(self._real, trial.comparison.examples)

    def _shown(self, trial: Trial) -> Iterator[list[dict[str, str]]]:
        for place, half in enumerate(self._halves(trial)):
            yield [
                {"id": self._id(trial.trial, place, number), "prompt": half.gallery.asked[row].request.prompt}
                for number, row in enumerate(half.rows)
            ]

    def _id(self, trial: str, place: int, number: int) -> str:
        return hmac.digest(self._secret, f"{trial} {place} {number}".encode(), "sha256").hex()[:32]
