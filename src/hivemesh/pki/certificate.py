"""Reading certificates without a library: who the peer of a TLS connection is, and how long our own is valid."""

import calendar
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from hivemesh.model.errors import Forbidden, Invalid
from hivemesh.model.ids import ClusterID, NodeID
from hivemesh.model.node import Role

SEQUENCE, CONTEXT_0, UTC_TIME, GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
"""DER tags (X.690)."""


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
        start = certificate.index(ssl.PEM_HEADER)
        end = certificate.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
        der = ssl.PEM_cert_to_DER_cert(certificate[start:end] + "\n")
        _, outer, _ = _element(der, SEQUENCE)  # Certificate
        _, body, _ = _element(outer, SEQUENCE)  # TBSCertificate
        tag, _, rest = _element(body)
        if tag == CONTEXT_0:  # the version; absent in version 1
            _, _, rest = _element(rest)  # serial number
        _, _, rest = _element(rest, SEQUENCE)  # signature algorithm
        _, _, rest = _element(rest, SEQUENCE)  # issuer
        _, both, _ = _element(rest, SEQUENCE)  # validity
        first_tag, first, both = _element(both)
        last_tag, last, _ = _element(both)
        return _moment(first_tag, first), _moment(last_tag, last)
    except (ValueError, LookupError) as error:
        raise Invalid("not a certificate in PEM form") from error


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
