"""All checks, in the order in which they are told; and what becomes of facts: a diagnosis. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from hivemesh.doctor import before, between, member, whole
from hivemesh.doctor.before import Judge
from hivemesh.wire.doctor import SEVERITIES, Diagnosis, Finding, Inspected, Machine, NodeFacts, Seen, StoreFacts

OfMachine = Callable[[Machine, Judge], Iterator[Finding]]
OfNode = Callable[[NodeFacts, Judge], Iterator[Finding]]
OfNodes = Callable[[Sequence[Seen], Judge], Iterator[Finding]]
OfStore = Callable[[StoreFacts, Judge], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """`about` is what is looked at, in words; one of the judges is there."""

    name: str
    about: str
    machine: OfMachine | None = None
    node: OfNode | None = None
    nodes: OfNodes | None = None
    store: OfStore | None = None


CHECKS = (
    Check("access", "whether everything can be looked at", machine=before.access),
    Check("kernel", "what networks are made of: VXLAN, bridges, nftables, namespaces", machine=before.kernel),
    Check("namespaces", "IPv6, and what a killed test left", machine=before.namespaces),
    Check("ports", "who has 2377/tcp, 4789/udp, 2378/tcp and 12377/tcp", machine=before.ports),
    Check("docker", "Docker's own swarm on this machine", machine=before.other_swarm),
    Check("pools", "address pools against the machine's routes", machine=before.pools),
    Check("mtu", "links too narrow for tunnels", machine=before.mtu),
    Check("firewall", "other firewalls: what comes in, what is forwarded", machine=before.firewall),
    Check("clock", "whether the clock follows a time server", machine=before.clock),
    Check("cgroups", "v1, v2 or hybrid, and controllers", machine=before.groups),
    Check("engine", "Podman's version, its runtime, limits", machine=before.engine),
    Check("settings", "settings that end what a node can run", machine=before.settings),
    Check("disk", "room, inodes, and whether it can be written", machine=before.disks),
    Check("resolv.conf", "name servers for other names", machine=before.names),
    Check("balancers", "IPVS, sockets led by eBPF, SCTP", machine=before.balancers),
    Check("ways", "by which link the kernel sends to other nodes", nodes=between.astray),
    Check("send", "whether the kernel sends to the other nodes", nodes=between.refused),
    Check("nodes", "nodes that do not answer", nodes=whole.absent),
    Check("names-of-nodes", "nodes with the same host name", nodes=whole.alike),
    Check("store", "the managers' store: answers, majority", store=whole.store),
    Check("manager", "what a manager's part says is wrong", node=member.managing),
    Check("session", "whether managers talk to the node", node=member.session),
    Check("control-port", "every node to every manager, 2377/tcp", node=member.calls),
    Check("clocks", "clocks of all nodes", nodes=whole.clocks),
    Check("certificates", "how long they hold: nodes', root's", node=member.certificates),
    Check("underlay", "the data path address and its link", node=member.underlay),
    Check("routes", "networks of the swarm against the machine's routes", node=member.routes),
    Check("drift", "the kernel against the plan, and who changes it", node=member.drift),
    Check("resolver", "names of services, asked in sandboxes", node=member.names),
    Check("servers", "ports that are published, and where nobody listens", node=member.silent),
    Check("strangers", "firewalls of others inside our namespaces", node=member.strangers),
    Check("tunnels", "UDP 4789 from every node to every node, each way", nodes=between.underlay),
    Check("overlay", "through tunnels into the ingress network, each way", nodes=between.overlay),
    Check("checksums", "cards that leave checksums out inside tunnels", nodes=between.checksums),
    Check("path-mtu", "the largest packet each path carries", nodes=between.path_mtu),
    Check("large", "full-size packets through the overlay", nodes=between.large),
    Check("loss", "probes that were lost among others that came", nodes=between.loss),
)


def of_machine(machine: Machine) -> list[Finding]:
    """What is wrong with one machine alone."""
    return [f for check in CHECKS if check.machine for f in check.machine(machine, Judge(check.name, machine.name))]


def _together(findings: Iterable[Finding]) -> list[Finding]:
    """What several machines have in common becomes one finding, with all their names."""
    found: dict[Finding, list[str]] = {}
    for finding in findings:
        found.setdefault(replace(finding, where=""), []).append(finding.where)
    return [replace(finding, where=", ".join(dict.fromkeys(wheres))) for finding, wheres in found.items()]


def diagnose(name: str, own: Machine, inspected: Inspected | None = None, more: Iterable[Finding] = ()) -> Diagnosis:
    """The whole picture as node `name` has it. Without `inspected`, only this machine was looked at."""
    nodes = inspected.nodes if inspected is not None else ()
    answered = [(seen.place.name, seen.facts) for seen in nodes if seen.facts is not None]
    found = list(more)
    made = []
    for check in CHECKS:
        if check.machine is not None:
            made.append(check.name)
            machines = {own.name: own} | {name: facts.machine for name, facts in answered}
            for whose, machine in machines.items():
                found += check.machine(machine, Judge(check.name, whose))
        elif inspected is not None:
            made.append(check.name)
            if check.node is not None:
                for whose, facts in answered:
                    found += check.node(facts, Judge(check.name, whose))
            if check.nodes is not None:
                found += check.nodes(nodes, Judge(check.name, "swarm"))
            if check.store is not None:
                found += check.store(inspected.store, Judge(check.name, "managers"))
    worst_first = sorted(_together(found), key=lambda finding: -SEVERITIES.index(finding.severity))
    return Diagnosis(
        node=name,
        checks=tuple(made),
        findings=tuple(worst_first),
        nodes=tuple(seen.place.name for seen in nodes),
        matrix=tuple(between.matrix(nodes)),
    )
