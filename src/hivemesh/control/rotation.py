"""Another root for the swarm, without breaking a session.

    swarm ca --rotate ──▶ both roots trusted, the new one signs ──▶ every node has both, and a new certificate
                                                                        └──▶ the old root is dropped, tokens change

What the new root signs comes with a link: the new root's name and key, certified by the old one. So whoever trusts
either root trusts every certificate, in any order of messages. All members are waited for, also those that are down:
one that comes back takes part then; one that never will must be removed (`node rm`).
"""

import msgspec

from hivemesh import pki
from hivemesh.model.cluster import CAConfig, Cluster, RootRotation
from hivemesh.model.errors import Invalid
from hivemesh.model.node import Node
from hivemesh.store.tables import Transaction


def signer(cluster: Cluster) -> pki.Authority:
    """Who signs certificates now."""
    coming = cluster.rotation
    if coming is None:
        return pki.Authority(cluster.ca_cert, cluster.ca_key)
    return pki.Authority(coming.ca_cert, coming.ca_key, coming.link)


def issuer(cluster: Cluster) -> str:
    """The identifier of the key that signs certificates now; empty when nobody does."""
    root = signer(cluster).certificate
    return pki.key_id(root) if root else ""


def roots(cluster: Cluster) -> str:
    """All that is trusted now, PEM."""
    return cluster.ca_cert + (cluster.rotation.ca_cert if cluster.rotation is not None else "")


def begin(cluster: Cluster, asked: CAConfig, now: float) -> Cluster:
    """The cluster on its way to the root that `asked` names or, with a greater `force_rotate`, to a fresh one.

    To the root it has means to stay with it. Raises `Invalid`.
    """
    if asked.signing_ca_key and not asked.signing_ca_cert:
        raise Invalid("if a signing CA key is provided, the signing CA cert must also be provided")
    if asked.signing_ca_cert:
        given = "".join(pki.certificates_in(asked.signing_ca_cert))
        if given == cluster.ca_cert:
            return msgspec.structs.replace(cluster, rotation=None)
        if cluster.rotation is not None and given == cluster.rotation.ca_cert:
            return cluster
        if not asked.signing_ca_key:
            raise Invalid("a signing CA cert needs its key: give SigningCAKey too (swarm ca --rotate --ca-key FILE)")
        new = pki.given_root(asked.signing_ca_cert, asked.signing_ca_key, now)
    elif asked.force_rotate > cluster.spec.ca_config.force_rotate:
        new = pki.Authority.create(now)
    else:
        return cluster
    linked = pki.linked(new, pki.Authority(cluster.ca_cert, cluster.ca_key))
    rotation = RootRotation(ca_cert=linked.certificate, ca_key=linked.key, link=linked.link)
    return msgspec.structs.replace(cluster, rotation=rotation)


def is_with(node: Node, root: str) -> bool:
    """Whether the node trusts that root and has a certificate of its key."""
    trust = node.description.trust
    return trust.issuer == pki.key_id(root) and pki.ca_digest(root) in trust.roots


def finish(tx: Transaction, now: float) -> None:
    """Drop the old root once every node is with the new one."""
    found = tx.all(Cluster)
    for cluster in found:
        coming = cluster.rotation
        if coming is None or not all(is_with(node, coming.ca_cert) for node in tx.all(Node)):
            return
        tx.put(
            msgspec.structs.replace(
                cluster,
                ca_cert=coming.ca_cert,
                ca_key=coming.ca_key,
                worker_token=pki.new_token(coming.ca_cert),
                manager_token=pki.new_token(coming.ca_cert),
                rotation=None,
                updated=now,
            )
        )
