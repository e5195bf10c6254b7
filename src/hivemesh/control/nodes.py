"""What users do to nodes."""

import msgspec

from hivemesh.control import balance, lookup
from hivemesh.control.services import check_sequence
from hivemesh.model.errors import Invalid
from hivemesh.model.node import Node, NodeSpec
from hivemesh.store.tables import Transaction


def update(tx: Transaction, reference: str, version: int, spec: NodeSpec, now: float) -> Node:
    """Labels, availability, role and name; raises `OutOfSequence` or `Invalid`."""
    node = lookup.node(tx, reference)
    check_sequence(node, version)
    balance.check_labels(spec.labels, balance.OF_NODES)
    balance.weight_of(spec.labels)
    managers = [other.id for other in tx.all(Node) if other.spec.role == "manager"]
    if spec.role == "worker" and managers == [node.id]:
        raise Invalid("attempting to demote the last manager of the swarm")
    return tx.put(msgspec.structs.replace(node.with_spec(spec), updated=now))


def remove(tx: Transaction, reference: str, *, force: bool) -> Node:
    """Raises `Invalid` for a manager, and for a node that is not down unless forced."""
    node = lookup.node(tx, reference)
    if node.acting_role == "manager":
        raise Invalid(
            f"node {node.id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker "
            "before removal"
        )
    if node.state != "down" and not force:
        raise Invalid(f"node {node.id} is not down and can't be removed")
    tx.delete(node)
    return node
