"""Certificates and tokens, with OpenSSL's own reader as the witness."""

import asyncio
import ssl
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemesh.model.errors import Forbidden, Invalid
from hivemesh.pki import (
    BACKDATED,
    Authority,
    JoinToken,
    ca_digest,
    make_request,
    new_request,
    new_token,
    peer_of,
    same_secret,
    server_context,
    unverified_context,
    validity,
)

NOW = float(int(time.time()))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(NOW)


def issue(authority: Authority, role: str = "worker", lifetime: float = 2160 * 3600) -> tuple[str, str]:
    request = make_request()
    certificate = authority.sign(
        request.csr,
        node_id="node1",
        cluster_id="cluster1",
        role="manager" if role == "manager" else "worker",
        now=NOW,
        addresses=[ip_address("192.0.2.1"), ip_address("2001:db8::1")],
        lifetime=lifetime,
    )
    return certificate, request.key


def openssl(certificate: str, *arguments: str) -> str:
    done = subprocess.run(
        ["openssl", "x509", "-noout", *arguments], input=certificate, text=True, capture_output=True, check=True
    )
    return done.stdout


def test_node_certificate_says_who_and_what(authority: Authority) -> None:
    certificate, _ = issue(authority)
    assert "O = cluster1, OU = swarm-worker, CN = node1" in openssl(certificate, "-subject")
    assert "CN = swarm-ca" in openssl(certificate, "-issuer")
    names = openssl(certificate, "-ext", "subjectAltName")
    for name in ("DNS:node1", "DNS:swarm-worker", "IP Address:192.0.2.1", "IP Address:2001:DB8:0:0:0:0:0:1"):
        assert name in names


def test_validity_is_backdated_and_readable_without_a_library(authority: Authority) -> None:
    certificate, key = issue(authority, lifetime=3600)
    assert validity(certificate + key) == (NOW - BACKDATED, NOW + 3600)
    start, end = validity(authority.certificate)  # ends after 2049: another form of time in the certificate
    assert (end - start) / 3600 / 24 / 365 == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize("text", ["", "junk", f"{ssl.PEM_HEADER}\nAAAA\n{ssl.PEM_FOOTER}\n"])
def test_what_is_no_certificate_is_said_to_be_none(text: str) -> None:
    with pytest.raises(Invalid, match="not a certificate"):
        validity(text)


def test_request_in_a_child_process_is_as_good(authority: Authority) -> None:
    request = asyncio.run(new_request())
    certificate = authority.sign(request.csr, node_id="n", cluster_id="c", role="worker", now=NOW)
    assert "PRIVATE KEY" in request.key
    assert "CN = n" in openssl(certificate, "-subject")


def test_worker_modules_do_not_load_the_signing_library() -> None:
    code = "import hivemesh.agent.session, sys; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "csr", ["", "junk", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
)
def test_malformed_request_is_refused(authority: Authority, csr: str) -> None:
    with pytest.raises(Invalid, match="certificate request"):
        authority.sign(csr, node_id="n", cluster_id="c", role="worker", now=NOW)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = None) -> ssl.SSLObject:
    """The server's end of a TLS connection through memory. Raises `ssl.SSLError`."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[1]


def test_tls_shows_the_peers_role_and_needs_version_1_3(authority: Authority, tmp_path: Path) -> None:
    for role in ("worker", "manager"):
        certificate, key = issue(authority, role)
        (tmp_path / f"{role}.pem").write_text(certificate + key)
    server = server_context(tmp_path / "manager.pem", authority.certificate)
    client = unverified_context()
    client.load_cert_chain(tmp_path / "worker.pem")
    peer = peer_of(handshake(server, client).getpeercert() or {})
    assert (peer.node_id, peer.role, peer.cluster_id) == ("node1", "worker", "cluster1")
    with pytest.raises(Forbidden):
        peer_of(handshake(server, unverified_context()).getpeercert() or {})
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(server, old)


def test_token_pins_the_ca_whatever_the_white_space(authority: Authority) -> None:
    token = JoinToken.parse(f"  {new_token(authority.certificate)}\n")
    assert token.digest == ca_digest("\n" + authority.certificate + "\n")
    assert token.digest != ca_digest(Authority.create(NOW).certificate)


def test_two_tokens_differ_and_compare(authority: Authority) -> None:
    one, two = new_token(authority.certificate), new_token(authority.certificate)
    assert same_secret(one, one)
    assert not same_secret(one, two)
    assert not same_secret("", "")


@given(st.text(max_size=100))
def test_any_other_text_is_a_clear_error(text: str) -> None:
    with pytest.raises(Invalid, match="token"):
        JoinToken.parse(text)
