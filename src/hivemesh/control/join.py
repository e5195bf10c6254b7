"""Admitting nodes: a token proves that an administrator wants it, a certificate is what the node gets."""

from hivemesh.control.rotation import roots, signer
from hivemesh.model.addr import Address, parse_address
from hivemesh.model.cluster import Cluster
from hivemesh.model.errors import Forbidden, Invalid
from hivemesh.model.ids import NodeID, new_id
from hivemesh.model.node import Availability, Node, NodeDescription, NodeSpec, Role
from hivemesh.pki import JoinToken, ca_digest, same_secret
from hivemesh.store.tables import Tables, Transaction
from hivemesh.wire.control import JoinReply, JoinRequest, RenewRequest

AVAILABILITIES: dict[str, Availability] = {"active": "active", "pause": "pause", "drain": "drain"}

MAX_HOSTNAME = 253
"""Characters (RFC 1035, less the length bytes at both ends). It ends up in logs and tables."""


async def admit(tables: Tables, request: JoinRequest, *, now: float, caller: str) -> JoinReply:
    """Make a node for the holder of a token. `caller` is the address it calls from.

    Raises `Forbidden` for a wrong or rotated token, `Invalid` for the rest.
    """
    cluster = tables.view.cluster
    role = role_of(cluster, request.token)
    availability = AVAILABILITIES.get(request.availability)
    if availability is None:
        raise Invalid(f"invalid availability {request.availability!r}: expected active, pause or drain")
    if len(request.hostname) > MAX_HOSTNAME or not request.hostname.isprintable():
        raise Invalid(f"invalid hostname: use at most {MAX_HOSTNAME} letters that can be printed")
    address = parse_address(request.addr or caller, "advertise address")
    node_id = NodeID(new_id())
    certificate = _sign(cluster, request.csr, node_id, role, address, now)

    def add(tx: Transaction) -> None:
        current = tx.cluster.manager_token if role == "manager" else tx.cluster.worker_token
        if not same_secret(request.token.strip(), current):
            raise Forbidden("invalid join token: it was rotated a moment ago")
        tx.put(
            Node(
                id=node_id,
                spec=NodeSpec(role=role, availability=availability),
                stale_version=tx.revision,
                created=now,
                updated=now,
                description=NodeDescription(hostname=request.hostname),
                addr=str(address),
                message="joined, not heard of since",
            )
        )

    await tables.update(add)
    return JoinReply(node_id=node_id, cluster_id=cluster.id, certificate=certificate, ca=roots(cluster), role=role)


def refresh(cluster: Cluster, node: Node, request: RenewRequest, *, now: float) -> JoinReply:
    """A new certificate for a member, in the role it has by now. Raises `Invalid`."""
    role = node.acting_role
    address = parse_address(node.addr) if node.addr else None
    certificate = _sign(cluster, request.csr, node.id, role, address, now)
    return JoinReply(node_id=node.id, cluster_id=cluster.id, certificate=certificate, ca=roots(cluster), role=role)


def role_of(cluster: Cluster, token: str) -> Role:
    """What the token's holder may become. Raises `Invalid` for a malformed token, `Forbidden` for a wrong one."""
    parsed = JoinToken.parse(token)
    if same_secret(str(parsed), cluster.worker_token):
        return "worker"
    if same_secret(str(parsed), cluster.manager_token):
        return "manager"
    if parsed.digest != ca_digest(cluster.ca_cert):
        raise Forbidden("invalid join token: it belongs to another swarm, or is from before this one changed its root")
    raise Forbidden("invalid join token: it is wrong or was rotated; `swarm join-token worker` on a manager prints it")


def _sign(cluster: Cluster, csr: str, node: NodeID, role: Role, address: Address | None, now: float) -> str:
    return signer(cluster).sign(
        csr,
        node_id=node,
        cluster_id=cluster.id,
        role=role,
        now=now,
        addresses=() if address is None else (address,),
        lifetime=cluster.spec.ca_config.node_cert_expiry / 1e9,
    )
