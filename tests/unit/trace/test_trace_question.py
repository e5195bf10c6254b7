"""Questions of traces: what they mean in a node's view, and what the hops are, without any kernel."""

import ipaddress

import pytest

from hivemesh.cnm.node import Planner, Sandbox, ViewParts, parts_of
from hivemesh.dataplane.plan import HostFacts, plan_host, plan_overlay
from hivemesh.kernel.api import FdbEntry, NamespacePlan
from hivemesh.model.addr import MAC, VNI, Address
from hivemesh.model.errors import HivemeshError, Invalid, NotFound
from hivemesh.model.ids import EndpointID, NetworkID, NodeID, ServiceID, TaskID
from hivemesh.model.network import Subnet
from hivemesh.model.service import TaskSpec
from hivemesh.model.task import Attachment, Task, TaskState, TaskStatus
from hivemesh.trace.judge import hop_of
from hivemesh.trace.question import find, split
from hivemesh.trace.way import Answer, Balancing, Broken, Seen, TableWanted, out_of
from hivemesh.wire.control import AnyItem, Backend, NetworkItem, NodeItem, PeerItem, ServiceItem, TaskItem, key_of
from hivemesh.wire.trace import Question

HERE, THERE = (ipaddress.ip_address(text) for text in ("198.51.100.11", "198.51.100.12"))
VIP, BACKEND, CALLER = (ipaddress.ip_address(f"10.0.1.{last}") for last in (5, 22, 9))
NETWORK = NetworkItem(
    id=NetworkID("back0000000000000000000ne"),
    name="back",
    vni=VNI(4097),
    port=4789,
    subnets=(Subnet(prefix=ipaddress.ip_network("10.0.1.0/24"), gateway=ipaddress.ip_address("10.0.1.1")),),
    internal=True,
)
TASK = Task(
    id=TaskID("caller".ljust(25, "0")),
    service_id=ServiceID("web"),
    service_name="web",
    slot=1,
    spec=TaskSpec(),
    status=TaskStatus(state=TaskState.RUNNING),
    attachments=(
        Attachment(
            endpoint_id=EndpointID("caller".ljust(25, "0")),
            network_id=NETWORK.id,
            addresses=(ipaddress.ip_interface(f"{CALLER}/24"),),
            mac=MAC("02:42:0a:00:01:09"),
        ),
    ),
)
PEER = PeerItem(
    network=NETWORK.id,
    endpoint=EndpointID("peer".ljust(25, "0")),
    addresses=(ipaddress.ip_interface(f"{BACKEND}/24"),),
    mac=MAC("02:42:0a:00:01:16"),
    vtep=THERE,
)
FACTS = HostFacts(
    vtep=HERE,
    vtep_mtu=1500,
    node_v4=ipaddress.IPv4Address(str(HERE)),
    node_v6=None,
    gateway4=ipaddress.IPv4Interface("172.18.0.1/16"),
    gateway6=ipaddress.IPv6Interface("fd77:1::1/64"),
)


def view(*, backends: tuple[Address, ...] = (BACKEND,)) -> tuple[ViewParts, dict[str, NamespacePlan]]:
    name = f"db.1.{'d' * 25}"
    service = ServiceItem(
        network=NETWORK.id,
        service=ServiceID("d" * 25),
        name="db",
        aliases=("store",),
        vips=(VIP,),
        backends=tuple(Backend(task=TaskID("d" * 25), addresses=(b,), names=(name,)) for b in backends),
    )
    items: list[AnyItem] = [NETWORK, PEER, service, TaskItem(task=TASK), NodeItem(id=NodeID("n2"), vtep=THERE)]
    parts = parts_of({key_of(item): item for item in items})
    sandbox = Sandbox(task=TASK, networks={NETWORK.id: NETWORK}, lease=None)
    plans = [
        plan_host(FACTS, (), (), parts.vteps, 4789),
        plan_overlay(NETWORK, FACTS, (PEER,)),
        Planner().sandbox(sandbox, FACTS, parts.services),
    ]
    return parts, {plan.namespace: plan for plan in plans}


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("db", "db", 0),
        ("db:5432", "db", 5432),
        (":8080", "", 8080),
        ("10.0.1.5", "10.0.1.5", 0),
        ("10.0.1.5:80", "10.0.1.5", 80),
        ("fd00::1", "fd00::1", 0),
        ("[fd00::1]:80", "fd00::1", 80),
        ("[fd00::1]", "fd00::1", 0),
    ],
)
def test_target_is_split_into_host_and_port(text: str, host: str, port: int) -> None:
    assert split(text) == (host, port)


@pytest.mark.parametrize("text", ["", ":", "db:", "db:http", "db:0", "db:65536"])
def test_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        split(text)


@pytest.mark.parametrize("target", ["db:5432", "store:5432", f"{VIP}:5432"])
def test_service_leads_by_its_virtual_address_to_its_backends(target: str) -> None:
    parts, plans = view()
    found = find(parts, plans, Question(source="web.1", target=target), HERE, ())
    assert [(path.leg.source, path.leg.destination, path.leg.port) for path in found.paths] == [(CALLER, BACKEND, 5432)]
    wants = [want for step in found.begin for want in step.wants]
    assert any(isinstance(want, TableWanted | Balancing) for want in wants)
    answers = [want.addresses for want in wants if isinstance(want, Answer)]
    assert answers == ([] if target.startswith("10.") else [frozenset({VIP})])


def test_task_is_found_by_its_own_name() -> None:
    parts, plans = view()
    found = find(parts, plans, Question(source=TASK.id[:6], target=f"db.1.{'d' * 25}"), HERE, ())
    assert [path.leg.destination for path in found.paths] == [BACKEND]


def test_service_without_backends_is_a_finding() -> None:
    parts, plans = view(backends=())
    found = find(parts, plans, Question(source="web.1", target="db"), HERE, ())
    assert found.paths == ()
    assert any(isinstance(want, Broken) for step in found.begin for want in step.wants)


@pytest.mark.parametrize(
    ("source", "target", "error", "words"),
    [
        ("nobody", "db", NotFound, "no task or container nobody"),
        ("web.1", "nothing", NotFound, "nobody is called nothing"),
        ("web.1", "192.0.2.1", Invalid, "on no overlay network"),
        ("", "db", Invalid, "give a published port"),
        ("", ":8080", NotFound, "no service publishes port 8080/tcp in ingress mode, and nothing here in host mode"),
        ("", "192.0.2.1:8080", Invalid, "no address of this node"),
    ],
)
def test_question_that_leads_nowhere_is_answered_in_words(
    source: str, target: str, error: type[HivemeshError], words: str
) -> None:
    parts, plans = view()
    with pytest.raises(error, match=words):
        find(parts, plans, Question(source=source, target=target), HERE, ())


def test_way_to_another_node_goes_through_its_forwarding_entry() -> None:
    _, plans = view()
    steps = list(out_of(plans, TASK.id[:12], BACKEND))
    assert [step.namespace for step in steps] == [TASK.id[:12], f"1-{NETWORK.id[:10]}", ""]
    assert FdbEntry(link="vxlan0", mac=PEER.mac, vtep=THERE) in steps[1].wants


def test_address_that_nobody_has_is_a_finding() -> None:
    _, plans = view()
    *_, last = out_of(plans, TASK.id[:12], ipaddress.ip_address("10.0.1.77"))
    assert [want.what for want in last.wants if isinstance(want, Broken)] == ["nobody has 10.0.1.77"]


def test_each_difference_has_a_cause_and_a_command() -> None:
    _, plans = view()
    for step in out_of(plans, TASK.id[:12], BACKEND):
        hop = hop_of("n1", step, tuple(Seen(want=want, text="missing", right=False) for want in step.wants))
        for fact in hop.facts:
            assert fact.what
            assert fact.plan
            assert fact.cause
            assert fact.proof.startswith(f"ip netns exec {step.namespace}" if step.namespace else ("ip", "nft"))
