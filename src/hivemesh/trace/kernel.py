"""What the kernel holds now of what a step wants: read, never changed.

A connected UDP socket tells the kernel's choice of a route and sends nothing; only a sandbox's resolver is asked a
question, over the loopback of that sandbox.
"""

import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence

from hivemesh.dataplane.balancer.sockets import own_address
from hivemesh.dataplane.entries import ADDRESS, NEIGHBOR, ROUTE, RULE
from hivemesh.dataplane.links import compare
from hivemesh.dataplane.plumbing import Plumber
from hivemesh.kernel import listening, netns, nft, rtnl, sysctl
from hivemesh.kernel.api import (
    Bridge,
    Dummy,
    FdbEntry,
    LinkAddress,
    Macvlan,
    NamespacePlan,
    Neighbor,
    Route,
    Rule,
    Veth,
    Vxlan,
)
from hivemesh.kernel.linux import Linux
from hivemesh.kernel.sockets import NETNS_DIR, inside
from hivemesh.model.addr import Address
from hivemesh.trace.way import (
    Answer,
    Balancing,
    Broken,
    Listener,
    NoOther,
    Plans,
    Reach,
    Seen,
    Setting,
    Step,
    TableWanted,
    Want,
)
from hivemesh.wire.dns import encode_name
from hivemesh.wire.dnsanswer import code_of, question_end, read_records

RIGHT = "as planned"
_IP_MTU, _IPV6_MTU = 14, 24  # linux/in.h, linux/in6.h
_PORT = 9  # discard: a connected UDP socket is asked for its route, and sends nothing
RESOLVER = ("127.0.0.11", 53)
ANSWER_TIMEOUT = 1.0
"""Seconds a sandbox's resolver has: it answers in far less than one."""
_A, _AAAA = 1, 28
_MOST_SHOWN = 3


def look(linux: Linux, plans: Plans, step: Step) -> tuple[Seen, ...]:
    """What the kernel has of each want of a step. Blocks; safe in a thread of its own."""
    if step.namespace and not netns.exists(step.namespace):
        return tuple(Seen(want=want, text="the namespace is missing", right=False) for want in step.wants)
    reader = _Reader(linux, plans[step.namespace])
    return tuple(_guarded(reader, want) for want in step.wants)


def _guarded(reader: "_Reader", want: Want) -> Seen:
    try:
        text = reader.read(want)
    except OSError as error:
        text = f"cannot be read: {error.strerror or error}"
    return Seen(want=want, text=text or RIGHT, right=not text)


class _Reader:
    """One namespace, while one step looks at it. Every answer is "" when the kernel has what is wanted."""

    def __init__(self, linux: Linux, plan: NamespacePlan) -> None:
        self._linux = linux
        self._plan = plan
        self._door = rtnl.door(plan.namespace)
        self._links = self._door.links()
        self._indices = {name: link.index for name, link in self._links.items()}
        self._outer = Plumber(linux).outer()

    def read(self, want: Want) -> str:
        match want:
            case Bridge() | Vxlan() | Veth() | Macvlan() | Dummy():
                return "; ".join(step.text for step in compare(self._plan, [want], self._links, self._outer))
            case LinkAddress():
                found = {a for a in ADDRESS.read(self._door, self._plan, self._indices).values if a.link == want.link}
                return "" if want in found else _instead(str(a.address) for a in found)
            case Route():
                there = ROUTE.read(self._door, self._plan, self._indices).values
                like = [r for r in there if (r.destination, r.table) == (want.destination, want.table)]
                return "" if want in there else _instead(f"{r.gateway or ''} dev {r.link}".strip() for r in like)
            case Rule():
                return "" if want in RULE.read(self._door, self._plan, self._indices).values else "missing"
            case Neighbor():
                return self._neighbor(want)
            case NoOther(neighbor=neighbor):
                said = self._neighbor(neighbor)
                return "" if said == "missing" else said
            case FdbEntry():
                return self._forwarding(want)
            case Setting():
                return self._setting(want)
            case TableWanted():
                return self._table(want)
            case Reach():
                return self._inside(lambda: _reach(want))
            case Answer():
                return self._inside(lambda: _answer(want))
            case Listener():
                path = f"{NETNS_DIR}/{self._plan.namespace}"
                doors = listening.doors_in(path)
                return "" if (want.protocol, want.port) in doors else "nobody listens"
            case Broken():
                return want.what
            case Balancing():
                name = self._plan.namespace
                wrong = self._linux.ipvs_differences(name, self._plan.ipvs)
                wrong += self._linux.socket_differences(name, self._plan.sockets, own_address(self._plan))
                return _few(wrong)

    def _neighbor(self, want: Neighbor) -> str:
        there = NEIGHBOR.read(self._door, self._plan, self._indices).values
        like = [n for n in there if (n.link, n.address) == (want.link, want.address)]
        return "" if want in like else _instead(str(n.mac) for n in like)

    def _forwarding(self, want: FdbEntry) -> str:
        """An entry that somebody else made may be of another kind than ours, and leads frames all the same."""
        index = self._indices.get(want.link)
        if index is None:
            return "missing"
        there = {e.vtep for e in self._door.fdb(index) if e.mac == want.mac and e.vtep is not None}
        return "" if there == {want.vtep} else _instead(str(vtep) for vtep in there)

    def _setting(self, want: Setting) -> str:
        found = sysctl.differing(self._plan.namespace, {want.key: want.value})
        return f"{found[want.key]}" if want.key in found else ""

    def _table(self, want: TableWanted) -> str:
        table = next((t for t in self._plan.tables if (t.family, t.name) == (want.family, want.name)), None)
        if table is None:
            return "not in the plan"
        wrong = nft.differences(self._plan.namespace, table)
        return _few(wrong)

    def _inside(self, work: Callable[[], str]) -> str:
        return inside(f"{NETNS_DIR}/{self._plan.namespace}", work) if self._plan.namespace else work()


def _few(wrong: Sequence[str]) -> str:
    more = f"; and {len(wrong) - _MOST_SHOWN} more" if len(wrong) > _MOST_SHOWN else ""
    return "; ".join(wrong[:_MOST_SHOWN]) + more


def _instead(found: Iterable[str]) -> str:
    return ", ".join(sorted(found)) or "missing"


def _reach(want: Reach) -> str:
    """A UDP socket is connected, which asks for the route and sends nothing."""
    six = want.address.version == 6
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(want.address), _PORT))
        except OSError as error:
            return error.strerror or str(error)
        source = ipaddress.ip_address(sock.getsockname()[0])
        level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if six else (socket.IPPROTO_IP, _IP_MTU)
        mtu = sock.getsockopt(level, option)
    if want.source is not None and source != want.source:
        return f"from {source}, so by another way"
    return f"MTU {mtu}" if mtu < want.mtu else ""


def _answer(want: Answer) -> str:
    kinds = {_A if a.version == 4 else _AAAA for a in want.addresses} or {_A}
    found: set[Address] = set()
    for kind in sorted(kinds):
        outcome = _ask(want.name, kind)
        if isinstance(outcome, str):
            return outcome
        found |= outcome
    return "" if found == want.addresses else ", ".join(sorted(map(str, found))) or "no such name"


def _ask(name: str, kind: int) -> "set[Address] | str":
    identifier = os.urandom(2)
    question = identifier + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + encode_name(name) + struct.pack(">HH", kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(ANSWER_TIMEOUT)
        try:
            sock.connect(RESOLVER)
            sock.send(question)
            message = sock.recv(1 << 16)
        except TimeoutError:
            return "the resolver does not answer"
        except OSError as error:
            return f"the resolver does not answer: {error.strerror}"
    if message[:2] != identifier or code_of(message):
        return f"the resolver answers with code {code_of(message)}"
    found: set[Address] = set()
    for record in read_records(message, question_end(message)) or ():
        if record.type == kind:
            found.add(ipaddress.ip_address(message[record.data : record.end]))
    return found
