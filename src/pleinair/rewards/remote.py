"""A reward behind HTTP, with the same face: batched along groups, several requests at once, patient with its server.

    pictures --whole groups, up to BATCH--> POST /score --200--> values, checked, put together
                                              |  ^
                        lost, slow, 429, 5xx  `--'  the run pauses, says so, and tries again until its patience ends
                        4xx, or no answer of a reward: RewardError at once

A question that fails leaves nothing behind, so a run that stops here has lost nothing but the time it waited.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pleinair.endpoints import Endpoint
from pleinair.endpoints.retry import RETRIED_STATUSES, retry_after_seconds, wait_seconds
from pleinair.records.errors import ConfigError, RewardError, require
from pleinair.records.rewards import Pictures, RewardContext, RewardValues
from pleinair.rewards.answers import Rows, check_answer, merged, part_of
from pleinair.rewards.identity import Bounds
from pleinair.rewards.wire import Question, from_answer, to_body

Say = Callable[[str], None]
Request = tuple[str, bytes | None]
"""A path and what is posted there; None: it is fetched."""
_LONGEST_REASON = 300


def to_standard_error(sentence: str) -> None:
    """What a person who looks after a run should see."""
    print(sentence, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """Where a reward is served, and how patient we are with it."""

    endpoint: Endpoint
    """`url` is the server's address, `model` the reward's name there. `timeout_seconds` is for one batch; `tries` is not used."""
    batch_size: int = 64
    """Pictures of one request; a group is never split, so a larger group is a larger request."""
    patience_seconds: float = 600.0
    """How long a run pauses for a server that is down or slow before it stops."""

    def __post_init__(self) -> None:
        if not self.endpoint.url or not self.endpoint.model:
            raise ConfigError(
                "a remote reward needs endpoint.url and endpoint.model: its server's address and its name there"
            )
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}: give 1 or more")
        if self.patience_seconds < 0:
            raise ConfigError(f"patience_seconds is {self.patience_seconds}: give 0 or more")


class RemoteReward:
    """One served reward. Its values' names are those the server gives."""

    def __init__(self, config: RemoteConfig, *, say: Say = to_standard_error) -> None:
        """Asks nothing yet. Raises ConfigError when the key's variable is not set, MissingExtraError."""
        self.config, self.say = config, say
        self.name = config.endpoint.model
        self._http = require("httpx2", "endpoints")
        self._headers = _headers(config.endpoint)
        self._first: str | None = None

    @property
    def identity(self) -> str:
        """As the server tells it, when first asked for."""
        return str(self._told["identity"])

    @property
    def parts(self) -> frozenset[str]:
        """As the server tells them."""
        return frozenset(self._told["parts"])

    @property
    def pointwise(self) -> bool:
        """As the server tells it."""
        return bool(self._told["pointwise"])

    @property
    def bounds(self) -> Bounds | None:
        """As the server tells them; None from one of an earlier version."""
        told = self._told.get("bounds")
        return None if told is None else (float(told[0]), float(told[1]))

    def unanswerable(self, prompts: Sequence[str]) -> list[str]:
        """The prompts of which the served reward can say nothing; none, from a server of an earlier version.

        Pauses and raises as `score` does.
        """
        if not prompts or not self._told.get("selective"):
            return []
        body = json.dumps({"reward": self.name, "prompts": list(prompts)}).encode()
        document = asyncio.run(self._ask_all([("/unanswerable", body)]))[0]
        try:
            self._check_same(document["identity"])
            refused = set(document["unanswerable"])
        except (KeyError, TypeError) as other:
            raise RewardError(
                f"{self.name} at {self.config.endpoint.url} does not say which prompts it has no value for "
                f"({type(other).__name__}: {other}): see that the server is one of rewards"
            ) from other
        return [prompt for prompt in prompts if prompt in refused]

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        """The server's values. Pauses while it does not answer; raises RewardError when patience ends, or for no answer."""
        batches = along_groups(context.groups, self.config.batch_size)
        questions = [
            Question(self.name, tuple(prompts[row] for row in rows), pictures[rows], part_of(context, rows))
            for rows in batches
        ]
        documents = asyncio.run(self._ask_all([("/score", to_body(question)) for question in questions]))
        parts = []
        for rows, question, document in zip(batches, questions, documents, strict=True):
            answer = from_answer(document, self.name)
            self._check_same(document.get("identity", ""))
            check_answer(self.name, answer, question.prompts, question.context)
            parts.append((rows, answer))
        return merged(parts, len(prompts))

    def _check_same(self, identity: object) -> None:
        """Raise RewardError when the server has begun to serve something else under the name."""
        told = str(identity)
        if self._first is None:
            self._first = told
        elif told != self._first:
            raise RewardError(
                f"{self.name} at {self.config.endpoint.url} is {told[:12] or 'unnamed'}, and was {self._first[:12] or 'unnamed'} "
                "when this run first asked: its server was started with something else; serve what it was, or start anew"
            )

    @cached_property
    def _told(self) -> Mapping[str, Any]:
        """What the server tells of the reward."""
        document = asyncio.run(self._ask_all([("/rewards", None)]))[0]
        try:
            told: Mapping[str, Any] = next(one for one in document["rewards"] if one["name"] == self.name)
            self._check_same(told["identity"])
        except (KeyError, TypeError, StopIteration) as other:
            raise RewardError(
                f"{self.config.endpoint.url} serves no reward {self.name!r}: GET /rewards lists those there are"
            ) from other
        return told

    async def _ask_all(self, requests: Sequence[Request]) -> list[Any]:
        """The documents answered."""
        endpoint, pause = self.config.endpoint, _Pause(self.name, self.config.patience_seconds, self.say)
        places = asyncio.Semaphore(endpoint.concurrency)
        limits = self._http.Limits(max_connections=endpoint.concurrency)
        async with self._http.AsyncClient(
            timeout=endpoint.timeout_seconds, limits=limits, headers=self._headers
        ) as client:

            async def one(request: Request) -> Any:
                async with places:
                    return await self._ask(client, request, pause)

            tasks = [asyncio.create_task(one(request)) for request in requests]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()

    async def _ask(self, client: Any, request: Request, pause: _Pause) -> Any:
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = await self._sent(client, request)
            except (TimeoutError, self._http.TransportError, self._http.DecodingError) as lost:
                reason, asked = self._described(lost), None
            else:
                if answer.status_code not in RETRIED_STATUSES:
                    pause.over()
                    return self._document(answer)
                reason = f"status {answer.status_code}: {_reason(answer)}"
                asked = retry_after_seconds(answer.headers.get("retry-after"))
            longest = self.config.endpoint.longest_wait_seconds
            await pause.wait(wait_seconds(attempt, longest) if asked is None else min(asked, longest), reason)

    async def _sent(self, client: Any, request: Request) -> Any:
        path, body = request
        url = self.config.endpoint.url.rstrip("/") + path
        # httpx's own timeout is between two bytes; a server that drips them would hold a run for ever.
        async with asyncio.timeout(self.config.endpoint.timeout_seconds):
            if body is None:
                return await client.get(url)
            return await client.post(url, content=body, headers={"Content-Type": "application/json"})

    def _document(self, answer: Any) -> Any:
        if answer.status_code != 200:
            raise RewardError(
                f"{self.name} at {self.config.endpoint.url} gives no value, with status {answer.status_code}: "
                f"{_reason(answer)}"
            )
        try:
            return json.loads(answer.content)
        except ValueError as other:
            raise RewardError(
                f"{self.name} at {self.config.endpoint.url} answered {answer.text[:80]!r}, which is no JSON: see that the "
                "server is one of rewards"
            ) from other

    def _described(self, lost: Exception) -> str:
        if isinstance(lost, TimeoutError | self._http.ReadTimeout):
            return f"no answer within {self.config.endpoint.timeout_seconds:g} s"
        return f"{type(lost).__name__}: {lost}"[:_LONGEST_REASON]


class _Pause:
    """One pause of all that is under way: said when it begins and ends, and not longer than patience."""

    def __init__(self, name: str, patience_seconds: float, say: Say) -> None:
        self.name, self.patience_seconds, self.say = name, patience_seconds, say
        self._since: float | None = None

    async def wait(self, seconds: float, reason: str) -> None:
        """Wait before the next try. Raises RewardError when patience would end first."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self.say(f"{self.name}: {reason}; the run pauses, for up to {self.patience_seconds:g} s")
        if now + seconds - self._since > self.patience_seconds:
            raise RewardError(
                f"{self.name} gave no answer for {now - self._since:.0f} s, at last {reason}: see that its server runs; "
                "nothing was learnt from these pictures, and the run goes on from its last checkpoint"
            )
        await asyncio.sleep(seconds)

    def over(self) -> None:
        """An answer came."""
        if self._since is not None:
            self.say(f"{self.name}: answers again after {time.monotonic() - self._since:.0f} s; the run goes on")
            self._since = None


def along_groups(groups: Sequence[int], batch_size: int) -> list[Rows]:
    """Rows in batches of at most `batch_size` that hold groups whole; a larger group is a batch of its own."""
    rows_of: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        rows_of.setdefault(group, []).append(row)
    batches: list[list[int]] = []
    for rows in rows_of.values():
        if batches and len(batches[-1]) + len(rows) <= batch_size:
            batches[-1] += rows
        else:
            batches.append(list(rows))
    return [np.array(rows, np.int64) for rows in batches]


def _headers(endpoint: Endpoint) -> dict[str, str]:
    """With the key, if the endpoint names one. The one setting read from the environment, here, so that no file holds it."""
    if not endpoint.key_variable:
        return {}
    if not (key := os.environ.get(endpoint.key_variable, "").strip()):
        raise ConfigError(
            f"the environment variable {endpoint.key_variable} is not set: export the key of {endpoint.url} there"
        )
    return {"Authorization": f"Bearer {key}"}


def _reason(answer: Any) -> str:
    """What the server says is wrong, on one short line."""
    try:
        said = str(json.loads(answer.content)["error"])
    except (ValueError, KeyError, TypeError):
        said = answer.text
    return " ".join(said.split())[:_LONGEST_REASON]
