"""Where a service listens: `HOST:PORT`, `[IPV6]:PORT` or, for a funnel, `unix:/path`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from pleinair.records.errors import ConfigError


@dataclass(frozen=True)
class Address:
    """A TCP address, or a Unix socket if it has a path."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.is_unix:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    @property
    def is_local(self) -> bool:
        """True if only this machine can reach it."""
        if self.is_unix or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str) -> Address:
    """Raises ConfigError with the accepted forms."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) < 2**16):
        raise ConfigError(f"address {text!r} is not usable: write HOST:PORT, [IPV6]:PORT or unix:/path")
    return Address(host=host.removeprefix("[").removesuffix("]"), port=int(port))
