"""Connections of a sandbox with the names of both ends."""

import ipaddress
import socket

from hivemesh.cnm.node import parts_of
from hivemesh.dataplane.plan import GatewayLease, HostFacts, plan_sandbox
from hivemesh.kernel.flows import Tracked
from hivemesh.metrics.naming import Names
from hivemesh.model.addr import MAC, VNI
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.network import Subnet
from hivemesh.model.service import TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import Backend, NetworkItem, ServiceItem, TaskItem, key_of
from hivemesh.wire.feed import End, Flow

NETWORK = NetworkItem(
    id=NetworkID("n" * 25),
    name="back",
    vni=VNI(4097),
    port=4789,
    subnets=(Subnet(prefix=ipaddress.ip_network("10.0.1.0/24"), gateway=ipaddress.ip_address("10.0.1.1")),),
)
APP = Task(
    id=TaskID("a" * 25),
    service_id=ServiceID("app"),
    service_name="app",
    slot=1,
    spec=TaskSpec(),
    attachments=(
        Attachment(
            endpoint_id=EndpointID("e" * 25),
            network_id=NETWORK.id,
            addresses=(ipaddress.ip_interface("10.0.1.8/24"),),
            mac=MAC("02:42:0a:00:01:08"),
        ),
    ),
)
DB = ServiceItem(
    network=NETWORK.id,
    service=ServiceID("db"),
    name="db",
    vips=(ipaddress.ip_address("10.0.1.2"),),
    backends=(
        Backend(task=TaskID("d" * 25), addresses=(ipaddress.ip_address("10.0.1.4"),), names=(f"db.2.{'d' * 25}",)),
    ),
)
FACTS = HostFacts(
    vtep=ipaddress.ip_address("198.51.100.11"),
    vtep_mtu=1500,
    node_v4=ipaddress.IPv4Address("198.51.100.11"),
    node_v6=None,
    gateway4=ipaddress.IPv4Interface("172.18.0.1/16"),
    gateway6=ipaddress.IPv6Interface("fd77::1/64"),
)
LEASE = GatewayLease(v4=ipaddress.IPv4Interface("172.18.0.5/16"), v6=ipaddress.IPv6Interface("fd77::5/64"))
PLAN = plan_sandbox(APP, {NETWORK.id: NETWORK}, FACTS, LEASE)
NAMES = Names(parts_of({key_of(item): item for item in (NETWORK, TaskItem(task=APP), DB)}), "n1")
ME = End(address="10.0.1.8", port=40000, service="app", task=APP.id, name="app.1")
DB_2 = End(address="10.0.1.4", port=80, service="db", task="d" * 25, name="db.2")


def flow(source: str, target: str, answers: str = "", port: int = 80) -> Flow | None:
    tracked = Tracked(
        socket.IPPROTO_TCP,
        ipaddress.ip_address(source), 40000,
        ipaddress.ip_address(target), port,
        ipaddress.ip_address(answers or target), port,
    )  # fmt: skip
    return NAMES.flow(PLAN.namespace, PLAN, tracked, 1.0)


def test_connection_to_a_virtual_address_names_the_backend_that_answers() -> None:
    found = flow("10.0.1.8", "10.0.1.2", "10.0.1.4")
    assert found is not None
    assert (found.source, found.target, found.backend) == (ME, End(address="10.0.1.2", port=80, service="db"), DB_2)
    assert (found.verdict, found.place, found.protocol, found.node) == ("balanced", "sandbox", "tcp", "n1")


def test_connection_that_was_led_as_it_began_names_its_task() -> None:
    found = flow("10.0.1.8", "10.0.1.4")
    assert found is not None
    assert (found.target, found.backend, found.verdict) == (DB_2, None, "direct")


def test_connection_to_the_outside_has_a_name_at_one_end() -> None:
    found = flow("172.18.0.5", "192.0.2.7", port=443)
    assert found is not None
    assert (found.source.name, found.target) == ("app.1", End(address="192.0.2.7", port=443))


def test_connection_through_a_port_in_host_mode_names_the_service_and_its_task() -> None:
    node, client, task = (ipaddress.ip_address(f"198.51.100.{last}") for last in (11, 100, 5))
    tracked = Tracked(socket.IPPROTO_TCP, client, 40000, node, 8085, task, 80)
    found = NAMES.in_host_mode(tracked, {task: APP}, 1.0)
    assert found is not None
    assert (found.source, found.verdict, found.place) == (End(address=str(client), port=40000), "direct", "host")
    assert found.target == End(address=str(node), port=8085, service="app")
    assert found.backend == End(address=str(task), port=80, service="app", task=APP.id, name="app.1")
    assert NAMES.in_host_mode(tracked, {}, 1.0) is None
    assert flow("198.51.100.100", "172.18.0.5") is None  # of which the sandbox tells nothing more


def test_what_is_told_where_it_begins_is_not_told_again() -> None:
    assert flow("10.0.1.4", "10.0.1.8") is None  # of another task: its own sandbox tells
    assert flow("127.0.0.1", "127.0.0.11", port=53) is None
