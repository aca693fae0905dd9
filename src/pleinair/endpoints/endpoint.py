"""Where a model server is, what it is called, what it costs, and how patient we are with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pleinair.records.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One OpenAI-compatible server and one of its models."""

    url: str = ""
    """Base, e.g. `http://127.0.0.1:8000/v1`; empty: there is none."""
    model: str = ""
    """The model's name as the server knows it."""
    key_variable: str = ""
    """Name of the environment variable that holds the API key; empty: no key is sent. The key itself is never a setting."""
    concurrency: int = 8
    """Requests under way at once, per worker process."""
    timeout_seconds: float = 120.0
    """From sending one request to its whole answer."""
    tries: int = 5
    """How often one request is sent before its row fails."""
    longest_wait_seconds: float = 60.0
    """Longest wait between two tries; a server that asks for more is not waited for."""
    structured: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    """How JSON is asked for: by `response_format`, or for servers without it by the prompt alone. It is validated anyway."""
    dollars_per_million_prompt_tokens: float = 0.0
    """Price of what is sent."""
    dollars_per_million_completion_tokens: float = 0.0
    """Price of what comes back."""

    def __post_init__(self) -> None:
        if not self.url:
            return
        _check_url(self.url)
        for name in ("concurrency", "tries"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 1 or more")
        for name in ("timeout_seconds", "longest_wait_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a positive number of seconds")

    def __bool__(self) -> bool:
        return bool(self.url)

    @property
    def chat_url(self) -> str:
        """Where chat requests go."""
        return f"{self.url.rstrip('/')}/chat/completions"

    def dollars(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        prompt = prompt_tokens * self.dollars_per_million_prompt_tokens
        return (prompt + completion_tokens * self.dollars_per_million_completion_tokens) / 1e6


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"the endpoint {url!r} is no address: write it as http://host:port/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        place = f"{parts.scheme}://{parts.hostname}"
        raise ConfigError(
            f"the endpoint at {place} carries a user, key or query in its address, which logs would keep: "
            "put the key in an environment variable and name that in key_variable"
        )
