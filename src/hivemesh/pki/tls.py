"""TLS settings of the cluster port: version 1.3 only, both sides with certificates of the swarm's own CA."""

import ssl
from pathlib import Path

MANAGER_NAME = "swarm-manager"
"""The name every manager's certificate carries and every client asks for: a worker cannot pose as a manager."""


def server_context(certificate: Path, ca: str) -> ssl.SSLContext:
    """For the cluster port. `certificate` is a PEM file with certificate and key, `ca` PEM text.

    A client certificate is optional, since a node that joins has none yet; one that is shown must be the CA's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate)
    context.load_verify_locations(cadata=ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(ca: str, certificate: Path | None = None) -> ssl.SSLContext:
    """For a node that calls a manager; give `server_hostname=MANAGER_NAME` with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def unverified_context() -> ssl.SSLContext:
    """Only to fetch a CA certificate whose digest is then compared with a join token's; send nothing through it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
