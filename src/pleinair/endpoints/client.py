"""A client of an OpenAI-compatible chat server: many requests at once, each answered, refused or failed by itself.

    chat(requests) --digest--> cache -- hit --------------------------------------------> Reply
                                 | miss
                                 `--> budget --> POST /chat/completions --> schema ------> Reply, kept in the cache
                                         ^          | 429, 5xx, lost        | not as asked: told so, asked once more
                                         `- wait <--'                       `--> AnswerError

The face is synchronous, because a worker's function is; underneath, an event loop in a thread of its own keeps up to
`concurrency` requests under way over connections that stay open. A waiting worker can so be ended by a signal.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pleinair.endpoints import schema as json_schema
from pleinair.endpoints.cache import ReplyCache
from pleinair.endpoints.endpoint import Endpoint
from pleinair.endpoints.messages import ChatRequest, Reply, Schema
from pleinair.endpoints.retry import RETRIED_STATUSES, retry_after_seconds, wait_seconds
from pleinair.endpoints.spending import Budget, Cost, Spending
from pleinair.records.errors import AnswerError, ConfigError, EndpointError, require

T = TypeVar("T")
_TOKENS_PER_PICTURE = 1500
_CHARACTERS_PER_TOKEN = 3
_LONGEST_REASON = 300


class ChatClient:
    """A connection to one endpoint for one stage; close it, or use it as a context manager."""

    def __init__(self, endpoint: Endpoint, *, stage: str, place: Path, budget: Budget | None = None) -> None:
        """`place` is a folder for the cache and the account; processes of one machine may share it.

        Raises ConfigError when the endpoint's key variable is not set, EndpointError when the folder cannot be used.
        """
        if not endpoint.model:
            raise ConfigError(f"the endpoint {endpoint.url!r} has no model: name one, as the server's /models lists it")
        self.endpoint = endpoint
        self.stage = stage
        self._key = _secret(endpoint)
        self._http = require("httpx2", "endpoints")
        self._cache = ReplyCache(place / "replies.sqlite")
        self._spending = Spending(place / "spending.sqlite", budget)
        self._not_before = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"endpoint {stage}", daemon=True)
        self._thread.start()
        self._connections, self._places = self._run(self._open())

    @property
    def name(self) -> str:
        """The model asked for."""
        return self.endpoint.model

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections, cache and account."""
        self._run(self._connections.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._cache.close()
        self._spending.close()

    def chat(self, requests: Sequence[ChatRequest]) -> list[Reply | EndpointError]:
        """A reply, or the error that says why there is none, for each request in order."""
        return self._run(self._all(requests))

    async def _open(self) -> tuple[Any, asyncio.Semaphore]:
        limits = self._http.Limits(max_connections=self.endpoint.concurrency)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        client = self._http.AsyncClient(timeout=self.endpoint.timeout_seconds, limits=limits, headers=headers)
        return client, asyncio.Semaphore(self.endpoint.concurrency)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            # A signal in this thread: what is under way must not go on behind a worker that has let go of its rows.
            future.cancel()
            raise

    async def _all(self, requests: Sequence[ChatRequest]) -> list[Reply | EndpointError]:
        digests = [request.digest(self.endpoint.model) for request in requests]
        distinct = dict(zip(digests, requests, strict=True))  # the same question twice in a batch is asked once
        answers = await asyncio.gather(*(self._reply_or_error(*question) for question in distinct.items()))
        found = dict(zip(distinct, answers, strict=True))
        return [found[digest] for digest in digests]

    async def _reply_or_error(self, digest: str, request: ChatRequest) -> Reply | EndpointError:
        try:
            async with self._places:
                return await self._reply(digest, request)
        except EndpointError as error:
            return error

    async def _reply(self, digest: str, request: ChatRequest) -> Reply:
        if found := self._cache.get(digest):
            self._spending.correct(self._cost(cached=1))
            return found
        reply = await self._send(request)
        if request.schema is not None:
            reply = await self._structured(request, request.schema, reply)
        self._cache.put(digest, reply)
        return reply

    async def _structured(self, request: ChatRequest, schema: Schema, reply: Reply) -> Reply:
        """The reply with its JSON; one that is not as asked is told so and asked once more."""
        try:
            return replace(reply, value=json_schema.parse(reply.text, schema))
        except AnswerError as wrong:
            objection = f"That cannot be used: {wrong}. Answer again, with nothing but the JSON."
        again = await self._send(request.after(reply.text, objection))
        return replace(again, value=json_schema.parse(again.text, schema))

    async def _send(self, request: ChatRequest) -> Reply:
        """The server's answer, tried as often as the endpoint allows."""
        reason = ""
        for attempt in range(1, self.endpoint.tries + 1):
            await self._cool_down()
            charged = self._charge(request)
            try:
                answer = await self._post(request)
            except (TimeoutError, self._http.TransportError, self._http.DecodingError) as error:
                if not self._timed_out(error):  # a server that was too slow may still have worked, and bill it
                    self._give_back(charged)
                reason, wait = self._described(error), wait_seconds(attempt, self.endpoint.longest_wait_seconds)
            else:
                if answer.status_code not in RETRIED_STATUSES:
                    return self._settled(answer, charged)
                self._give_back(charged)
                reason, wait = self._status(answer), self._wait(answer, attempt)
            if attempt < self.endpoint.tries:
                await asyncio.sleep(wait)
        raise EndpointError(
            f"{self.endpoint.chat_url} failed {self.endpoint.tries} times, at last with {reason}: "
            "see that it runs and answers; the row is tried again later"
        )

    async def _post(self, request: ChatRequest) -> Any:
        # httpx's own timeout is between two bytes; a server that drips bytes would hold a worker for ever.
        async with asyncio.timeout(self.endpoint.timeout_seconds):
            return await self._connections.post(self.endpoint.chat_url, json=self._body(request))

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        body = {
            "model": self.endpoint.model,
            "messages": [message.as_json() for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
        }
        if request.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        if request.schema is not None and self.endpoint.structured == "json_schema":
            form = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        elif request.schema is not None and self.endpoint.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _settled(self, answer: Any, charged: Cost) -> Reply:
        """The reply in an HTTP answer, its real tokens in the account. Raises EndpointError or AnswerError."""
        if answer.status_code != 200:
            self._give_back(charged)
            raise EndpointError(
                f"{self.endpoint.chat_url} refuses the request with {self._status(answer)}{self._hint(answer)}"
            )
        try:
            reply = read_reply(answer.json(), self.endpoint.model)
        except AnswerError as error:
            raise AnswerError(f"{self.endpoint.chat_url}: {self._shown(str(error))}") from None
        except ValueError:
            raise AnswerError(
                f"{self.endpoint.chat_url} answered {self._shown(answer.text)!r}, which is no JSON"
            ) from None
        if reply.prompt_tokens or reply.completion_tokens:
            self._spending.correct(_difference(charged, self._priced(reply.prompt_tokens, reply.completion_tokens)))
        return reply

    def _hint(self, answer: Any) -> str:
        if answer.status_code in (401, 403):
            named = self.endpoint.key_variable
            return f": check the key in ${named}" if named else ": name the variable with its key in key_variable"
        if answer.status_code == 400 and self.endpoint.structured != "prompt":
            return "; a server that knows no response_format needs structured=prompt"
        return ""

    def _wait(self, answer: Any, attempt: int) -> float:
        """Seconds until the next try. What a server asks for holds for all requests of this client."""
        asked = retry_after_seconds(answer.headers.get("retry-after"))
        if asked is None:
            return wait_seconds(attempt, self.endpoint.longest_wait_seconds)
        if asked > self.endpoint.longest_wait_seconds:
            raise EndpointError(
                f"{self.endpoint.chat_url} asks to wait {asked:.0f} s ({self._status(answer)}), over "
                f"longest_wait_seconds={self.endpoint.longest_wait_seconds:.0f}: run again later, or with fewer requests at once"
            )
        self._not_before = max(self._not_before, self._loop.time() + asked)
        return asked

    async def _cool_down(self) -> None:
        while (left := self._not_before - self._loop.time()) > 0:
            await asyncio.sleep(left)

    def _charge(self, request: ChatRequest) -> Cost:
        characters = sum(len(message.text) for message in request.messages)
        pictures = sum(len(message.pictures) for message in request.messages)
        tokens = characters // _CHARACTERS_PER_TOKEN + pictures * _TOKENS_PER_PICTURE
        cost = self._priced(tokens, request.max_tokens)
        self._spending.charge(cost)
        return cost

    def _give_back(self, charged: Cost) -> None:
        """A try that brought nothing counts as a request, not as tokens."""
        self._spending.correct(_difference(charged, self._cost(requests=1)))

    def _priced(self, prompt_tokens: int, completion_tokens: int) -> Cost:
        dollars = self.endpoint.dollars(prompt_tokens, completion_tokens)
        return self._cost(requests=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, dollars=dollars)

    def _cost(self, **values: Any) -> Cost:
        return Cost(stage=self.stage, model=self.endpoint.model, **values)

    def _status(self, answer: Any) -> str:
        return f"status {answer.status_code}: {self._shown(_server_reason(answer))}"

    def _timed_out(self, error: Exception) -> bool:
        # Not having been let in is no work done.
        return isinstance(error, TimeoutError | self._http.ReadTimeout)

    def _described(self, error: Exception) -> str:
        if self._timed_out(error):
            return f"no answer within {self.endpoint.timeout_seconds:g} s"
        return self._shown(f"{type(error).__name__}: {error}")

    def _shown(self, text: str) -> str:
        """What others said, fit for an error message: short, on one line, without our key."""
        plain = text.replace(self._key, "***") if self._key else text
        return " ".join(plain.split())[:_LONGEST_REASON]


def read_reply(body: Any, model: str) -> Reply:
    """The reply in the JSON of a chat completion. Raises AnswerError for one that is empty, refused or of another form."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        usage: Mapping[str, Any] = body.get("usage") or {}
        prompt, completion = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        finish = str(choice.get("finish_reason") or "stop")
        first_token = read_first_token(choice)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise AnswerError(f"its answer is no chat completion ({type(error).__name__}: {error})") from error
    if refusal := message.get("refusal"):
        raise AnswerError(f"the model refused: {refusal}")
    if finish == "content_filter":
        raise AnswerError("the server's content filter stopped the answer")
    if not isinstance(text, str) or not (text.strip() or first_token):
        raise AnswerError("the answer is empty")
    return Reply(
        text=text,
        model=str(body.get("model") or model),
        finish=finish,
        prompt_tokens=prompt,
        completion_tokens=completion,
        first_token=first_token,
    )


def read_first_token(choice: Mapping[str, Any]) -> dict[str, float]:
    """Probabilities of the first token's alternatives; empty where the server tells none."""
    told = (choice.get("logprobs") or {}).get("content") or []
    chances: dict[str, float] = {}
    for one in told[0]["top_logprobs"] if told else ():
        # Tokens that are no whole characters are told alike.
        chances[one["token"]] = chances.get(one["token"], 0.0) + math.exp(float(one["logprob"]))
    return chances


def _secret(endpoint: Endpoint) -> str:
    """The endpoint's key. The one setting read from the environment, here, so that it passes through no file or queue."""
    if not endpoint.key_variable:
        return ""
    if not (key := os.environ.get(endpoint.key_variable, "").strip()):
        raise ConfigError(
            f"the environment variable {endpoint.key_variable} is not set: export the key of {endpoint.url} there"
        )
    return key


def _server_reason(answer: Any) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(answer.json()["error"]["message"])
    return str(answer.text)


def _difference(charged: Cost, real: Cost) -> Cost:
    numbers = {
        name: getattr(real, name) - value for name, value in asdict(charged).items() if not isinstance(value, str)
    }
    return replace(real, **numbers)
