"""Reading certificates without a library: who the peer of a TLS connection is, and how long our own is valid."""

import calendar
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from hivemesh.model.errors import Forbidden, Invalid
from hivemesh.model.ids import ClusterID, NodeID
from hivemesh.model.node import Role

SEQUENCE, CONTEXT_0, CONTEXT_3, UTC_TIME, GENERALIZED_TIME = 0x30, 0xA0, 0xA3, 0x17, 0x18
BOOLEAN, OCTETS, KEY_IDENTIFIER = 0x01, 0x04, 0x80
"""DER tags (X.690)."""
SUBJECT_KEY, AUTHORITY_KEY = b"\x55\x1d\x0e", b"\x55\x1d\x23"
"""Extensions 2.5.29.14 and 2.5.29.35 (RFC 5280, 4.2.1)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """What a verified node certificate says of its owner."""

    node_id: NodeID
    role: Role
    cluster_id: ClusterID


def peer_of(certificate: Mapping[str, Any]) -> Peer:
    """From `SSLSocket.getpeercert()`'s dictionary, which is only filled when the certificate was verified.

    Raises `Forbidden` when there is none or it is no node certificate.
    """
    subject = {key: value for rdn in certificate.get("subject", ()) for key, value in rdn}
    node_id, unit = subject.get("commonName", ""), subject.get("organizationalUnitName", "")
    role = unit.removeprefix("swarm-")
    if not node_id or not unit.startswith("swarm-") or role not in ("worker", "manager"):
        raise Forbidden("a node certificate of this swarm is needed: join the swarm first")
    return Peer(NodeID(node_id), cast(Role, role), ClusterID(subject.get("organizationName", "")))


def validity(certificate: str) -> tuple[float, float]:
    """Unix seconds at which the first certificate of a PEM text begins and ends. Raises `Invalid`."""
    try:
        rest = _from_issuer(certificate)
        _, _, rest = _element(rest, SEQUENCE)  # issuer
        _, both, _ = _element(rest, SEQUENCE)  # validity
        first_tag, first, both = _element(both)
        last_tag, last, _ = _element(both)
        return _moment(first_tag, first), _moment(last_tag, last)
    except (ValueError, LookupError) as error:
        raise Invalid("not a certificate in PEM form") from error


@lru_cache(maxsize=64)
def issuer_id(certificate: str) -> str:
    """Which root's key signed the first certificate of a PEM text: that root's `key_id`. Raises `Invalid`."""
    try:
        for extension, value in _extensions(certificate):
            if extension == AUTHORITY_KEY:
                _, fields, _ = _element(value, SEQUENCE)
                _, identifier, _ = _element(fields, KEY_IDENTIFIER)
                return identifier.hex()
    except (ValueError, LookupError) as error:
        raise Invalid("not a certificate in PEM form") from error
    raise Invalid("the certificate does not say which key signed it")


@lru_cache(maxsize=64)
def key_id(root: str) -> str:
    """The identifier of a root's key (PEM of its certificate), in hexadecimal digits. Raises `Invalid`."""
    try:
        for extension, value in _extensions(root):
            if extension == SUBJECT_KEY:
                return _element(value, OCTETS)[1].hex()
    except (ValueError, LookupError) as error:
        raise Invalid("not a certificate in PEM form") from error
    raise Invalid("the root certificate has no subject key identifier")


def certificates_in(text: str) -> list[str]:
    """Each certificate of a PEM text, every one ending with a newline."""
    found, at = [], 0
    while (start := text.find(ssl.PEM_HEADER, at)) >= 0 and (end := text.find(ssl.PEM_FOOTER, start)) >= 0:
        at = end + len(ssl.PEM_FOOTER)
        found.append(text[start:at] + "\n")
    return found


def _from_issuer(certificate: str) -> bytes:
    """What follows the signature algorithm in the first certificate of a PEM text."""
    der = ssl.PEM_cert_to_DER_cert(certificates_in(certificate)[0])
    _, outer, _ = _element(der, SEQUENCE)  # Certificate
    _, body, _ = _element(outer, SEQUENCE)  # TBSCertificate
    tag, _, rest = _element(body)
    if tag == CONTEXT_0:  # the version; absent in version 1
        _, _, rest = _element(rest)  # serial number
    _, _, rest = _element(rest, SEQUENCE)  # signature algorithm
    return rest


def _extensions(certificate: str) -> Iterator[tuple[bytes, bytes]]:
    """Object identifier and value of each."""
    rest = _from_issuer(certificate)
    while rest:
        tag, content, rest = _element(rest)
        if tag != CONTEXT_3:
            continue
        _, entries, _ = _element(content, SEQUENCE)
        while entries:
            _, entry, entries = _element(entries, SEQUENCE)
            _, identifier, entry = _element(entry)
            tag, value, entry = _element(entry)
            if tag == BOOLEAN:  # whether it is critical
                _, value, _ = _element(entry, OCTETS)
            yield identifier, value


def _element(data: bytes, expected: int | None = None) -> tuple[int, bytes, bytes]:
    """Tag, content and what follows the first element of `data`."""
    tag, length, at = data[0], data[1], 2
    if expected is not None and tag != expected:
        raise ValueError(f"tag {tag:#x}, expected {expected:#x}")
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(data[2 : 2 + size], "big"), 2 + size
    return tag, data[at : at + length], data[at + length :]


def _moment(tag: int, content: bytes) -> float:
    form = {UTC_TIME: "%y%m%d%H%M%SZ", GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}[tag]
    return float(calendar.timegm(time.strptime(content.decode("ascii"), form)))
