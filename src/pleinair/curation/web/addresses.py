"""URLs taken apart and addresses judged, so that a list of pictures cannot make us talk to our own network.

A name is resolved once and the connection goes to the address that was judged, so a name that later resolves elsewhere
(DNS rebinding) gains nothing. Numbers in disguise (127.1, 0x7f.1, 2130706433, 0177.0.0.1) never reach a resolver:
a host that ends in a number must be a plain dotted quad, as the WHATWG URL standard reads hosts.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

from pleinair.curation.web.policy import FetchPolicy
from pleinair.records.errors import ImageError, SourceError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
DEFAULT_PORTS = {"http": 80, "https": 443}

# What `is_global` calls public although nothing public is there (Python 3.11 and some of its patch releases).
_NEVER = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure's host agent, which hands out credentials
        *("::/96", "64:ff9b:1::/48", "fec0::/10", "5f00::/16"),
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_QUAD = re.compile(r"(0|[1-9]\d{0,2})(\.(0|[1-9]\d{0,2})){3}")
_NUMBER = re.compile(r"\d+|0[xX][0-9a-fA-F]*")
_KEPT_IN_PATHS = "/%:@!$&'()*+,;=~?-._"


@dataclass(frozen=True)
class Target:
    """One URL, taken apart."""

    scheme: str
    host: str
    """ASCII, lower case; an IPv6 address without brackets."""
    port: int
    path: str
    """Path and query as they go into the request line."""

    @property
    def origin(self) -> str:
        """`http://host`, with the port where it is not the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == DEFAULT_PORTS[self.scheme] else f":{self.port}")

    @property
    def url(self) -> str:
        """The whole of it, normalised."""
        return self.origin + self.path


def parse_url(url: str) -> Target:
    """Take a URL apart. Raises ImageError with a sentence for whatever no honest list of pictures holds."""
    if any(sign <= " " or sign == "\x7f" for sign in url) or "\\" in url:
        raise _refused(url, "it holds a space, a control character or a backslash; percent-encode it")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(url, f"it cannot be read ({error})") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise _refused(url, f"its scheme is {parts.scheme or 'missing'}, not http or https")
    if "@" in parts.netloc:
        raise _refused(url, "it carries a user name or password; give the plain address")
    if not host:
        raise _refused(url, "it names no host")
    path = quote(urlunsplit(("", "", parts.path or "/", parts.query, "")), safe=_KEPT_IN_PATHS)
    return Target(parts.scheme, _plain_host(host, url), port or DEFAULT_PORTS[parts.scheme], path)


def _plain_host(host: str, url: str) -> str:
    """ASCII form of a host. Raises ImageError for a number in disguise, a zone or a percent sign."""
    if "%" in host:
        raise _refused(url, "its host holds a percent sign")
    if ":" in host:
        return host
    try:
        # Nameprep first turns full-width digits and other dots into plain ones.
        plain = host.encode("idna").decode().lower().rstrip(".")
    except UnicodeError as error:
        raise _refused(url, f"its host is no name ({error})") from error
    if _NUMBER.fullmatch(plain.rpartition(".")[2]) and not _QUAD.fullmatch(plain):
        raise _refused(url, f"its host {host} is an address in disguise; write it as a dotted quad")
    return plain


def resolve(target: Target, policy: FetchPolicy) -> list[str]:
    """The addresses of a host, every one of them allowed.

    Raises ImageError when its port or any of its addresses is not, SourceError when it does not resolve.
    """
    if target.port not in policy.allow_ports:
        allowed = ", ".join(map(str, policy.allow_ports))
        raise _refused(target.url, f"port {target.port} is not among {allowed}; see fetch.allow_ports")
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceError(
            f"{target.url}: the name {target.host} does not resolve ({error}): check it or try later"
        ) from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if reason := why_not(address, policy):
            raise _refused(target.url, f"{target.host} is {address}, {reason}")
    return addresses


def why_not(address: str, policy: FetchPolicy) -> str:
    """Why an address may not be connected to; empty when it may."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "which is no plain address"
    if any(found in ipaddress.ip_network(network) for network in policy.allow_networks):
        return ""
    inner = _carried(found)
    if inner is not None:
        reason = why_not(str(inner), policy)
        return reason and f"which leads to {inner}, {reason}"
    public = found.is_global and not found.is_multicast and not any(found in network for network in _NEVER)
    return "" if public else "which is not a public address"


def _carried(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address stands for: mapped, NAT64, 6to4 or Teredo."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.teredo[1] if address.teredo else None


def _refused(url: str, reason: str) -> ImageError:
    return ImageError(f"refused: {url[:200]!r}: {reason}")
