"""The accuracy check: does the picture show what its captions claim?

    captions --claims--> [pixels, writing, scorer, model] --verdicts--> all hold, or nothing is known against them: kept
                                                                        some fail: described anew, told what was wrong
                                                                        still failing after `rounds`: dropped, claims kept

Each verifier judges the claims it understands and is silent about the others; the first that is sure decides. A claim
nobody can judge is unknown, counts neither way, and is counted in the report: a check that checks little must show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pleinair.captioning.ask import ask
from pleinair.captioning.claims import Claim
from pleinair.captioning.pictures import Pixels, to_send
from pleinair.captioning.prompts import prompt
from pleinair.captioning.scorer import ClaimScorer, Scorer, share_beaten
from pleinair.captioning.templates import with_article
from pleinair.endpoints import Chat, ChatRequest, Reply, Schema
from pleinair.records.colours import is_grey, share_of
from pleinair.records.errors import AnswerError, EndpointError


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of a claim."""

    holds: bool | None
    """None: it cannot tell."""
    by: str = ""
    score: float | None = None
    """The verifier's own number, where it has one."""


UNKNOWN = Verdict(None)


@dataclass(frozen=True)
class Case:
    """A picture and the claims about it."""

    pixels: Pixels
    claims: Sequence[Claim]
    writing: Sequence[str] = ()
    """Lines that OCR read."""
    embedding: tuple[str, str] = ("", "")
    """Name of the encoder that embedded the picture, and where its vector lies; empty for one that was not embedded."""


class Verifier(Protocol):
    """Anything that judges claims."""

    @property
    def name(self) -> str:
        """For the provenance column."""

    def verify(self, cases: Sequence[Case]) -> list[list[Verdict] | EndpointError]:
        """A verdict on every claim of every case, UNKNOWN for those it does not understand."""


def check(cases: Sequence[Case], verifiers: Sequence[Verifier]) -> list[list[Verdict] | EndpointError]:
    """The first sure verdict on every claim. A verifier is asked only about claims the ones before it left open."""
    settled: list[dict[int, Verdict]] = [{} for _ in cases]
    failed: dict[int, EndpointError] = {}
    for verifier in verifiers:
        left = {n: _open_claims(case, settled[n]) for n, case in enumerate(cases) if n not in failed}
        asked = [n for n, open_ in left.items() if open_]
        questions = [replace(cases[n], claims=[cases[n].claims[i] for i in left[n]]) for n in asked]
        for n, verdicts in zip(asked, verifier.verify(questions) if questions else [], strict=True):
            if isinstance(verdicts, EndpointError):
                failed[n] = verdicts
            else:
                settled[n].update(
                    (i, verdict) for i, verdict in zip(left[n], verdicts, strict=True) if verdict.holds is not None
                )
    return [
        failed[n] if n in failed else [settled[n].get(i, UNKNOWN) for i in range(len(case.claims))]
        for n, case in enumerate(cases)
    ]


def _open_claims(case: Case, settled: Mapping[int, Verdict]) -> list[int]:
    return [i for i in range(len(case.claims)) if i not in settled]


def as_columns(claims: Sequence[Claim], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Claims with their verdicts, as the `claims` column keeps them."""
    return [{**asdict(claim), **asdict(verdict)} for claim, verdict in zip(claims, verdicts, strict=True)]


_BORDER_SHARE = 0.04
_WHITE_ENOUGH, _WHITE_TOO_LITTLE = 0.8, 0.3
_COLOUR_ENOUGH, _COLOUR_TOO_LITTLE = 0.02, 0.002


@dataclass(frozen=True)
class PixelVerifier:
    """Colours and white backgrounds, counted. Between its two limits it is silent, and always about grey pictures' colours."""

    name: str = "pixels@1"

    def verify(self, cases: Sequence[Case]) -> list[list[Verdict] | EndpointError]:
        return [[self._verdict(case.pixels, claim) for claim in case.claims] for case in cases]

    def _verdict(self, pixels: Pixels, claim: Claim) -> Verdict:
        if claim.kind == "background" and claim.value == "white":
            return _between(white_border(pixels), _WHITE_TOO_LITTLE, _WHITE_ENOUGH, self.name)
        if claim.kind == "colour" and claim.value and not is_grey(pixels):
            return _between(share_of(pixels, claim.value), _COLOUR_TOO_LITTLE, _COLOUR_ENOUGH, self.name)
        return UNKNOWN


def white_border(pixels: Pixels) -> float:
    """Share of nearly white pixels in a frame of 4% along the edges."""
    band = max(1, round(min(pixels.shape[:2]) * _BORDER_SHARE))
    white = np.asarray((pixels >= 245).all(axis=2))
    inner = white[band:-band, band:-band]
    return float((white.sum() - inner.sum()) / (white.size - inner.size))


def _between(score: float, too_little: float, enough: float, by: str) -> Verdict:
    holds = True if score >= enough else False if score < too_little else None
    return Verdict(holds, by, round(score, 4))


@dataclass(frozen=True)
class WritingVerifier:
    """Texts that are claimed to be written in the picture, against what OCR read.

    It confirms and never refutes: OCR overlooks curved, tiny and handwritten text.
    """

    name: str = "ocr@1"

    def verify(self, cases: Sequence[Case]) -> list[list[Verdict] | EndpointError]:
        return [[self._verdict(claim, case.writing) for claim in case.claims] for case in cases]

    def _verdict(self, claim: Claim, lines: Sequence[str]) -> Verdict:
        wanted = _letters(claim.value)
        if claim.kind != "writing" or not wanted:
            return UNKNOWN
        return Verdict(True, self.name) if wanted in _letters("".join(lines)) else UNKNOWN


def _letters(text: str) -> str:
    return "".join(sign for sign in text.casefold() if sign.isalnum())


@dataclass(frozen=True)
class ContrastVerifier:
    """Subjects and styles, by an image-text scorer: a claim holds when it fits better than nearly all rivals."""

    scorer: Scorer
    rivals: Mapping[str, Sequence[str]]
    """By kind, `subject` and `style`, other values the claim could have had."""
    fails_under: Mapping[str, float] = field(default_factory=lambda: {"subject": 0.8, "style": 0.5})
    """By kind, the share of rivals a claim must beat not to fail."""
    holds_over: float = 0.95
    """Share of rivals that a claim must beat to hold."""
    forms: Mapping[str, str] = field(default_factory=lambda: {"subject": "{}", "style": "{} style"})
    """How a value is said to the scorer."""

    @property
    def name(self) -> str:
        return f"{self.scorer.name} contrast@1"

    def verify(self, cases: Sequence[Case]) -> list[list[Verdict] | EndpointError]:
        values = {kind: list(dict.fromkeys([*rivals, *_claimed(cases, kind)])) for kind, rivals in self.rivals.items()}
        scores = {
            kind: self.scorer.score([case.pixels for case in cases], [self._said(kind, value) for value in of_kind])
            for kind, of_kind in values.items()
            if _claimed(cases, kind)
        }
        return [
            [self._verdict(claim, values.get(claim.kind, []), scores[claim.kind][n] if claim.kind in scores else None)
             for claim in case.claims]
            for n, case in enumerate(cases)
        ]  # fmt: skip

    def _said(self, kind: str, value: str) -> str:
        return self.forms[kind].format(with_article(value) if kind == "subject" else value)

    def _verdict(self, claim: Claim, values: Sequence[str], scores: NDArray[np.float32] | None) -> Verdict:
        if scores is None or not claim.value:
            return UNKNOWN
        here = values.index(claim.value)
        among = np.array([value in self.rivals[claim.kind] and n != here for n, value in enumerate(values)])
        share = share_beaten(float(scores[here]), scores[among])
        if share is None:
            return UNKNOWN
        return _between(share, self.fails_under[claim.kind], self.holds_over, self.name)


def _claimed(cases: Sequence[Case], kind: str) -> list[str]:
    return [claim.value for case in cases for claim in case.claims if claim.kind == kind and claim.value]


@dataclass(frozen=True)
class ProbabilityVerifier:
    """Subjects and styles of embedded pictures, by a calibrated scorer."""

    scorer: ClaimScorer
    fails_under: float = 0.05
    holds_over: float = 0.95
    kinds: Sequence[str] = ("subject", "style")

    @property
    def name(self) -> str:
        return self.scorer.name

    def verify(self, cases: Sequence[Case]) -> list[list[Verdict] | EndpointError]:
        verdicts: list[list[Verdict]] = [[UNKNOWN] * len(case.claims) for case in cases]
        known = [n for n, case in enumerate(cases) if case.embedding[0] == self.scorer.encoder_name]
        for kind in self.kinds:
            if not (values := list(dict.fromkeys(_claimed([cases[n] for n in known], kind)))):
                continue
            found = self.scorer.probabilities([cases[n].embedding[1] for n in known], kind, values)
            for row, n in enumerate(known):
                for place, claim in enumerate(cases[n].claims):
                    if claim.kind == kind and claim.value:
                        verdicts[n][place] = self._verdict(float(found[row, values.index(claim.value)]))
        return list(verdicts)

    def _verdict(self, probability: float) -> Verdict:
        if np.isnan(probability):
            return UNKNOWN
        return _between(probability, self.fails_under, self.holds_over, self.name)


_HOLDS = {"yes": True, "no": False, "unsure": None}


def _answers_to(num_claims: int) -> Schema:
    answers = {"type": "array", "items": {"enum": list(_HOLDS)}, "minItems": num_claims, "maxItems": num_claims}
    return {
        "type": "object",
        "properties": {"answers": answers},
        "required": ["answers"],
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class ModelVerifier:
    """Any claim, by a vision-language model that looks at the picture; all claims of a picture in one question."""

    chat: Chat
    longest_side: int = 1024

    @property
    def name(self) -> str:
        return f"{self.chat.name} {prompt('verify').label}"

    def verify(self, cases: Sequence[Case]) -> list[list[Verdict] | EndpointError]:
        replies = ask(self.chat, [self._question(case) for case in cases], lambda reply: "", tries=2)
        return [self._verdicts(reply, case) for reply, case in zip(replies, cases, strict=True)]

    def _question(self, case: Case) -> ChatRequest:
        data = {"claims": [claim.text for claim in case.claims]}
        messages = prompt("verify").messages(data, (to_send(case.pixels, self.longest_side),))
        return ChatRequest(messages=messages, schema=_answers_to(len(case.claims)), max_tokens=400)

    def _verdicts(self, reply: Reply | EndpointError, case: Case) -> list[Verdict] | EndpointError:
        if isinstance(reply, AnswerError):
            return [UNKNOWN] * len(case.claims)
        if isinstance(reply, EndpointError):
            return reply
        return [Verdict(_HOLDS[answer], self.name) for answer in reply.value["answers"]]
