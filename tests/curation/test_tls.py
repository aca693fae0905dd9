"""HTTPS to a checked address: the certificate is judged against the URL's name, not against the address."""

from __future__ import annotations

import datetime
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pleinair.curation.web import fetch_picture
from tests.curation.web_site import Site, answer, png


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate with its key, in one file."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(hours=1))
    builder = builder.not_valid_after(now + datetime.timedelta(hours=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    signed = builder.sign(key, hashes.SHA256())
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *plain) + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_the_certificate_must_be_that_of_the_urls_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, site, real = certificate(tmp_path, "pictures.test"), Site(), socket.getaddrinfo
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    site.routes["/a.png"] = answer()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))

    def resolved(host: str, *arguments: Any, **more: Any) -> Any:
        return real("127.0.0.1" if host.endswith(".test") else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    try:
        found = fetch_picture(f"https://pictures.test:{site.port}/a.png", tmp_path, site.policy)
        assert found.data == png()
        assert site.hosts == {f"pictures.test:{site.port}"}
        asked = len(site.log)
        other = fetch_picture(f"https://other.test:{site.port}/a.png", tmp_path, site.policy)
        assert "Hostname mismatch" in (other.consent.signal or "")
        monkeypatch.delenv("SSL_CERT_FILE")
        (tmp_path / "web").rename(tmp_path / "old")
        unknown = fetch_picture(f"https://pictures.test:{site.port}/a.png", tmp_path, site.policy)
        assert "certificate verify failed" in (unknown.consent.signal or "")
        assert len(site.log) == asked
    finally:
        site.close()
