"""Judges of the ways between nodes: what was sent at one end and heard at the other. Pure.

Where it was lost is told by who still saw it:

    underlay  overlay  without checksum   lost
    no        no       no                 between the machines, or before
    yes       no       no                 inside one of the two: the receiver's own rules, or tunnels that are not right
    yes       no       yes                nowhere: spoilt by a card that leaves checksums out
    yes       yes      yes                nothing; perhaps some, or the large ones
"""

import errno
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from hivemesh.doctor.before import Judge, opening
from hivemesh.model.ids import NodeID
from hivemesh.wire.doctor import Finding, Heard, NodeFacts, Place, Seen, Way

SOME = 2
"""Probes missing between others that came: one may be lost on any network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """One direction between two nodes that both answered."""

    sender: Place
    receiver: Place
    source: NodeFacts
    target: NodeFacts
    heard: Heard
    refused: str

    @property
    def has_overlay(self) -> bool:
        return self.sender.inside is not None and self.receiver.inside is not None

    @property
    def overlay_lost(self) -> bool:
        return self.has_overlay and not self.heard.overlay


def crossings(nodes: Iterable[Seen]) -> list[Crossing]:
    """All directions to nodes that listened, where both tunnels are of the same family."""
    able = [(seen.place, seen.facts) for seen in nodes if seen.facts is not None]
    found = []
    for receiver, target in able:
        if target.deaf:
            continue
        ears = {heard.node: heard for heard in target.heard}
        for sender, source in able:
            if sender.id != receiver.id and sender.vtep.version == receiver.vtep.version:
                heard = ears.get(sender.id, Heard(node=sender.id))
                refused = source.refused.get(receiver.id, "")
                found.append(
                    Crossing(
                        sender=sender, receiver=receiver, source=source, target=target, heard=heard, refused=refused
                    )
                )
    return found


def _in_vain(nodes: Sequence[Seen]) -> Iterator[Crossing]:
    """Directions to nodes that did not answer, where the sender's own kernel is why."""
    for silent in nodes:
        for seen in nodes if silent.facts is None else ():
            if seen.facts is None or seen.place.vtep.version != silent.place.vtep.version:
                continue
            refused = seen.facts.refused.get(silent.place.id, "")
            if (refused and refused != _NOBODY) or silent.place.id in seen.facts.astray:
                nothing = Heard(node=seen.place.id)
                yield Crossing(
                    sender=seen.place, receiver=silent.place, source=seen.facts, target=seen.facts, heard=nothing,
                    refused="" if refused == _NOBODY else refused,
                )  # fmt: skip


_NOBODY = os.strerror(errno.EHOSTUNREACH)
"""What the kernel also says when a machine is off."""


def matrix(nodes: Sequence[Seen]) -> list[Way]:
    """Every direction, for people to look at."""
    known = {(c.sender.id, c.receiver.id): c for c in crossings(nodes)}
    found = []
    for sender in nodes:
        for receiver in nodes:
            if sender.place.id == receiver.place.id:
                continue
            one = known.get((sender.place.id, receiver.place.id))
            found.append(
                Way(
                    sender=sender.place.name,
                    receiver=receiver.place.name,
                    underlay=bool(one.heard.underlay) if one else None,
                    overlay=bool(one.heard.overlay) if one and one.has_overlay else None,
                    largest=one.heard.largest if one else 0,
                )
            )
    return found


# --- what a direction lacks -------------------------------------------------------------------------------------------


def refused(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    """The sender's own kernel would not send."""

    def make(one: Crossing, where: Judge, others: str) -> Finding:
        return where.find(
            "error", f"{one.sender.name} cannot send to {others}: {one.refused}",
            why="its own kernel refuses: no route, one that refuses, or a rule that drops what goes out",
            do=f"see the route, and take away what refuses: ip route get {one.receiver.vtep}",
            proof=f"ip route get {one.receiver.vtep}   (on {one.sender.name})",
        )  # fmt: skip

    yield from _grouped(nodes, judge, lambda one: bool(one.refused), make, [*crossings(nodes), *_in_vain(nodes)])


def _is_astray(one: Crossing) -> bool:
    """The sender's kernel takes another link, and so the packet did not come."""
    return one.receiver.id in one.source.astray and not one.heard.underlay and not one.refused


def astray(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    """Sent by another link than the underlay's, and lost."""

    def make(one: Crossing, where: Judge, others: str) -> Finding:
        way = one.source.astray[one.receiver.id]
        return where.find(
            "error", f"what {one.sender.name} sends to {others} does not arrive: {way.text}", why=way.cause,
            do=f"see which route or rule of {one.sender.name} leads there, and take it away",
            proof=f"{way.proof}   (on {one.sender.name})",
        )  # fmt: skip

    yield from _grouped(nodes, judge, _is_astray, make, [*crossings(nodes), *_in_vain(nodes)])


def underlay(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    """Sent, and never seen at the other machine."""
    found = crossings(nodes)
    arrives = {(c.sender.id, c.receiver.id) for c in found if c.heard.underlay}

    def make(one: Crossing, where: Judge, others: str) -> Finding:
        back = (one.receiver.id, one.sender.id) in arrives
        way = "The other direction works. " if back else ""
        return where.find(
            "error", f"tunnelled packets from {one.sender.name} do not reach {others}",
            why=f"{way}They leave {one.sender.name}, and are not seen at the other machine's network card: a firewall "
                "or security group between them drops UDP port 4789, or a route leads elsewhere",
            do=f"let UDP port 4789 through from {one.sender.vtep} to {one.receiver.vtep}"
               + ("; look for rules that know one direction only" if back else ""),
            proof=f"tcpdump -ni any udp port 4789 and host {one.sender.vtep}   (on {one.receiver.name})",
        )  # fmt: skip

    yield from _grouped(nodes, judge, lambda one: not (one.refused or one.heard.underlay or _is_astray(one)), make)


def overlay(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    """Seen at the other machine's card, and lost behind it."""

    def lost(one: Crossing) -> bool:
        return bool(one.heard.underlay) and one.overlay_lost and not one.heard.bare

    def make(one: Crossing, where: Judge, others: str) -> Finding:
        cause, remedy = _inside(one)
        return where.find(
            "error", f"packets of overlay networks from {one.sender.name} do not get into {others}",
            why=f"they come to the network card there, and are lost behind it: {cause}", do=remedy,
            proof=f"nft list ruleset; ip -s -d link show vxlan0   (on {one.receiver.name}); hivemesh trace",
        )  # fmt: skip

    yield from _grouped(nodes, judge, lost, make)


def _inside(one: Crossing) -> tuple[str, str]:
    tunnel = "4789/udp"
    for closed in one.target.machine.incoming:
        if tunnel in closed.ports:
            commands = opening(closed.tool, (tunnel,), closed.where)
            return f"{closed.where} drops what comes to UDP port 4789", f"on {one.receiver.name}: {commands}"
    for place, facts in ((one.receiver, one.target), (one.sender, one.source)):
        if facts.membership.drift:
            why = facts.membership.drift[0].cause
            return f"the kernel of {place.name} is not as planned{': ' if why else ''}{why}", (
                f"see what differs on {place.name}"
            )
    link = next((li for li in one.target.machine.links if one.receiver.vtep in {a.ip for a in li.addresses}), None)
    if link is not None and link.strict:
        return (
            f"the machine's own rules, or its reverse path filter: it is strict on {link.name}, and drops what it "
            "would answer another way",
            f"see `nft list ruleset` there; sysctl -w net.ipv4.conf.{link.name}.rp_filter=2 and .all.rp_filter=2",
        )
    return "the machine's own rules drop it, or its tunnels are not as the other node thinks", (
        f"look for rules on {one.receiver.name} that drop UDP port 4789; compare both ends with `hivemesh trace`"
    )


def checksums(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    def spoilt(one: Crossing) -> bool:
        return one.overlay_lost and bool(one.heard.bare)

    def make(one: Crossing, where: Judge, others: str) -> Finding:
        counted = one.target.membership.bad_checksums
        told = f", and {one.receiver.name} counted {counted} wrong checksums" if counted else ""
        link = _link_of(one)
        return where.find(
            "error", f"what {one.sender.name} sends inside tunnels comes to {others} with wrong checksums",
            why=f"datagrams without a checksum get through, those with one do not{told}: a network card, or its host, "
                "says that it fills in checksums inside VXLAN, and does not",
            do=f"ethtool -K {link} tx-checksum-ip-generic off tx-udp_tnl-csum-segmentation off on {one.sender.name}; "
               "if that helps, make it last; or update the card's driver or the virtual machine's host",
            proof=f"ethtool -k {link}   (on {one.sender.name})",
        )  # fmt: skip

    yield from _grouped(nodes, judge, spoilt, make)


def _link_of(one: Crossing) -> str:
    for link in one.source.machine.links:
        if one.sender.vtep in {address.ip for address in link.addresses}:
            return link.name
    return "eth0"


def path_mtu(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    """The path carries less than the tunnels send."""

    def narrow(one: Crossing) -> bool:
        needs = one.source.membership.needs
        own = one.source.machine.links
        fits = all(link.mtu >= needs for link in own if one.sender.vtep in {a.ip for a in link.addresses})
        return bool(one.heard.underlay) and one.heard.largest < needs and fits  # else `member.underlay` says it

    def make(one: Crossing, where: Judge, others: str) -> Finding:
        needs, size = one.source.membership.needs, one.heard.largest
        hangs = one.has_overlay and not one.heard.full
        carried = f"packets of {size} bytes" if size else "small packets only"
        return where.find(
            "error" if hangs else "warning",
            f"the path from {one.sender.name} to {others} carries {carried}, and tunnels send up to {needs}",
            why="full-size packets of overlay networks are lost: connections open, and hang as soon as they carry much"
            if hangs else "they are cut into pieces on the way, which is slow, and stops where fragments are dropped",
            do=f"give the links between them an MTU of {needs}; or make the networks anew with --opt "
               f"com.docker.network.driver.mtu={size or 1350}, the ingress network too",
            proof=f"ping -M do -s {needs - 28} {one.receiver.vtep}   (on {one.sender.name})",
        )  # fmt: skip

    yield from _grouped(nodes, judge, narrow, make)


def large(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    """The path is wide enough, and yet the large ones are lost: a link of ours is narrow."""

    def lost(one: Crossing) -> bool:
        wide = one.heard.largest >= one.source.membership.needs
        return wide and bool(one.heard.overlay) and not one.heard.full

    def make(one: Crossing, where: Judge, others: str) -> Finding:
        return where.find(
            "error", f"full-size packets of overlay networks from {one.sender.name} do not get into {others}",
            why="the underlay carries them: a link of the overlay at one end takes less, so connections open and hang",
            do="compare the MTU of vxlan0, br0 and the containers' links at both ends, and of the option "
               "com.docker.network.driver.mtu",
            proof=f"ip -all netns exec ip -br link   (on {one.sender.name} and {one.receiver.name})",
        )  # fmt: skip

    yield from _grouped(nodes, judge, lost, make)


def loss(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    """Some come, some do not."""

    def leaks(one: Crossing) -> bool:
        return max(_gaps(one.heard.underlay), _gaps(one.heard.overlay)) >= SOME

    def make(one: Crossing, where: Judge, others: str) -> Finding:
        heard = one.heard.underlay if _gaps(one.heard.underlay) >= SOME else one.heard.overlay
        span = max(heard) - min(heard) + 1
        return where.find(
            "warning", f"{span - len(heard)} of {span} packets from {one.sender.name} to {others} were lost",
            why="connections over this path are slow, and some fail",
            do="look at the counters of both machines' links and of the switch between them: a bad cable, a full "
               "queue, an overloaded machine",
            proof=f"ping -c 100 -i 0.01 {one.receiver.vtep}   (on {one.sender.name}); ip -s link",
        )  # fmt: skip

    yield from _grouped(nodes, judge, leaks, make)


def _gaps(numbers: Sequence[int]) -> int:
    """Missing between the first and the last that came: nodes begin and end at different moments."""
    return max(numbers) - min(numbers) + 1 - len(numbers) if numbers else 0


# --- many directions, one cause ---------------------------------------------------------------------------------------


def _grouped(
    nodes: Sequence[Seen],
    judge: Judge,
    is_bad: Callable[[Crossing], bool],
    make: Callable[[Crossing, Judge, str], Finding],
    looked: Sequence[Crossing] | None = None,
) -> Iterator[Finding]:
    """One finding per direction; but one for all directions from, or else to, a node where all of them are bad."""
    found = crossings(nodes) if looked is None else looked
    bad = [one for one in found if is_bad(one)]
    for whose, every in ((_sender, "{} -> *"), (_receiver, "* -> {}")):
        all_of, bad_of = _by(found, whose), _by(bad, whose)
        for node, ones in bad_of.items():
            if len(ones) > 1 and len(ones) == len(all_of[node]):
                first = ones[0]
                if whose is _sender:
                    yield make(first, Judge(judge.check, every.format(first.sender.name)), "any other node")
                else:
                    where = Judge(judge.check, every.format(first.receiver.name))
                    yield _from_any(make(first, where, first.receiver.name), first.sender.name)
                bad = [one for one in bad if one not in ones]
    for one in bad:
        yield make(one, Judge(judge.check, f"{one.sender.name} -> {one.receiver.name}"), one.receiver.name)


def _from_any(finding: Finding, sender: str) -> Finding:
    """`refused` begins with the sender; all others say where from."""
    what = finding.what.replace(f"from {sender} ", "from every other node ", 1)
    return replace(finding, what=what.replace(f"{sender} cannot send", "no other node can send", 1))


def _by(ones: Iterable[Crossing], whose: Callable[[Crossing], NodeID]) -> Mapping[NodeID, list[Crossing]]:
    found: defaultdict[NodeID, list[Crossing]] = defaultdict(list)
    for one in ones:
        found[whose(one)].append(one)
    return found


def _sender(one: Crossing) -> NodeID:
    return one.sender.id


def _receiver(one: Crossing) -> NodeID:
    return one.receiver.id
