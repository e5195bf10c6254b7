"""What the doctor knows: facts of a machine, of a node in a swarm, of the ways between nodes; and findings.

Facts are gathered where they are to be seen, and judged in one place: at the node that was asked.
"""

from typing import Literal

import msgspec

from hivemesh.model.addr import Address, Interface, Prefix
from hivemesh.model.ids import NodeID

Severity = Literal["note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("note", "warning", "error")
"""From harmless to broken. Notes say what is different here, and that it is seen to."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`check` is the name in the registry, `where` a node or `node -> node`, `fix` the name of what `--fix` does."""

    check: str
    severity: Severity
    where: str
    what: str
    why: str = ""
    remedy: str = ""
    proof: str = ""  # a command that shows it
    fix: str = ""


# --- one machine ------------------------------------------------------------------------------------------------------


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has a port of ours. `program` is empty for the kernel itself: somebody's VXLAN device."""

    protocol: str
    port: int
    program: str = ""
    pid: int = 0


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One that has addresses; `mtu` in bytes. `strict`: rp_filter drops what would not be answered the same way."""

    name: str
    mtu: int
    addresses: tuple[Interface, ...]
    strict: bool = False


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """A chain of another firewall that drops what comes in, and the ports of ours that no rule of it lets in."""

    where: str
    tool: str = ""  # ufw, firewalld; empty: rules by hand
    ports: tuple[str, ...] = ()  # 2377/tcp


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """Where something of ours is kept; bytes, and the part of inodes that is free."""

    path: str
    free: int
    size: int
    inodes: float = 1.0
    read_only: bool = False


class Podman(msgspec.Struct, frozen=True, kw_only=True):
    """`version` is empty when there is none; `why` says which settings of ours this machine needs."""

    version: str = ""
    runtime: str = ""
    why: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """As it is, whether in a swarm or not. `member`: it is in one, so that our ports are held by ourselves."""

    name: str
    member: bool = False
    privileged: bool = True  # else much could not be looked at
    engine: str = "podman"
    balancer: str = "nftables"
    lacks: tuple[str, ...] = ()  # of the kernel, each with its remedy
    modules: tuple[str, ...] = ()  # that are on the disk and not loaded, while `lacks` is not empty
    ipvs: str = ""  # why not
    sockets: str = ""  # why sockets cannot be balanced
    sctp: bool = True
    holders: tuple[Holder, ...] = ()
    links: tuple[Link, ...] = ()
    routes: tuple[tuple[str, Prefix], ...] = ()  # of links that are not ours
    incoming: tuple[Closed, ...] = ()
    forwarding: tuple[str, ...] = ()  # chains of others that drop what is forwarded
    unsynchronised: bool = False  # the kernel's clock, by its own account
    cgroups: str = "v2"  # v1, hybrid, none
    controllers: tuple[str, ...] = ()  # that are missing
    podman: Podman = Podman()
    settings: dict[str, str | None] = {}  # under /proc/sys
    disks: tuple[Disk, ...] = ()
    nameservers: tuple[Address, ...] = ()
    docker_swarm: bool = False  # Docker's own swarm is on this machine, too
    leftovers: tuple[str, ...] = ()  # namespaces of probes whose process has ended
    unseen: tuple[str, ...] = ()  # what could not be looked at, and why


# --- a node in a swarm ------------------------------------------------------------------------------------------------


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A node, and where others reach it: its tunnels' end, its address on the ingress network, its cluster port."""

    id: NodeID
    name: str
    vtep: Address
    inside: Address | None = None
    manager: str = ""  # host:port


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What all nodes are asked at the same time: look at yourselves, and send probes to each other."""

    nonce: str  # 16 hexadecimal digits that tell these probes from others
    places: tuple[Place, ...]


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What arrived from one node: the numbers of its probes.

    `underlay`: on the VXLAN port, at the network card. `overlay`, `bare`, `full`: inside the ingress network, with a
    UDP checksum, without one, and as large as the network carries. `largest`: bytes of the largest IP packet that must
    not be fragmented and came over the underlay.
    """

    node: NodeID
    underlay: tuple[int, ...] = ()
    largest: int = 0
    overlay: tuple[int, ...] = ()
    bare: tuple[int, ...] = ()
    full: tuple[int, ...] = ()


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A manager's cluster port, as this node reaches it; `error` is empty when it does."""

    manager: str  # host:port
    error: str = ""


class Unlike(msgspec.Struct, frozen=True, kw_only=True):
    """Something on a node that is not as planned: in which namespace (empty: the machine's own), what and how, its
    likely cause, and the command that shows it."""

    namespace: str = ""
    text: str
    cause: str = ""
    proof: str = ""


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """How this node is as a part of the swarm."""

    role: str
    certificate: tuple[float, float]  # unix seconds: from, until
    root: float = 0.0  # the swarm's root: until
    session: str = ""  # why there is none
    drift: tuple[Unlike, ...] = ()  # differences from the plan that stayed
    healed: tuple[Unlike, ...] = ()  # that were there, and gone a moment later
    repairs: int = 0  # while we looked
    names: tuple[str, ...] = ()  # wrong answers, or none
    silent: tuple[Unlike, ...] = ()  # servers of published ports that do not listen
    strangers: tuple[Unlike, ...] = ()  # rules of others in our namespaces that drop packets
    store: str = ""  # what the manager's part says is wrong
    subnets: dict[str, tuple[Prefix, ...]] = {}  # of the networks here, by name
    underlay: Address | None = None
    needs: int = 0  # bytes of the largest packet the tunnels send on the underlay
    bad_checksums: int = 0  # seen inside the ingress network while probes came


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One node's answer to an inspection."""

    machine: Machine
    membership: Membership
    heard: tuple[Heard, ...] = ()
    refused: dict[str, str] = {}  # by node: why the kernel would not send there
    astray: dict[str, Unlike] = {}  # by node: the kernel sends there by one of our links, instead of the underlay
    calls: tuple[Call, ...] = ()
    deaf: str = ""  # why it could not listen to probes
    time: float = 0.0  # of its clock, as it answered; unix seconds


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A node, and what it answered the managers; without `facts`, `unseen` says why there are none."""

    place: Place
    facts: NodeFacts | None = None
    unseen: str = ""
    skew: float = 0.0  # seconds its clock is ahead of the manager's


class StoreFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The managers' store: how long a read took that a majority must answer, or why it failed."""

    seconds: float = 0.0
    error: str = ""
    managers: dict[str, str] = {}  # by name: the state the leader sees


class Inspected(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/inspect`, which any member may ask: all nodes, asked at the same time by the manager that answers."""

    nodes: tuple[Seen, ...]
    store: StoreFacts = StoreFacts()


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/inspected`: what the calling node found when a manager asked it by `id`."""

    id: str
    facts: NodeFacts


# --- what people see --------------------------------------------------------------------------------------------------


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /hivemesh/doctor`. `fix`: also put right, on the asked node, what is safe to."""

    fix: bool = False


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """One direction between two nodes. None: it could not be seen. `largest` in bytes, of the underlay."""

    sender: str
    receiver: str
    underlay: bool | None = None
    overlay: bool | None = None
    largest: int = 0


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All that was looked at. `checks` are the names of those that were made."""

    node: str
    checks: tuple[str, ...]
    findings: tuple[Finding, ...]
    nodes: tuple[str, ...] = ()  # of the swarm
    matrix: tuple[Way, ...] = ()
    fixed: tuple[str, ...] = ()

    @property
    def worst(self) -> Severity | None:
        """None: nothing was found."""
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in reversed(SEVERITIES) if severity in found), None)
