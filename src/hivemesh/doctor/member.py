"""Judges of one node as a part of its swarm: pure, from facts to findings."""

from collections.abc import Iterator

from hivemesh.doctor import limits
from hivemesh.doctor.before import Judge
from hivemesh.wire.doctor import Finding, NodeFacts, Unlike

_SHOWN = 3


def session(facts: NodeFacts, judge: Judge) -> Iterator[Finding]:
    said = facts.membership.session
    if said:
        yield judge.find(
            "error", f"no session with a manager: {said}",
            why="the node goes on with what it was told last, and hears of nothing new",
            do="see that a manager runs, and that its port 2377/tcp is reached from here",
            proof="docker info --format '{{.Swarm.LocalNodeState}} {{.Swarm.Error}}'",
        )  # fmt: skip


def calls(facts: NodeFacts, judge: Judge) -> Iterator[Finding]:
    failed = [call for call in facts.calls if call.error]
    for call in failed:
        every = len(failed) == len(facts.calls)
        port = call.manager.rpartition(":")[2]
        yield judge.find(
            "error" if every else "warning", f"the manager at {call.manager} is not reached: {call.error}",
            why="this node cannot hold a session with it, and needs one of them",
            do=f"let TCP port {port} through, on the way and on that machine; see that hivemeshd runs there",
            proof=f"nc -vz {call.manager.rpartition(':')[0].strip('[]')} {port}",
        )  # fmt: skip


def drift(facts: NodeFacts, judge: Judge) -> Iterator[Finding]:
    found = facts.membership
    fought = (*found.healed, *found.drift) if found.repairs else found.healed  # it was put right, and broken again
    if found.drift and not found.repairs:
        yield judge.find(
            "error", f"the kernel is not as planned, and stays so: {_things(found.drift)}",
            why=_causes(found.drift) or "packets go where the kernel says, not where the plan does",
            do="see the daemon's log for what cannot be applied, and why",
            proof=found.drift[0].proof or "curl --unix-socket /run/hivemesh/docker.sock http://d/hivemesh/drift",
        )  # fmt: skip
    if fought or found.repairs:
        words = _things(fought) or f"{found.repairs} repairs while we looked"
        yield judge.find(
            "warning", f"somebody changed what is ours, and it was put right: {words}",
            why="; ".join(filter(None, (_causes(fought), "until it is put right, packets are lost; another program may "
                                         "fight for the same objects"))),
            do="find out who: a firewall's reload, a network manager, a script",
            proof="docker events --since 10m --filter event=repair",
        )  # fmt: skip


def names(facts: NodeFacts, judge: Judge) -> Iterator[Finding]:
    wrong = facts.membership.names
    if wrong:
        yield judge.find(
            "error", f"names are not answered as they should be: {_few(wrong)}",
            why="containers there find nobody, or somebody who is gone",
            do="hivemeshd starts a resolver that died, and ends one that is deaf, within ten seconds; if it does not, "
               "see its log",
            proof="pgrep -a hivemesh-resolv; hivemesh trace TASK NAME",
        )  # fmt: skip


def certificates(facts: NodeFacts, judge: Judge) -> Iterator[Finding]:
    start, end = facts.membership.certificate
    left, whole = end - facts.time, end - start
    days = left / 86400
    if left <= 0:
        yield judge.find(
            "error", f"the node's certificate expired {-days:.1f} days ago",
            why="no manager talks to this node any more",
            do="see that its clock is right; else leave the swarm with --force and join again",
            proof="openssl x509 -enddate -noout -in /var/lib/hivemesh/certificates/node.pem",
        )  # fmt: skip
    elif left < limits.CERTIFICATE_WARNS * whole:
        yield judge.find(
            "warning", f"the node's certificate expires in {days:.1f} days",
            why="it should have been renewed at half of its time: the managers were not reached, or the disk is full",
            do="see the daemon's log for `cannot renew`",
            proof="openssl x509 -enddate -noout -in /var/lib/hivemesh/certificates/node.pem",
        )  # fmt: skip
    root = facts.membership.root
    if root and root - facts.time < limits.ROOT_WARNS:
        yield judge.find(
            "warning", f"the swarm's root certificate expires in {(root - facts.time) / 86400:.0f} days",
            why="with it, every certificate of the swarm ends", do="docker swarm ca --rotate",
            proof="docker swarm ca | openssl x509 -enddate -noout",
        )  # fmt: skip


def routes(facts: NodeFacts, judge: Judge) -> Iterator[Finding]:
    for name, prefixes in sorted(facts.membership.subnets.items()):
        for link, route in facts.machine.routes:
            clash = next((p for p in prefixes if p.version == route.version and p.overlaps(route)), None)
            if clash is not None:
                yield judge.find(
                    "warning", f"the route to {route} (by {link}) clashes with the network {name} ({clash})",
                    why="containers on that network do not reach what lies behind the route",
                    do=f"make the network anew with another --subnet, or take the route away: ip route del {route}",
                    proof=f"ip route show {route}",
                )  # fmt: skip


def underlay(facts: NodeFacts, judge: Judge) -> Iterator[Finding]:
    address = facts.membership.underlay
    link = next((one for one in facts.machine.links if address in {a.ip for a in one.addresses}), None)
    if address is not None and link is None:
        yield judge.find(
            "error", f"this machine has lost the data path address {address}",
            why="the other nodes send its tunnels' packets there",
            do="give the address back, or leave the swarm and join again", proof="ip address",
        )  # fmt: skip
    elif link is not None and 0 < link.mtu < facts.membership.needs:
        yield judge.find(
            "error", f"{link.name} takes {link.mtu} bytes, and the tunnels send up to {facts.membership.needs}",
            why="full-size packets of overlay networks are lost: connections open, and then hang",
            do=f"ip link set {link.name} mtu {facts.membership.needs}, or make the networks anew with a smaller "
               "--opt com.docker.network.driver.mtu",
            proof=f"ip link show {link.name}",
        )  # fmt: skip


def managing(facts: NodeFacts, judge: Judge) -> Iterator[Finding]:
    if facts.membership.store:
        yield judge.find(
            "error", f"the manager's part of this node does not work: {facts.membership.store}",
            why="it answers nobody, and the store may be without its vote", do="see what it says, and the daemon's log",
            proof="journalctl -u hivemeshd | tail",
        )  # fmt: skip


def silent(facts: NodeFacts, judge: Judge) -> Iterator[Finding]:
    for one in facts.membership.silent:
        yield judge.find(
            "warning", one.text, why=f"connections to it are refused: {one.cause}",
            do="see the container's log, and what address and port its program listens on", proof=one.proof,
        )  # fmt: skip


def strangers(facts: NodeFacts, judge: Judge) -> Iterator[Finding]:
    for one in facts.membership.strangers:
        yield judge.find(
            "warning", f"in the namespace {one.namespace}, {one.text}",
            why=f"{one.cause}: packets of networks and published ports may be lost there",
            do="see that it lets through what services publish, or take it away", proof=one.proof,
        )  # fmt: skip


def _things(found: tuple[Unlike, ...]) -> str:
    return _few(tuple(f"{one.namespace or 'host'}: {one.text}" for one in found))


def _causes(found: tuple[Unlike, ...]) -> str:
    """Each once, of what is shown."""
    return "; ".join(dict.fromkeys(one.cause for one in found[:_SHOWN] if one.cause))


def _few(words: tuple[str, ...]) -> str:
    more = f"; and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return "; ".join(words[:_SHOWN]) + more
