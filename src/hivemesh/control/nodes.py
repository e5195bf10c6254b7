"""What users do to nodes."""

import msgspec

from hivemesh.control import balance, lookup
from hivemesh.control.services import OUT_OF_SEQUENCE
from hivemesh.model.errors import Invalid, OutOfSequence, Unsupported
from hivemesh.model.node import Node, NodeSpec
from hivemesh.store.tables import Transaction


def update(tx: Transaction, reference: str, version: int, spec: NodeSpec, now: float) -> Node:
    """Labels, availability and name; raises `OutOfSequence`, `Invalid` or `Unsupported`."""
    node = lookup.node(tx, reference)
    if version != node.version:
        raise OutOfSequence(OUT_OF_SEQUENCE)
    balance.check_labels(spec.labels, balance.OF_NODES)
    balance.weight_of(spec.labels)
    if spec.role != node.spec.role:
        managers = sum(other.spec.role == "manager" for other in tx.all(Node))
        if spec.role == "worker" and managers == 1:
            raise Invalid("attempting to demote the last manager of the swarm")
        raise Unsupported("changing a node's role is not supported yet: this version has one manager")
    return tx.put(msgspec.structs.replace(node, spec=spec, updated=now))


def remove(tx: Transaction, reference: str, *, force: bool) -> Node:
    """Raises `Invalid` for a manager, and for a node that is not down unless forced."""
    node = lookup.node(tx, reference)
    if node.spec.role == "manager":
        raise Invalid(
            f"node {node.id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker "
            "before removal"
        )
    if node.state != "down" and not force:
        raise Invalid(f"node {node.id} is not down and can't be removed")
    tx.delete(node)
    return node
