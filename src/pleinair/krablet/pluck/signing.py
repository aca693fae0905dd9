"""Keys that sign work for other machines: one shared secret (HMAC-SHA256), or a pair of keys (Ed25519).

    sign(key, message) -> "algorithm:key id:signature" -> verify(keys, message, signature), or RefusedError

A shared secret lets whoever can check a signature make one as well. With a pair only the holder of the private file
can submit work, and workers hold the public file; it needs the package `cryptography`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pleinair.records.errors import ConfigError, RefusedError, require

HMAC, PRIVATE, PUBLIC = "hmac-sha256", "ed25519-private", "ed25519-public"
_KEY_BYTES = 32
_CONTEXT = b"pleinair signed work 1\n"


@dataclass(frozen=True)
class Key:
    """One key; its `repr` does not show it."""

    algorithm: str
    material: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.algorithm not in (HMAC, PRIVATE, PUBLIC):
            raise ConfigError(f"key algorithm {self.algorithm!r} is unknown: use {HMAC}, {PRIVATE} or {PUBLIC}")
        if len(self.material) != _KEY_BYTES:
            raise ConfigError(
                f"a {self.algorithm} key has {len(self.material)} bytes, not {_KEY_BYTES}: make a new one"
            )

    @property
    def id(self) -> str:
        """Names the key without giving it away; both keys of a pair have the same."""
        known = self.material if self.algorithm == HMAC else public_key(self).material
        return hashlib.sha256(b"pleinair key id\n" + known).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The one line that a key file holds."""
        return f"{self.algorithm}:{base64.b64encode(self.material).decode()}"


def new_key(algorithm: str = HMAC) -> Key:
    """A random key that signs; `algorithm` is "hmac-sha256" or "ed25519-private"."""
    return Key(algorithm, secrets.token_bytes(_KEY_BYTES))


def public_key(key: Key) -> Key:
    """The key that verifies what an Ed25519 key signs."""
    if key.algorithm == PUBLIC:
        return key
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "pluck")
    return Key(PUBLIC, ed25519.Ed25519PrivateKey.from_private_bytes(key.material).public_key().public_bytes_raw())


def parse_key(text: str, place: str) -> Key:
    """A key from its line of text. Raises ConfigError naming `place`, never the key."""
    algorithm, _, encoded = text.strip().partition(":")
    with suppress(binascii.Error, ConfigError):
        return Key(algorithm, base64.b64decode(encoded, validate=True))
    raise ConfigError(f"{place} holds no key: make one with 'pleinair krablet key FILE'") from None


def load_key(path: Path) -> Key:
    """The key in a file. Raises ConfigError if others may read a secret, or if there is no key in it."""
    try:
        with path.open("rb") as file:
            mode, data = os.fstat(file.fileno()).st_mode, file.read(4096)
    except OSError as error:
        raise ConfigError(
            f"the key file {path} cannot be read ({error.strerror}): make one with 'pleinair krablet key {path}'"
        ) from error
    key = parse_key(data.decode("ascii", "replace"), f"the file {path}")
    if key.algorithm != PUBLIC and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"the key file {path} may be read by others (mode {mode & 0o777:04o}): chmod 600 {path}")
    return key


def write_keys(path: Path, algorithm: str = HMAC) -> list[Path]:
    """Make a key and write it, mode 0600; for a pair also its public key, at `path` + ".pub". Never overwrites."""
    key = new_key(algorithm)
    files = [(path, key, 0o600)]
    if algorithm == PRIVATE:
        files.append((path.with_name(path.name + ".pub"), public_key(key), 0o644))
    for place, _, _ in files:
        if place.exists():
            raise ConfigError(f"{place} exists: choose another file, or delete it if no worker uses it any more")
    for place, written, mode in files:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(written.text + "\n")
    return [place for place, _, _ in files]


def sign(key: Key, message: bytes) -> str:
    """The signature of `message`. Raises ConfigError for a public key."""
    if key.algorithm == PUBLIC:
        raise ConfigError("a public key cannot sign: give the private key file")
    if key.algorithm == HMAC:
        made = hmac.digest(key.material, _CONTEXT + message, "sha256")
    else:
        ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "pluck")
        made = ed25519.Ed25519PrivateKey.from_private_bytes(key.material).sign(_CONTEXT + message)
    algorithm = key.algorithm.partition("-private")[0]
    return f"{algorithm}:{key.id}:{base64.b64encode(made).decode()}"


def verify(keys: Sequence[Key], message: bytes, signature: str) -> None:
    """Returns if one of `keys` made `signature` over exactly `message`; else raises RefusedError."""
    if not signature:
        raise RefusedError("it is not signed: submit it with a key file this worker holds")
    algorithm, _, rest = signature.partition(":")
    key_id, _, encoded = rest.partition(":")
    # The key decides what is computed, never the text of the signature.
    key = next((key for key in keys if hmac.compare_digest(key.id.encode(), key_id.encode())), None)
    if key is None:
        held = ", ".join(key.id for key in keys) or "none"
        raise RefusedError(f"it is signed with key {key_id!r:.20} ({algorithm!r:.20}), and this worker holds {held}")
    try:
        given = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        given = b""
    if not _made_by(key, message, given):
        raise RefusedError(f"its signature does not fit its content (key {key.id}): it was altered after signing")


def _made_by(key: Key, message: bytes, given: bytes) -> bool:
    if key.algorithm == HMAC:
        return hmac.compare_digest(hmac.digest(key.material, _CONTEXT + message, "sha256"), given)
    ed25519 = require("cryptography.hazmat.primitives.asymmetric.ed25519", "pluck")
    exceptions = require("cryptography.exceptions", "pluck")
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public_key(key).material).verify(given, _CONTEXT + message)
    except exceptions.InvalidSignature:
        return False
    return True
