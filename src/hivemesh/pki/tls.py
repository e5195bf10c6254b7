"""TLS settings of the cluster port: version 1.3 only, both sides with certificates of the swarm's own CA."""

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("hivemesh.server")

MANAGER_NAME = "swarm-manager"
"""The name every manager's certificate carries and every client asks for: a worker cannot pose as a manager."""


def server_context(certificate: Path, ca: str, password: bytes = b"") -> ssl.SSLContext:
    """For the cluster port. `certificate` is a PEM file with certificate and key, `ca` PEM text of one or more roots,
    `password` opens the key if that is encrypted.

    A client certificate is optional, since a node that joins has none yet; one that is shown must be the CA's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody comes back without showing a certificate that is still good
    context.load_cert_chain(certificate, password=password)
    context.load_verify_locations(cadata=ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(ca: str, certificate: Path | None = None, password: bytes = b"") -> ssl.SSLContext:
    """For a node that calls a manager; give `server_hostname=MANAGER_NAME` with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca)
    if certificate is not None:
        context.load_cert_chain(certificate, password=password)
    return context


class LiveContext:
    """The cluster port's settings, which follow the certificate on disk and the roots of the swarm.

    Each connection is begun with what holds then; those that stand are not touched.
    """

    def __init__(self, certificate: Path, password: Callable[[], bytes], roots: Callable[[], str]) -> None:
        self._certificate = certificate
        self._password = password
        self._roots = roots
        self._made: tuple[int, str] | None = None
        self.context = self._inner = self._build()
        self.context.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        """Called at each client's first message, whether or not it asks for a name."""
        try:
            if self._made != self._wanted():
                self._inner = self._build()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            log.error("the cluster port keeps its old certificate, since the new one cannot be used: %s", error)
        connection.context = self._inner

    def _wanted(self) -> tuple[int, str]:
        return self._certificate.stat().st_mtime_ns, self._roots()

    def _build(self) -> ssl.SSLContext:
        self._made = self._wanted()
        return server_context(self._certificate, self._made[1], self._password())


def unverified_context() -> ssl.SSLContext:
    """Only to fetch a CA certificate whose digest is then compared with a join token's; send nothing through it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
