"""Keys and signatures: what is accepted, and that nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pleinair.krablet.pluck.signing import HMAC, PRIVATE, load_key, new_key, public_key, sign, verify, write_keys
from pleinair.records.errors import ConfigError, RefusedError

ALGORITHMS = (HMAC, PRIVATE)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_signature_holds_for_its_message_and_for_no_other(algorithm: str) -> None:
    key = new_key(algorithm)
    signature = sign(key, b"message")
    verify([new_key(), key], b"message", signature)
    for altered in (b"massage", b"message ", b""):
        with pytest.raises(RefusedError, match="altered after signing"):
            verify([key], altered, signature)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_altered_signature_is_refused(algorithm: str) -> None:
    key = new_key(algorithm)
    name, key_id, encoded = sign(key, b"message").split(":")
    for signature in (
        f"{name}:{key_id}:", f"{name}:{key_id}:{encoded[:-8]}", f"{name}:{key_id}:%%%", f"{name}:{key_id}:{encoded[::-1]}",
        f"{name}:{key_id}", f"{name}::{encoded}", encoded, "",
    ):  # fmt: skip
        with pytest.raises(RefusedError):
            verify([key], b"message", signature)


def test_a_signature_of_another_key_names_both_keys() -> None:
    ours, theirs = new_key(), new_key()
    with pytest.raises(RefusedError, match=f"signed with key '{theirs.id}'.* holds {ours.id}"):
        verify([ours], b"message", sign(theirs, b"message"))


def test_the_public_key_of_a_pair_verifies_and_cannot_sign() -> None:
    private = new_key(PRIVATE)
    public = public_key(private)
    verify([public], b"message", sign(private, b"message"))
    assert public.id == private.id
    with pytest.raises(ConfigError, match="a public key cannot sign"):
        sign(public, b"message")


def test_a_public_key_used_as_a_shared_secret_is_no_signature() -> None:
    public = public_key(new_key(PRIVATE))
    forged = sign(type(public)(HMAC, public.material), b"message").split(":")[2]
    with pytest.raises(RefusedError, match="altered"):
        verify([public], b"message", f"hmac-sha256:{public.id}:{forged}")


def test_key_files_are_private_and_come_back(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path / "pair", PRIVATE)
    assert private.stat().st_mode & 0o777 == 0o600
    assert public.read_text("ascii").startswith("ed25519-public:")
    assert load_key(public) == public_key(load_key(private))
    with pytest.raises(ConfigError, match="exists: choose another file"):
        write_keys(private)


def test_a_key_file_others_may_read_is_refused(tmp_path: Path) -> None:
    [path] = write_keys(tmp_path / "key")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"may be read by others \(mode 0640\): chmod 600"):
        load_key(path)


@pytest.mark.parametrize("content", ["", "hmac-sha256:", "hmac-sha256:c2hvcnQ=", "rot13:" + "A" * 44, "\x00\xff"])
def test_a_file_without_a_key_is_refused_without_printing_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content, "latin-1")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"holds no key: make one with 'pleinair krablet key FILE'"):
        load_key(path)


def test_a_missing_key_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make one with 'pleinair krablet key"):
        load_key(tmp_path / "none")


def test_a_key_does_not_show_in_its_repr() -> None:
    key = new_key()
    assert key.text.split(":")[1] not in repr(key)
    assert repr(key) == "Key(algorithm='hmac-sha256')"
