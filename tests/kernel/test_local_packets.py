"""Networks of one node with real packets: bridges and macvlan, what is published, who may speak with whom."""

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
from mesh_rig import CLIENT, V4, V6, Node, Reply, apply, ask, differences, facts_of, run, serve

from hivemesh.cnm import local
from hivemesh.cnm.local import Around
from hivemesh.dataplane.plan.bridge import PLAIN_HOST, ports_of, with_local
from hivemesh.dataplane.plan.facts import HostFacts
from hivemesh.dataplane.plan.sandbox import plan_sandbox
from hivemesh.kernel.api import NamespacePlan
from hivemesh.model.addr import Address
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.local import Local, LocalNetwork, LocalSpec, PublishedPort
from hivemesh.model.network import IPAMConfig
from hivemesh.model.service import TaskSpec
from hivemesh.model.task import Task

pytestmark = pytest.mark.kernel
FAMILIES = pytest.mark.parametrize("version", [4, 6])
NODE = {4: f"{V4}.11", 6: f"{V6}11"}
OUTSIDE = {4: CLIENT[0], 6: CLIENT[1]}
FACTS: HostFacts = replace(facts_of(1), vtep=ipaddress.IPv4Address(0))


def network(name: str, third: int, driver: str = "bridge", *, internal: bool = False, **options: str) -> LocalNetwork:
    ipam = [
        IPAMConfig(subnet=f"10.{third}.0.0/24", gateway=f"10.{third}.0.1"),
        IPAMConfig(subnet=f"fd{third}::/64", gateway=f"fd{third}::1"),
    ]
    if driver == "macvlan":
        ipam = [
            IPAMConfig(subnet=f"{V4}.0/24", gateway=f"{V4}.100", ip_range=f"{V4}.192/28"),
            IPAMConfig(subnet=f"{V6}/64", gateway=f"{V6}100", ip_range=f"{V6}c0/124"),
        ]
    spec = LocalSpec(
        name=name,
        driver=driver,  # type: ignore[arg-type]
        ipv6=True,
        internal=internal,
        ipam=tuple(ipam),
        options={getattr(local, key): value for key, value in options.items()},
    )
    around = Around(networks=(), taken=(), links=("eth0",), pool=())
    return local.grant(spec, NetworkID(name.ljust(25, "x")), 0.0, around)


OPEN, CLOSED, INNER = network("open", 71), network("closed", 72, ICC="false"), network("inner", 73, internal=True)
PLAINLY = network("plainly", 74, MASQUERADE="false")
WIRE = network("wire", 0, "macvlan", PARENT="eth0")
NETWORKS = {n.id: n for n in (OPEN, CLOSED, INNER, PLAINLY, WIRE)}


def container(name: str, *networks: LocalNetwork, last: int, ports: tuple[PublishedPort, ...] = ()) -> Task:
    attachments = []
    for one in networks:
        first = 192 if one is WIRE else 0
        wanted: list[Address] = [subnet.prefix.network_address + first + last for subnet in one.subnets]
        attachments.append(
            local.attachment(one, (), endpoint=EndpointID(f"{name}{one.name}".ljust(25, "e")), wanted=wanted)
        )
    return Task(
        id=TaskID(name.ljust(25, "0")), service_id=ServiceID(""), service_name="", slot=0, spec=TaskSpec(),
        container=name, attachments=tuple(attachments), local=Local(ports=ports),
    )  # fmt: skip


def published(port: int, target: int = 80, protocol: str = "tcp", address: str = "") -> PublishedPort:
    return PublishedPort(
        protocol=protocol,  # type: ignore[arg-type]
        target=target,
        port=port,
        address=ipaddress.ip_address(address) if address else None,
    )


WEB = container(
    "web", OPEN, last=5,
    ports=(published(8080), published(8053, 53, "udp"), published(8081, address="127.0.0.1"),
           published(8081, address="::1"), published(8082, address=NODE[4])),
)  # fmt: skip
BOX = container("box", OPEN, last=6)
LONE, LONER = container("lone", CLOSED, last=5, ports=(published(8090),)), container("loner", CLOSED, last=6)
KEPT, KEEPER = container("kept", INNER, last=5), container("keeper", INNER, last=6)
BARE = container("bare", PLAINLY, last=5)
MAC1, MAC2 = container("mac1", WIRE, last=1), container("mac2", WIRE, last=2)
DIGGER = container("digger", OPEN, last=7)
TASKS = (WEB, BOX, LONE, LONER, KEPT, KEEPER, BARE, MAC1, MAC2)


def plans(*tasks: Task, networks: tuple[LocalNetwork, ...] = tuple(NETWORKS.values())) -> list[NamespacePlan]:
    ports = [port for task in tasks for port in ports_of(task, NETWORKS, None)]
    host = with_local(PLAIN_HOST, FACTS, networks, ports)
    return [host, *(plan_sandbox(task, {}, FACTS, None, local=NETWORKS) for task in tasks)]


class Machine:
    """One node and a client on a wire between them."""

    def __init__(self) -> None:
        self.node, self.client = Node("n1"), Node("client")
        self.node.call(run, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0",
                       "netns", str(self.client.pid))  # fmt: skip
        for one, last in ((self.node, "11"), (self.client, "100")):
            one.call(run, "ip", "addr", "add", f"{V4}.{last}/24", "dev", "eth0")
            one.call(run, "ip", "addr", "add", f"{V6}{last}/64", "dev", "eth0", "nodad")
            one.call(run, "ip", "link", "set", "eth0", "up")

    def ask(self, task: Task | None, protocol: str, host: str, port: int) -> str:
        """Who answers, and whom it sees; from a container, or from the node itself."""
        at = task.id[:12] if task is not None else ""
        return outcome(self.node.call(ask, protocol, host, port, at=at, timeout=0.3)[0])

    def ask_outside(self, protocol: str, host: str, port: int) -> str:
        return outcome(self.client.call(ask, protocol, host, port, timeout=0.3)[0])


def outcome(reply: Reply | str) -> str:
    return f"{reply.server} sees {reply.seen}" if isinstance(reply, Reply) else reply


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    made = Machine()
    try:
        assert not made.node.call(apply, plans(*TASKS, DIGGER))
        for task in TASKS:
            made.node.call(serve, task.container, "tcp", 80, at=task.id[:12])
        made.node.call(serve, "web", "udp", 53, "0.0.0.0", at=WEB.id[:12])
        made.node.call(serve, "web", "udp", 53, "::", True, at=WEB.id[:12])
        made.client.call(serve, "outside", "tcp", 80)
        made.node.call(serve, "node", "tcp", 7070)
        yield made
    finally:
        made.node.close()
        made.client.close()


def ip(task: Task, version: int) -> str:
    return next(str(i.ip) for a in task.attachments for i in a.addresses if i.version == version)


def gateway(one: LocalNetwork, version: int) -> str:
    subnet = one.subnet(version)
    assert subnet is not None
    return str(subnet.gateway)


@FAMILIES
@pytest.mark.parametrize(("protocol", "port"), [("tcp", 8080), ("udp", 8053)])
def test_published_port_is_reached_from_everywhere(machine: Machine, version: int, protocol: str, port: int) -> None:
    node, bridge = NODE[version], gateway(OPEN, version)
    assert machine.ask_outside(protocol, node, port) == f"web sees {OUTSIDE[version]}"
    loopback = "127.0.0.1" if version == 4 else "::1"
    assert machine.ask(None, protocol, loopback, port) == f"web sees {bridge}"
    for host in (node, bridge):
        assert machine.ask(None, protocol, host, port).startswith("web sees")
    assert machine.ask(BOX, protocol, node, port) == f"web sees {bridge}", "from its own bridge"
    assert machine.ask(WEB, protocol, node, port) == f"web sees {bridge}", "from itself"
    assert machine.ask(LONE, protocol, node, port).startswith("web sees"), "from another bridge"


@FAMILIES
def test_port_published_on_one_address_is_reached_there_only(machine: Machine, version: int) -> None:
    loopback = "127.0.0.1" if version == 4 else "::1"
    assert machine.ask(None, "tcp", loopback, 8081).startswith("web sees")
    assert machine.ask_outside("tcp", NODE[version], 8081) == "ConnectionRefusedError"
    if version == 4:
        assert machine.ask_outside("tcp", NODE[4], 8082) == f"web sees {OUTSIDE[4]}"
        assert machine.ask(None, "tcp", "127.0.0.1", 8082) == "ConnectionRefusedError"


@FAMILIES
def test_containers_of_a_bridge_reach_each_other_unless_icc_is_off(machine: Machine, version: int) -> None:
    assert machine.ask(BOX, "tcp", ip(WEB, version), 80) == f"web sees {ip(BOX, version)}"
    assert not machine.ask(LONER, "tcp", ip(LONE, version), 80).startswith("lone")
    assert machine.ask(LONER, "tcp", NODE[version], 8090).startswith("lone sees"), "by its published port"


@FAMILIES
def test_bridges_are_kept_apart_from_each_other_and_from_outside(machine: Machine, version: int) -> None:
    assert machine.ask(LONE, "tcp", ip(WEB, version), 80) == "TimeoutError"
    prefix = str(OPEN.subnet(version).prefix)  # type: ignore[union-attr]
    machine.client.call(run, "ip", "route", "add", prefix, "via", NODE[version])
    try:
        assert machine.ask_outside("tcp", ip(WEB, version), 80) == "TimeoutError"
    finally:
        machine.client.call(run, "ip", "route", "del", prefix)


@FAMILIES
def test_containers_go_out_as_the_node_unless_masquerading_is_off(machine: Machine, version: int) -> None:
    assert machine.ask(BOX, "tcp", OUTSIDE[version], 80) == f"outside sees {NODE[version]}"
    prefix = str(PLAINLY.subnet(version).prefix)  # type: ignore[union-attr]
    machine.client.call(run, "ip", "route", "add", prefix, "via", NODE[version])
    try:
        assert machine.ask(BARE, "tcp", OUTSIDE[version], 80) == f"outside sees {ip(BARE, version)}"
    finally:
        machine.client.call(run, "ip", "route", "del", prefix)


@FAMILIES
def test_internal_network_leads_nowhere_else(machine: Machine, version: int) -> None:
    assert machine.ask(KEEPER, "tcp", ip(KEPT, version), 80) == f"kept sees {ip(KEEPER, version)}"
    assert machine.ask(KEEPER, "tcp", OUTSIDE[version], 80) in ("OSError", "TimeoutError")
    link = machine.node.call(run, "ip", "route", "add", "default", "via", gateway(INNER, 4), at=KEEPER.id[:12])
    assert link == ""
    try:
        if version == 4:  # even when somebody adds the route
            assert machine.ask(KEEPER, "tcp", OUTSIDE[4], 80) == "TimeoutError"
            assert machine.ask(KEEPER, "tcp", NODE[4], 8080) == "TimeoutError"
    finally:
        machine.node.call(run, "ip", "route", "del", "default", at=KEEPER.id[:12])


def test_loopback_of_the_node_is_not_reached_through_a_bridge(machine: Machine) -> None:
    at = DIGGER.id[:12]
    for words in (
        ("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"),
        ("ip", "route", "add", "127.0.0.2", "via", gateway(OPEN, 4), "table", "99"),
        ("ip", "rule", "add", "pref", "1", "to", "127.0.0.2", "lookup", "99"),
        ("ip", "rule", "add", "pref", "9", "lookup", "local"),
        ("ip", "rule", "del", "pref", "0"),
    ):
        machine.node.call(run, *words, at=at)
    assert machine.ask(DIGGER, "tcp", "127.0.0.2", 7070) == "TimeoutError"
    assert machine.ask(DIGGER, "tcp", gateway(OPEN, 4), 7070).startswith("node sees")


@FAMILIES
def test_macvlan_containers_are_on_the_wire_outside(machine: Machine, version: int) -> None:
    assert machine.ask_outside("tcp", ip(MAC1, version), 80) == f"mac1 sees {OUTSIDE[version]}"
    assert machine.ask(MAC2, "tcp", ip(MAC1, version), 80) == f"mac1 sees {ip(MAC2, version)}"
    assert machine.ask(MAC1, "tcp", OUTSIDE[version], 80) == f"outside sees {ip(MAC1, version)}"


def test_second_look_finds_nothing_to_do_and_damage_is_mended(machine: Machine) -> None:
    assert machine.node.call(differences, plans(*TASKS)) == []
    machine.node.call(run, "ip", "link", "set", OPEN.device, "mtu", "1400")
    machine.node.call(run, "ip", "link", "del", "eth0", at=MAC2.id[:12])
    found = machine.node.call(differences, plans(*TASKS))
    assert any(OPEN.device in line for line in found)
    assert any("link eth0 is missing" in line for line in found)
    machine.node.call(run, "ip", "link", "set", OPEN.device, "mtu", "1500")


def test_bridge_keeps_its_mtu_without_ports_and_goes_with_its_network() -> None:
    narrow = replace_mtu(OPEN, 1400)
    node = Node("n1")
    try:
        host = with_local(PLAIN_HOST, FACTS, [narrow], ())
        box = plan_sandbox(BOX, {}, FACTS, None, local={narrow.id: narrow})
        assert not node.call(apply, [host, box])
        node.call(run, "ip", "netns", "delete", BOX.id[:12])
        node.call(run, "ip", "link", "del", box.links[0].outer.name)  # type: ignore[union-attr]
        assert node.call(differences, [host]) == []
        assert not node.call(apply, [PLAIN_HOST])
        links = node.call(run, "ip", "-brief", "link")
        assert narrow.device not in links
        assert "hivemesh" not in node.call(run, "nft", "list", "tables")
    finally:
        node.close()


def replace_mtu(of: LocalNetwork, mtu: int) -> LocalNetwork:
    return msgspec.structs.replace(of, mtu=mtu)


def test_kernel_without_the_parent_says_so() -> None:
    node = Node("n1")
    try:
        lost = plans(MAC1, networks=(WIRE,))
        assert any("there is no interface eth0" in text for text in node.call(apply, lost))
    finally:
        node.close()
