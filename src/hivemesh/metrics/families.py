"""All metrics by name: what each says, and its labels. The dashboard and the design page use these and no others."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric; a counter's samples end in `_total`, a histogram's in `_bucket`, `_sum` and `_count`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Family:
    return Family(name=f"hivemesh_{name}", kind="counter", help=help, labels=labels)


def _gauge(name: str, help: str, *labels: str) -> Family:
    return Family(name=f"hivemesh_{name}", kind="gauge", help=help, labels=labels)


def _histogram(name: str, help: str, *labels: str) -> Family:
    return Family(name=f"hivemesh_{name}", kind="histogram", help=help, labels=labels)


PORT = ("service", "protocol", "port")
CONNECTIONS = _counter(
    "connections", "New connections through a published port of this node, to a backend.", *PORT, "backend"
)
BYTES = _counter("bytes", "Bytes of such connections, to the backend and from it.", *PORT, "backend", "direction")
REFUSED = _counter("refused_connections", "Connections to a published port while no backend served.", *PORT)
VIP_CONNECTIONS = _counter(
    "vip_connections",
    "Connections that tasks of this node began to a virtual address.",
    "service",
    "network",
    "outcome",
)
SERVICE_BYTES = _counter(
    "service_bytes", "Bytes of tasks of this node on a network.", "service", "network", "direction"
)
SERVICE_DROPPED = _counter(
    "service_dropped_packets", "Packets dropped at the links of tasks of this node.", "service", "network"
)
TUNNEL_BYTES = _counter("tunnel_bytes", "Bytes through the tunnels to other nodes.", "network", "direction")
TUNNEL_DROPPED = _counter(
    "tunnel_dropped_packets", "Packets dropped at a tunnel, also those to nobody, as multicasts are.", "network"
)
DROPPED = _counter("dropped_packets", "Packets that rules of this node turned away.", "place", "reason")
DNS_QUESTIONS = _counter("dns_questions", "Questions for names.", "transport")
DNS_FORWARD = _histogram("dns_forward_seconds", "Time that other name servers took, for each question passed on.")
DNS_UNANSWERED = _counter("dns_unanswered", "Questions passed on that nobody answered.")
DNS_SANDBOXES = _gauge("dns_sandboxes", "Sandboxes with names, and those that cannot ask.", "state")
DRIFT = _counter("drift_repairs", "Differences that somebody else made and this node put right.", "place")
PENDING = _gauge("namespaces_failing", "Namespaces that are not as they should be, and are tried again.")
RECONCILE = _histogram("reconcile_seconds", "Time to make the kernel agree with a new view.")
REVISION = _gauge("view_revision", "The newest view of this node, and the one its kernel follows.", "state")
CONNECTED = _gauge("manager_connected", "1 while this node has a session with a manager.")
TASKS = _gauge("tasks", "Tasks of this node.", "state")
SESSIONS = _gauge("sessions", "Nodes with a session at this manager, while it leads.")
NODE_REVISION = _gauge("node_revision", "The newest view sent to a node, and the one it acknowledged.", "node", "state")
LAG = _gauge("convergence_lag_seconds", "How long a node has owed an acknowledgement.", "node")
CONVERGENCE = _histogram("convergence_seconds", "Time from a view's sending to a node's acknowledgement.")
STORE = _histogram("store_seconds", "Time the store took.", "operation")
FLOWS = _counter("flow_log_entries", "New connections told to readers of the flow log, or lost.", "outcome")
INFO = _gauge("info", "1; the labels say which node and version this is.", "node", "version")

FAMILIES = (
    CONNECTIONS, BYTES, REFUSED, VIP_CONNECTIONS, SERVICE_BYTES, SERVICE_DROPPED, TUNNEL_BYTES, TUNNEL_DROPPED, DROPPED,
    DNS_QUESTIONS, DNS_FORWARD, DNS_UNANSWERED, DNS_SANDBOXES, DRIFT, PENDING, RECONCILE, REVISION, CONNECTED, TASKS,
    SESSIONS, NODE_REVISION, LAG, CONVERGENCE, STORE, FLOWS, INFO,
)  # fmt: skip
