"""How pictures are fetched from the web: whom to reach, how often, how much, and who is asking."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pleinair.records.errors import ConfigError

AGENT = "pleinair"
"""The name a robots.txt may use for us."""


@dataclass(frozen=True, kw_only=True)
class FetchPolicy:
    """The defaults refuse every address that is not public."""

    contact: str = ""
    """Who fetches and where to complain, e.g. `https://lab.example/bot` or `mailto:data@lab.example`. Needed to fetch."""
    agents: tuple[str, ...] = (AGENT, "GPTBot", "CCBot", "Google-Extended", "anthropic-ai", "img2dataset")
    """Names whose robots.txt rules we obey: ours, and those by which sites speak to collectors of training data."""
    directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")
    """Words of `X-Robots-Tag` and robots `<meta>` that refuse a picture."""
    allow_ports: tuple[int, ...] = (80, 443)
    allow_networks: tuple[str, ...] = ()
    """Networks reached although they are not public, e.g. `127.0.0.0/8` for a server on this machine."""
    per_host: int = 2
    """Requests to one host at a time, over all processes of this machine."""
    delay_seconds: float = 1.0
    """Pause of each of those between two requests; a longer Crawl-delay wins."""
    max_wait_seconds: float = 60.0
    """A host that asks for a longer pause than this is tried again later, not waited for."""
    max_bytes: int = 64 * 2**20
    """Largest body."""
    max_seconds: float = 60.0
    """Longest time from connecting to the last byte, redirects not counted together."""
    max_redirects: int = 5
    attempts: int = 3
    """Tries of a request that fails for a passing reason, 1, 2, 4 ... seconds apart or as the host says."""
    rules_hours: float = 24.0
    """How long a host's robots.txt, ai.txt and tdmrep.json are believed."""
    threads: int = 16
    """Pictures of one batch fetched at once."""

    def __post_init__(self) -> None:
        for field, low in (("per_host", 1), ("max_bytes", 1), ("attempts", 1), ("threads", 1), ("max_redirects", 0)):
            if getattr(self, field) < low:
                raise ConfigError(f"fetch.{field} is {getattr(self, field)}: give at least {low}")
        for field in ("delay_seconds", "max_wait_seconds", "rules_hours"):
            if getattr(self, field) < 0:
                raise ConfigError(f"fetch.{field} is {getattr(self, field)}: give 0 or more")
        if self.max_seconds <= 0:
            raise ConfigError(f"fetch.max_seconds is {self.max_seconds}: give more than 0")
        if any(not sign.isprintable() or sign in "()" for sign in self.contact):
            raise ConfigError(f"fetch.contact is {self.contact!r}: give one printable line without parentheses")
        for network in self.allow_networks:
            _checked_network(network)

    @property
    def user_agent(self) -> str:
        """Who we are and how to opt out. Raises ConfigError when nobody is named."""
        if not self.contact:
            raise ConfigError(
                "fetch.contact is empty: pictures are fetched from the web only under a name; say who you are, "
                "e.g. --set fetch.contact=mailto:you@your.lab"
            )
        return f"{AGENT} (pictures for training; {self.contact}; opt out in robots.txt: {AGENT})"


def _checked_network(network: str) -> None:
    try:
        ipaddress.ip_network(network)
    except ValueError as error:
        raise ConfigError(f"fetch.allow_networks holds {network!r} ({error}): write it like 127.0.0.0/8") from error
