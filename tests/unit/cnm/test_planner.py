"""Plans are kept: what did not change is the very same object."""

import ipaddress

import msgspec
from mesh_rig import facts_of

from hivemesh.cnm.node import Planner, Sandbox, Services, ViewParts
from hivemesh.model.addr import MAC, VNI
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.network import Subnet
from hivemesh.model.service import TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import Backend, NetworkItem, ServiceItem

A, B = NetworkID("a" * 25), NetworkID("b" * 25)
FACTS = facts_of(1)


def sandbox(name: str, *networks: NetworkID) -> Sandbox:
    attachments = tuple(
        Attachment(
            endpoint_id=EndpointID(f"{name}{network}"),
            network_id=network,
            addresses=(ipaddress.ip_interface("10.0.1.9/24"),),
            mac=MAC("02:42:0a:00:01:09"),
        )
        for network in networks
    )
    items = {
        n: NetworkItem(
            id=n,
            name=n[0],
            vni=VNI(4097),
            port=4789,
            subnets=(Subnet(prefix=ipaddress.ip_network("10.0.1.0/24"), gateway=ipaddress.ip_address("10.0.1.1")),),
        )
        for n in networks
    }
    task = Task(
        id=TaskID(name.ljust(25, "0")),
        service_id=ServiceID("s"),
        service_name="s",
        slot=1,
        spec=TaskSpec(),
        attachments=attachments,
    )
    return Sandbox(task=task, networks=items, lease=None)


def service(network: NetworkID, *lasts: int, names: tuple[str, ...] = ()) -> ServiceItem:
    return ServiceItem(
        network=network,
        service=ServiceID("web"),
        name="web",
        vips=(ipaddress.ip_address("10.0.1.5"),),
        backends=tuple(
            Backend(task=TaskID(f"t{n}"), addresses=(ipaddress.ip_address(f"10.0.1.{n}"),), names=names) for n in lasts
        ),
    )


def test_change_on_one_network_leaves_sandboxes_of_others_alone() -> None:
    planner = Planner()
    services: Services = {A: (service(A, 7),), B: (service(B, 7),)}
    one, other, both = sandbox("one", A), sandbox("other", B), sandbox("both", A, B)
    before = [planner.sandbox(s, FACTS, services) for s in (one, other, both)]
    services = {A: (service(A, 7, 8),), B: (service(B, 7),)}
    after = [planner.sandbox(s, FACTS, services) for s in (one, other, both)]
    assert [a is b for a, b in zip(before, after, strict=True)] == [False, True, False]


def test_sandboxes_with_the_same_networks_share_their_table() -> None:
    planner = Planner()
    services: Services = {A: (service(A, 7),)}
    plans = [planner.sandbox(s, FACTS, services) for s in (sandbox("one", A), sandbox("two", A))]
    one, two = (next(t for t in plan.tables if t.name == "hivemesh-vips") for plan in plans)
    assert one is two


def test_new_names_without_new_addresses_are_no_work() -> None:
    planner = Planner()
    one = sandbox("one", A)
    before = planner.sandbox(one, FACTS, {A: (service(A, 7),)})
    assert planner.sandbox(one, FACTS, {A: (service(A, 7, names=("web.1",)),)}) is before


def test_what_is_gone_is_not_kept() -> None:
    planner = Planner()
    one = sandbox("one", A)
    services: Services = {A: (service(A, 7),)}
    before = planner.sandbox(one, FACTS, services)
    view = ViewParts(vteps=(), networks={}, peers={}, publishes=(), services=services, endpoints={}, tasks={})
    planner.keep(view, [one])
    assert planner.sandbox(one, FACTS, services) is before
    planner.keep(view, [])
    assert planner._vips == {}


def test_weight_is_part_of_the_plan() -> None:
    planner = Planner()
    one = sandbox("one", A)
    item = service(A, 7, 8)
    before = planner.sandbox(one, FACTS, {A: (item,)})
    heavy = (msgspec.structs.replace(item.backends[0], weight=3), item.backends[1])
    assert planner.sandbox(one, FACTS, {A: (msgspec.structs.replace(item, backends=heavy),)}) != before
