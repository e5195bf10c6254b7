"""`TLSInfo`: clients compare the swarm's with that of each node to see who is with the present root."""

import base64
from functools import lru_cache
from typing import Any

from hivemesh.model.cluster import Cluster
from hivemesh.model.node import Node
from hivemesh.pki import ca_digest, key_id

Json = dict[str, Any]


def of_cluster(cluster: Cluster) -> Json:
    """While another root takes over: the old one is trusted still, the new one signs."""
    return _info(cluster.ca_cert, cluster.rotation.ca_cert if cluster.rotation is not None else cluster.ca_cert)


def of_node(node: Node, cluster: Cluster) -> Json:
    """What the node said itself. One that trusts a root nobody knows any more shows none: it "needs rotation"."""
    trust = node.description.trust
    present = [cluster.ca_cert, *([cluster.rotation.ca_cert] if cluster.rotation is not None else [])]
    roots = {ca_digest(root): root for root in present if trust.roots}
    issuer = next((root for root in roots.values() if key_id(root) == trust.issuer), "")
    known = all(digest in roots for digest in trust.roots)
    return _info("".join(roots[digest] for digest in trust.roots) if known else "", issuer)


@lru_cache(maxsize=16)
def _info(trusted: str, issuer: str) -> Json:
    """For trusted roots, and the root whose key signs (all PEM)."""
    if not issuer:
        return {}
    from cryptography import x509  # heavy, and only managers come here
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    certificate = x509.load_pem_x509_certificate(issuer.encode())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return {
        "TrustRoot": trusted,
        "CertIssuerSubject": base64.b64encode(certificate.subject.public_bytes()).decode(),
        "CertIssuerPublicKey": base64.b64encode(key).decode(),
    }
