"""The picture of the swarm: what nodes tell of their kernels while somebody looks, and what is drawn of it."""

from typing import Literal

import msgspec

from hivemesh.model.addr import Address
from hivemesh.model.errors import Invalid
from hivemesh.model.ids import NodeID

# --- what a node sees of its own kernel ---------------------------------------------------------------------------


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A link of a namespace. `kind` is the kernel's word (bridge, vxlan, veth, macvlan), empty for hardware."""

    name: str
    kind: str = ""
    up: bool = True
    mtu: int = 0
    master: str = ""  # the bridge it is a port of
    peer: str = ""  # of a veth: `namespace/name` of its other end, if that is where it should be
    plugged: str = ""  # the bridge that other end is a port of
    addresses: tuple[str, ...] = ()  # with prefix lengths
    vni: int = 0


class Space(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A namespace this node should have; empty name: the machine's own. `mark` says what it is for."""

    namespace: str
    mark: str
    devices: tuple[Device, ...] = ()
    vteps: dict[str, int] = {}  # of an overlay: how many forwarding entries lead to each node
    problem: str = ""  # why there is nothing to see


class Sight(msgspec.Struct, frozen=True, kw_only=True, tag="sight"):
    """All of a node, told again when anything but traffic changed."""

    node: str  # host name
    node_id: NodeID
    at: float  # unix seconds
    vtep: Address
    spaces: tuple[Space, ...]


class Meter(msgspec.Struct, frozen=True, kw_only=True, tag="meter"):
    """What the devices of the sight told last have carried, and how far the node is.

    `carried` has two numbers per device, in order: bytes received and sent, since the device was made.
    """

    node: str
    node_id: NodeID
    at: float
    carried: tuple[int, ...]
    repairs: int = 0  # of what others undid, since the daemon began
    behind: float = 0.0  # seconds since a view came that the kernel does not follow yet; 0: it follows
    lag: float = 0.0  # seconds that the last view took
    error: str = ""  # of the session with the managers


# --- the picture ----------------------------------------------------------------------------------------------------

State = Literal["good", "busy", "warn", "bad", "idle"]
"""`busy`: on its way to what is wanted. `idle`: meant to be quiet, or nobody tells."""


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something drawn as a box. Lengths are in pixels at scale 1; `x`, `y` is the upper left corner.

    `kind`: outside, service, machine, sandbox, ingress, overlay, host, device, lane (a network between the machines),
    stop (where a device meets its lane). `hue` numbers the network or service whose colour it has; -1: none.
    """

    id: str
    kind: str
    title: str = ""
    note: str = ""
    parent: str = ""  # the box it lies in
    state: State = "good"
    hue: int = -1
    x: float = 0.0
    y: float = 0.0
    w: float = 0.0
    h: float = 0.0
    facts: tuple[tuple[str, str], ...] = ()
    node: str = ""  # id of the node it is on
    namespace: str = ""
    service: str = ""  # ids
    network: str = ""
    networks: tuple[str, ...] = ()  # that a service or task is on
    source: str = ""  # as a trace's source on that node; `outside` begins at a published port
    target: str = ""  # as a trace's target
    door: str = ""  # as the target of a trace from outside: `:8080`, `:53/udp`


class Link(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line between two items. `kind`: publish, vip, veth, port, tunnel, way out, lane. `shy`: drawn when asked for.

    `meter` names the device whose traffic it shows: `node id/namespace/name`.
    """

    id: str
    kind: str
    source: str
    target: str
    title: str = ""
    state: State = "good"
    hue: int = -1
    shy: bool = False
    meter: str = ""
    service: str = ""
    network: str = ""
    facts: tuple[tuple[str, str], ...] = ()


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, laid out. `summary` is for a line of text: what there is and what is wrong."""

    swarm: str
    width: float
    height: float
    items: tuple[Item, ...]
    links: tuple[Link, ...]
    summary: tuple[tuple[str, str], ...] = ()
    columns: int = 1  # machines in a row


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """A picture for the page: `drawing` are SVG elements, one for each of `items` and `links`, by id."""

    swarm: str
    width: float
    height: float
    drawing: str
    items: tuple[Item, ...]
    links: tuple[Link, ...]
    summary: tuple[tuple[str, str], ...]


class Pulse(msgspec.Struct, frozen=True, kw_only=True):
    """What changes all the time. `rates`: bytes per second, in and out, by link; those that carry nothing are left out.
    `nodes`: by machine item, how it is."""

    at: float
    rates: dict[str, tuple[float, float]]
    nodes: dict[str, "Health"]


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one node. `lag`, `behind` in seconds; `received`, `sent` in bytes per second on its underlay."""

    state: State = "good"
    words: str = ""
    repairs: int = 0
    lag: float = 0.0
    behind: float = 0.0
    received: float = 0.0
    sent: float = 0.0


DETAIL = {"": None, "full": True, "compact": False}


def detail_of(text: str) -> bool | None:
    """`?detail=`: every sandbox with its links, none, or (None) as many as fit. Raises `Invalid`."""
    if text not in DETAIL:
        raise Invalid(f"invalid detail {text!r}: leave it out, or say full or compact")
    return DETAIL[text]
