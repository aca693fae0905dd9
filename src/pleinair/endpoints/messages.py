"""What is asked of a chat model and what it answers, independent of how it travels.

Two requests with the same digest are the same question: same words, same pictures byte for byte, same model, same
parameters. The cache relies on it, so every field that can change an answer is in the digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from pleinair.records.errors import EndpointError

Schema = Mapping[str, Any]
"""A JSON schema; see `schema.problem` for the keywords known."""


@dataclass(frozen=True)
class EncodedPicture:
    """A picture as bytes of a file."""

    data: bytes
    media_type: str
    """`image/png`, `image/jpeg` or `image/webp`."""

    @property
    def data_url(self) -> str:
        """The picture inside an address, as servers take it."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str
    pictures: tuple[EncodedPicture, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The turn in OpenAI's form; plain text where there is no picture, which every server takes."""
        if not self.pictures:
            return {"role": self.role, "content": self.text}
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture.data_url}} for picture in self.pictures
        ]
        return {"role": self.role, "content": [*parts, {"type": "text", "text": self.text}]}


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A question to a chat model."""

    messages: tuple[Message, ...]
    schema: Schema | None = None
    """The answer must be JSON of this form; None: free text."""
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    top_logprobs: int = 0
    """Also tell how likely so many first tokens were; 0: none. Servers tell 20 at most."""

    def digest(self, model: str) -> str:
        """SHA-256 of all that can change the answer."""
        told = [
            [message.role, message.text, [hashlib.sha256(picture.data).hexdigest() for picture in message.pictures]]
            for message in self.messages
        ]
        whole = [model, told, self.schema, self.max_tokens, self.temperature, self.seed]
        if self.top_logprobs:  # appended, so that answers kept before there was such a thing are still found
            whole.append(self.top_logprobs)
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def after(self, answer: str, objection: str) -> ChatRequest:
        """The same conversation gone on: the model's answer, and what is wrong with it."""
        return replace(self, messages=(*self.messages, Message("assistant", answer), Message("user", objection)))


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a chat model answered."""

    text: str
    value: Any = None
    """The parsed JSON where a schema was asked for."""
    model: str
    """The model that answered, as it calls itself."""
    finish: str = "stop"
    """Why it ended: `stop`, or `length` when it was cut at max_tokens."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token: Mapping[str, float] = field(default_factory=dict)
    """Probability of the likeliest first tokens, where they were asked for and told."""
    cached: bool = False


class Chat(Protocol):
    """Anything that answers chat requests: an endpoint, or a small model in this process."""

    @property
    def name(self) -> str:
        """The model, as provenance columns name it."""

    def chat(self, requests: Sequence[ChatRequest]) -> list[Reply | EndpointError]:
        """An answer, or why there is none, for each request in order."""
