"""Frames between a manager and an agent, MessagePack over one long-lived mutual-TLS web socket.

A node view is a set of keyed items. The manager sends a snapshot with its revision, then deltas that name the
revision they build on; an agent that misses one asks again. The agent acknowledges each revision once its kernel
holds it.
"""

import msgspec

from hivemesh.model.addr import MAC, VNI, Address, Interface, Prefix
from hivemesh.model.ids import EndpointID, NetworkID, NodeID, PayloadID, ServiceID, TaskID
from hivemesh.model.network import NetworkSpec, Subnet
from hivemesh.model.node import NodeDescription
from hivemesh.model.service import Balance, ContainerSpec, PortConfig
from hivemesh.model.task import Attachment, Task, TaskStatus
from hivemesh.wire.doctor import Inspection
from hivemesh.wire.feed import What
from hivemesh.wire.trace import Examination, Question


class Item(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", array_like=False):
    """One thing a node must know."""


class NodeItem(Item, frozen=True, kw_only=True, tag="node"):
    """A member of the cluster: VXLAN is accepted from its VTEP. Key `node/<id>`."""

    id: NodeID
    vtep: Address


class NetworkItem(Item, frozen=True, kw_only=True, tag="network"):
    """A network this node takes part in. Key `network/<id>`."""

    id: NetworkID
    name: str
    vni: VNI
    port: int  # UDP data path port, cluster-wide
    subnets: tuple[Subnet, ...]
    ingress: bool = False
    internal: bool = False
    mtu: int = 0  # underlay MTU as an option of the network; 0: as measured on the node
    own: Attachment | None = None  # this node's own endpoint on the network (ingress: of ingress_sbox)


class LocalNetworkItem(Item, frozen=True, kw_only=True, tag="local-network"):
    """A network of the swarm that this node makes itself, for who is on it here. Key `local-network/<id>`."""

    id: NetworkID
    spec: NetworkSpec


class PeerItem(Item, frozen=True, kw_only=True, tag="peer"):
    """An endpoint on another node. Key `peer/<network>/<endpoint>`."""

    network: NetworkID
    endpoint: EndpointID
    addresses: tuple[Interface, ...]
    mac: MAC
    vtep: Address


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """One task that serves now: its addresses on the network in question, one per family.

    `names` are those it answers to there, the primary one (`web.1.<task id>`) first; published ports need none.
    """

    task: TaskID
    addresses: tuple[Address, ...]
    weight: int = 1  # 0: no new connections
    names: tuple[str, ...] = ()


class PublishItem(Item, frozen=True, kw_only=True, tag="publish"):
    """An ingress port this node answers. Key `publish/<protocol>/<number inside>`. Backends are those that serve now.

    `door` is the number by which the mesh knows the port, 0: its own. Two items may have one port, never one number
    inside; their `addresses` are apart then.
    """

    service: ServiceID
    service_name: str
    protocol: str
    port: int
    backends: tuple[Backend, ...]
    balance: Balance = Balance()
    door: int = 0
    addresses: tuple[Prefix, ...] | None = None  # of the node, where it is open; None: all of them

    @property
    def inside(self) -> int:
        """The port's number from `ingress_sbox` to the task."""
        return self.door or self.port


class ServiceItem(Item, frozen=True, kw_only=True, tag="service"):
    """A service on a network this node takes part in (never ingress). Key `service/<network>/<service>`.

    Without `vips` (one per family the network has) its names answer with all backends: `dnsrr`.
    """

    network: NetworkID
    service: ServiceID
    name: str
    aliases: tuple[str, ...] = ()  # on this network
    vips: tuple[Address, ...] = ()
    balance: Balance = Balance()
    backends: tuple[Backend, ...] = ()


class EndpointItem(Item, frozen=True, kw_only=True, tag="endpoint"):
    """A container that was attached to a network by hand and has names there. Key `endpoint/<network>/<endpoint>`."""

    network: NetworkID
    endpoint: EndpointID
    names: tuple[str, ...]  # the primary one first
    addresses: tuple[Address, ...]


class TaskItem(Item, frozen=True, kw_only=True, tag="task"):
    """A task of this node. Key `task/<id>`.

    `released` turns true when the task should stop and every live node has acknowledged that it sends it no new
    connections: only then may it get its stop signal.
    """

    task: Task
    released: bool = False


class PayloadItem(Item, frozen=True, kw_only=True):
    """Bytes that a task of this node finds as a file. They stay in memory: no node writes them to a disk."""

    id: PayloadID
    data: bytes
    templated: bool = False  # placeholders in it are to be filled

    def __repr__(self) -> str:
        """Without the data: this may end up in a log."""
        return f"{type(self).__name__}(id={self.id!r}, {len(self.data)} bytes)"


class SecretItem(PayloadItem, frozen=True, kw_only=True, tag="secret"):
    """A secret that a task of this node uses which is not dead. Key `secret/<id>`."""


class ConfigItem(PayloadItem, frozen=True, kw_only=True, tag="config"):
    """A config, likewise. Key `config/<id>`."""


class CredentialItem(PayloadItem, frozen=True, kw_only=True, tag="credential"):
    """What the engine shows to the registry of a service's image; `id` is the service's. Key `credential/<id>`."""


AnyItem = (
    NodeItem
    | NetworkItem
    | LocalNetworkItem
    | PeerItem
    | PublishItem
    | ServiceItem
    | EndpointItem
    | TaskItem
    | SecretItem
    | ConfigItem
    | CredentialItem
)
View = dict[str, AnyItem]


def key_of(item: AnyItem) -> str:
    """The key under which `item` stands in a view."""
    match item:
        case NodeItem():
            return f"node/{item.id}"
        case NetworkItem():
            return f"network/{item.id}"
        case LocalNetworkItem():
            return f"local-network/{item.id}"
        case PeerItem():
            return f"peer/{item.network}/{item.endpoint}"
        case PublishItem():
            return f"publish/{item.protocol}/{item.inside}"
        case ServiceItem():
            return f"service/{item.network}/{item.service}"
        case EndpointItem():
            return f"endpoint/{item.network}/{item.endpoint}"
        case TaskItem():
            return f"task/{item.task.id}"
        case SecretItem():
            return f"secret/{item.id}"
        case ConfigItem():
            return f"config/{item.id}"
        case CredentialItem():
            return f"credential/{item.id}"


class Frame(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One web socket message."""


# --- agent to manager -------------------------------------------------------------------------------------------


class Hello(Frame, frozen=True, kw_only=True, tag="hello"):
    """The first frame of a session."""

    description: NodeDescription
    vtep: Address


class Ack(Frame, frozen=True, kw_only=True, tag="ack"):
    """The agent's kernel forwards as view `revision` says (what failed is pending and retried)."""

    revision: int
    pending: int = 0


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    task: TaskID
    status: TaskStatus


class Report(Frame, frozen=True, kw_only=True, tag="report"):
    """The latest status of some tasks."""

    tasks: tuple[TaskReport, ...]


class Heartbeat(Frame, frozen=True, kw_only=True, tag="heartbeat"):
    """I am alive. Expected each `Welcome.heartbeat` seconds, give or take a tenth; three missed mean down."""


FromAgent = Hello | Ack | Report | Heartbeat

# --- manager to agent -------------------------------------------------------------------------------------------


class Welcome(Frame, frozen=True, kw_only=True, tag="welcome"):
    """The manager's answer to `Hello`, and again whenever something in it changes."""

    heartbeat: float  # seconds
    managers: tuple[str, ...]  # host:port of all managers
    labels: dict[str, str] = {}  # of the node's spec
    role: str = ""  # what the node's certificate should say; empty: as it does
    roots: str = ""  # PEM; whom the node should trust, and nobody else
    issuer: str = ""  # which key should have signed its certificate (`pki.key_id`)


class Snapshot(Frame, frozen=True, kw_only=True, tag="snapshot"):
    """The whole view at `revision`."""

    revision: int
    items: tuple[AnyItem, ...]


class Delta(Frame, frozen=True, kw_only=True, tag="delta"):
    """What changed from view `base` to view `revision`."""

    base: int
    revision: int
    changed: tuple[AnyItem, ...]
    removed: tuple[str, ...]


class LogsWanted(Frame, frozen=True, kw_only=True, tag="logs"):
    """Send what these tasks of yours wrote: `POST /v1/logs/<id>` with entries of `wire.logs`, until it is all told."""

    id: str
    tasks: tuple[TaskID, ...]
    stdout: bool
    stderr: bool
    follow: bool
    since: float  # unix seconds
    tail: int  # lines per task; -1: all
    manager: str = ""  # host:port of who wants them, if not the one that says so


class LogsUnwanted(Frame, frozen=True, kw_only=True, tag="no-logs"):
    """Nobody reads these logs any more."""

    id: str
    manager: str = ""


class ExamineWanted(Frame, frozen=True, kw_only=True, tag="examine"):
    """Look at the part of a packet's way that lies with you: `POST /v1/examined` with the same id."""

    id: str
    examination: Examination
    manager: str = ""  # host:port of who wants it, if not the one that says so


class TraceWanted(Frame, frozen=True, kw_only=True, tag="trace"):
    """Trace a way that begins with you: `POST /v1/traced` with the same id."""

    id: str
    question: Question
    manager: str = ""  # host:port of who wants it, if not the one that says so


class InspectWanted(Frame, frozen=True, kw_only=True, tag="inspect"):
    """Look at yourself, and at your ways to the others: `POST /v1/inspected` with the same id."""

    id: str
    inspection: Inspection
    manager: str = ""  # host:port of who wants it, if not the one that says so


class FeedWanted(Frame, frozen=True, kw_only=True, tag="feed"):
    """Tell of your traffic: `POST /v1/feed/<id>` with entries of `wire.feed`, until nobody reads them."""

    id: str
    what: What
    manager: str = ""  # host:port of who wants it, if not the one that says so


class FeedUnwanted(Frame, frozen=True, kw_only=True, tag="no-feed"):
    """Nobody reads that any more."""

    id: str
    manager: str = ""


Passed = LogsWanted | LogsUnwanted | ExamineWanted | TraceWanted | InspectWanted | FeedWanted | FeedUnwanted
"""What any manager wants of a node, by way of the leader."""
FromManager = Welcome | Snapshot | Delta | Passed

# Why a manager closes a session: web socket codes of the private range (RFC 6455, 7.4.2).
CLOSE_FAILED = 1011  # a bug on the manager's side; its log has it
CLOSE_MALFORMED = 4400  # a frame could not be understood
CLOSE_REMOVED = 4403  # the node is no member of the swarm any more
CLOSE_SILENT = 4408  # no frame for three heartbeats
CLOSE_REPLACED = 4409  # a newer session of the same node took over
CLOSE_CONFLICT = 4410  # another connected node has the same data path address
LEADER_HEADER = "Hivemesh-Leader"
"""Carries host:port of the leader when another manager refuses a session: sessions are the leader's (status 421)."""
MAX_FRAME = 16 * 1024 * 1024
"""Bytes of the largest frame either side accepts: a snapshot of some 50,000 peers."""
REFUSAL_HEADER = "Hivemesh-Refusal"
"""Carries `Refusal.message` when a session is refused: web socket clients do not see the body."""


# --- joining (HTTPS, before there is a certificate) --------------------------------------------------------------


class JoinRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/join`: a token and a certificate request (PEM) for a key that never leaves the node."""

    token: str
    csr: str
    addr: str  # address the node advertises
    availability: str = "active"
    hostname: str = ""
    store: str = ""  # the --store it was started with, and
    etcd: bool = False  # whether it has the program: both matter to managers only

    def __repr__(self) -> str:
        """Without the token."""
        return f"JoinRequest(addr={self.addr!r}, hostname={self.hostname!r})"


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/renew`, with the client certificate that is to be replaced; answered by a `JoinReply`."""

    csr: str


class JoinReply(msgspec.Struct, frozen=True, kw_only=True):
    node_id: NodeID
    cluster_id: str
    certificate: str  # PEM
    ca: str  # PEM
    role: str


# --- among managers (HTTPS, with a manager's certificate) ----------------------------------------------------------


class ManagerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/manager`: the calling node, which has the role, begins to act as a manager. Repeatable."""

    addr: str  # host:port of its cluster port
    store: str = ""  # the --store it was started with


class ManagerReply(msgspec.Struct, frozen=True, kw_only=True):
    """`members` are the store's servers, by name, with the URL each is reached at by the others; the caller is one.

    With a store that is not ours to run there are none.
    """

    seal_key: bytes
    members: dict[str, str] = {}

    def __repr__(self) -> str:
        """Without the key."""
        return f"ManagerReply(members={self.members!r})"


class MembersReply(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/members`: the nodes whose servers are members of the store that the answering manager has."""

    nodes: tuple[NodeID, ...]


class TellRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/tell`: pass a frame on to a node's session, which the leader has. Answered 204, or 404."""

    node: NodeID
    frame: Passed


# --- containers that are no task's (HTTPS, any member for itself) --------------------------------------------------


class Joining(msgspec.Struct, frozen=True, kw_only=True):
    """A network a container wants to be on: its id, name or the beginning of its id; addresses only if it insists.

    A MAC and a priority as the way out are for networks of one node.
    """

    network: str
    aliases: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()  # at most one per family
    mac: str = ""
    priority: int = 0


class AttachRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/attach`: this container of the calling node should be on exactly these networks. Repeatable.

    `task` is chosen by the node and stays the container's for all its life. With `check` nothing is granted: the
    answer is what would be, but for addresses.
    """

    task: TaskID
    container: str  # its name
    container_id: str = ""
    networks: tuple[Joining, ...] = ()
    spec: ContainerSpec = ContainerSpec()  # what concerns names: hostname, hosts, DNS settings
    ports: tuple[PortConfig, ...] = ()  # published on the node itself
    check: bool = False


class AttachReply(msgspec.Struct, frozen=True, kw_only=True):
    """`names` are those of the networks in `task.spec.networks`. Those in `local` the node makes itself: there the task
    has no addresses yet.
    """

    task: Task
    names: tuple[str, ...]
    local: tuple[LocalNetworkItem, ...] = ()


class DetachRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/detach`: nothing of the container shall remain. Repeatable."""

    task: TaskID


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every error on the cluster port."""

    message: str
