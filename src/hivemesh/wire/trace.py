"""The way of a packet, hop by hop: what is asked of a node, and what it saw.

A trace is made of legs. Each is examined by the node whose kernel it concerns: the one where a packet begins, and the
one where it ends, which for the way back begins it.
"""

from typing import Annotated, Literal

import msgspec

from hivemesh.model.addr import Address
from hivemesh.model.ids import NetworkID

Protocol = Literal["tcp", "udp", "icmp"]
MOST_COUNT = 100
"""Probes to the target itself that one may ask for."""
PROBE = "the probe"
"""What the facts of probes are about."""


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`POST /hivemesh/trace`. `source` is a task or container of the asked node (of any node, if that is a
    manager), by name, id or beginning of the id; empty, or an outside address: somebody who uses a published port.
    `target` is a service or task by its name, or an address, each with `:port` or without; from outside, `:port` of the
    asked node or the node's `address:port`; of another one, by `name:port` too, if the asked node is a manager, whose
    `source` may be a node that asks as somebody outside."""

    source: str = ""
    target: str
    protocol: Protocol = "tcp"
    probe: bool = True  # send marked packets, and look where they come through
    count: Annotated[int, msgspec.Meta(ge=0, le=MOST_COUNT)] = (
        0  # of probes to the target itself; 0: as many as it takes to meet each backend once
    )
    sender: Address | None = None  # the tunnels' end of the node that asks, if that is another one


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """By what the probes of one trace are known, everywhere: nothing of it is changed by address translation.

    TCP: the first sequence number is `base` plus twice the probe's number, and answers acknowledge one more. UDP: the
    source port is `port` plus the number. ICMP: the payload. Both are multiples of what numbers take.
    """

    id: str
    protocol: Protocol
    base: int
    port: int
    vxlan: int  # the tunnels' UDP port


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """Where probes come through at a hop: that link ("": any), out of it or in (None: either); or, with `tunnel`, on
    any link inside VXLAN from or to that other node's address. `back`: the answers."""

    link: str = ""
    out: bool | None = None
    tunnel: Address | None = None
    back: bool = False


Kind = Literal["syn", "syn-ack", "reset", "datagram", "echo", "error"]


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """A probe or an answer to one on a link; `at` is by the clock of the node that saw it (seconds).

    `far` is set inside tunnels: the outer packet's other end. `error` says what an ICMP error says.
    """

    namespace: str
    link: str
    out: bool
    number: int
    back: bool
    kind: Kind
    source: Address
    destination: Address
    size: int
    at: float
    far: Address | None = None
    error: str = ""


class Leg(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a way that lies on one node, on one network.

    `arrive`: from the tunnel to whoever has `destination`, and back towards `source`, whose node has the VTEP `peer`.
    `port` is the one the packet carries on the network (0: none); `mesh` says that it came by a published port.
    """

    network: NetworkID
    source: Address
    destination: Address
    peer: Address
    protocol: Protocol = "tcp"
    port: int = 0
    mesh: bool = False


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One object on the way: as planned and as the kernel has it. `proof` is the command that shows it."""

    what: str
    plan: str
    kernel: str
    agrees: bool
    proof: str
    cause: str = ""  # of the disagreement, most likely


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """A place the packet comes through; `namespace` is empty for the machine's own."""

    node: str
    namespace: str
    title: str
    facts: tuple[Fact, ...]
    passage: Passage | None = None  # where probes show here
    probe: Fact | None = (
        None  # the third witness: what probes did here; `agrees` unless they should have come and did not
    )

    @property
    def finding(self) -> Fact | None:
        """The first difference between plan and kernel."""
        return next((fact for fact in self.facts if not fact.agrees), None)


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """To one backend and back."""

    backend: Address
    hops: tuple[Hop, ...]
    unseen: str = ""  # why the other node's hops are missing
    said: str = ""  # what became of its probes, in words; empty without any
    met: int = 0  # how many of the probes to the target itself came to this backend


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """`begin` are the hops all ways share: the name, the virtual address or the published port. `said`, `sent` and
    `answered` are of the probes to the target itself, which a balancer leads on."""

    source: str
    target: str
    protocol: Protocol
    begin: tuple[Hop, ...] = ()
    ways: tuple[Way, ...] = ()
    end: tuple[Hop, ...] = ()  # what all ways share on the way back
    said: str = ""  # what became of the probes to the target itself, in words; empty without any
    answered: int = 0
    sent: int = 0
    notes: tuple[str, ...] = ()  # what should be known about how it was looked at

    @property
    def finding(self) -> tuple[Hop, Fact] | None:
        """The first difference between plan and kernel on any way; without one, the first place that probes missed."""
        hops = [*self.begin, *(hop for way in self.ways for hop in way.hops), *self.end]
        told = next(((hop, fact) for hop in hops if (fact := hop.finding) is not None), None)
        return told or next(((hop, hop.probe) for hop in hops if hop.probe is not None and not hop.probe.agrees), None)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Probes with the numbers from `first` on, to be sent from a node's own namespace."""

    destination: Address
    port: int
    protocol: Protocol
    count: int
    first: int


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What one node is to do for another's trace. `look`: see what its kernel holds on the leg, and with a `watch` look
    out for probes from now on. `tell`: what probes it saw, and look out no more. `send`: what it is ordered to."""

    part: Literal["look", "tell", "send"] = "look"
    leg: Leg | None = None
    watch: Watch | None = None
    order: Order | None = None


class ExamineRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/examine`: another node's part of a way, asked of any manager; answered by `Examined`."""

    vtep: Address
    examination: Examination


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    hops: tuple[Hop, ...] = ()
    sightings: tuple[Sighting, ...] = ()
    failed: dict[int, str] = {}  # probes that could not be sent, and why


class Traced(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/traced`: what the calling node found of a way that begins there, when a manager asked it by `id`.

    Without a trace `refusal` says why, in the words of the error that `kind` names.
    """

    id: str
    trace: Trace | None = None
    kind: Literal["invalid", "not found", "unavailable"] = "unavailable"
    refusal: str = ""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /v1/examined`: what the calling node found when a manager asked it by `id`."""

    id: str
    examined: Examined
