"""Where tasks go, and why they cannot."""

from collections import Counter

import msgspec
import pytest
from world import World, publish, spec

from hivemesh.model.node import NodeDescription
from hivemesh.model.service import (
    Placement,
    Platform,
    Reservations,
    ResourceLimits,
    Resources,
    RestartPolicy,
    ServiceSpec,
)
from hivemesh.model.task import Task, TaskState


def error(task: Task) -> str:
    return task.status.err


def test_tasks_spread_over_nodes_service_by_service() -> None:
    world = World(3)
    world.create(spec("a", 4))
    world.create(spec("b", 3))
    for name in ("a", "b"):
        placed = Counter(task.node_id for task in world.tasks(name))
        assert sorted(placed.values()) in ([1, 1, 1], [1, 1, 2])
    total = Counter(task.node_id for task in world.tasks())
    assert sorted(total.values()) == [2, 2, 3]


def test_a_node_that_keeps_failing_comes_last() -> None:
    world = World(2)
    world.create(spec("other", constraints=["node.hostname==n1"]))
    world.create(spec(restart=RestartPolicy(delay=0)))
    for _ in range(5):
        world.report(world.wanted("web")[0], TaskState.FAILED)
    nodes = {task.node_id for task in world.tasks("web")[:5]}
    assert nodes == {world.node("n2").id}
    assert world.wanted("web")[0].node_id == world.node("n1").id


@pytest.mark.parametrize(
    ("constraint", "fits"),
    [
        ("node.hostname==N2", {"n2"}),
        ("node.hostname != n2", {"n1", "n3"}),
        ("node.role==manager", {"n1"}),
        ("node.role!=manager", {"n2", "n3"}),
        ("node.labels.zone==north", {"n3"}),
        ("node.labels.zone!=north", {"n1", "n2"}),
        ("node.labels.Zone==north", set()),
        ("node.platform.os==linux", {"n2", "n3", "n1"}),
        ("node.platform.arch==x86_64", {"n2", "n3"}),
        ("node.ip==198.51.100.12", {"n2"}),
        ("node.ip!=198.51.100.12/31", {"n1"}),
        ("engine.labels.disk==ssd", {"n2"}),
        ("node.colour==red", set()),
    ],
)
def test_constraints_choose_nodes(constraint: str, fits: set[str]) -> None:
    world = World(2)
    world.add_node(3, zone="north")
    described = msgspec.structs.replace(world.node("n2").description, labels={"disk": "ssd"})
    world.set_node("n2", description=described)
    world.create(spec(replicas=6, constraints=[constraint]))
    placed = {task.node_id for task in world.tasks("web")}
    assert placed - {None} == {world.node(name).id for name in fits}


def test_the_explanation_has_dockers_words() -> None:
    world = World(3)
    world.create(spec(constraints=["node.labels.zone==moon"]))
    (task,) = world.tasks("web")
    assert task.status.state == TaskState.PENDING
    assert error(task) == "no suitable node (scheduling constraints not satisfied on 3 nodes)"
    world.set_spec("n3", availability="drain")
    assert error(world.task(task)) == (
        "no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not available for new tasks)"
    )
    world.set_spec("n1", labels={"zone": "moon"})
    assert world.task(task).node_id == world.node("n1").id
    assert error(world.task(task)) == ""


def test_no_node_available_is_said_and_recovers() -> None:
    world = World(2)
    for name in ("n1", "n2"):
        world.set_node(name, state="down")
    world.create(spec())
    (task,) = world.tasks("web")
    assert error(task) == "no suitable node (2 nodes not available for new tasks)"
    world.set_node("n2", state="ready")
    assert world.task(task).node_id == world.node("n2").id


def test_host_ports_are_taken_once_per_node() -> None:
    world = World(2)
    world.create(spec(replicas=3, ports=[publish(8090, mode="host")]))
    assert len({task.node_id for task in world.tasks("web")} - {None}) == 2
    (waiting,) = [task for task in world.tasks("web") if task.node_id is None]
    assert error(waiting) == "no suitable node (host-mode port already in use on 2 nodes)"
    world.create(spec("udp", 2, ports=[publish(8090, protocol="udp", mode="host")]))
    assert all(task.node_id for task in world.tasks("udp"))


def test_ports_of_plain_containers_are_taken_too() -> None:
    world = World(2)
    busy = msgspec.structs.replace(world.node("n1").description, published=(("tcp", 8080),))
    world.set_node("n1", description=busy)
    world.create(spec("web", 2, ports=(publish(8080, mode="host"),)))
    placed, waiting = sorted(world.tasks("web"), key=lambda task: task.node_id is None)
    assert placed.node_id == world.node("n2").id
    assert error(waiting) == "no suitable node (host-mode port already in use on 2 nodes)"
    world.create(spec("names", 1, ports=(publish(8080, mode="host", protocol="udp"),)))
    assert world.tasks("names")[0].node_id is not None
    world.set_node("n1", description=msgspec.structs.replace(busy, published=()))
    assert [task.node_id for task in world.wanted("web")].count(world.node("n1").id) == 1


def test_a_host_port_is_handed_over_in_an_update() -> None:
    world = World(1)
    world.create(spec(ports=[publish(8090, mode="host")]))
    world.agents()
    world.update("web", spec(image="new", ports=[publish(8090, mode="host")]))
    for _ in range(3):
        world.agents()
    (task,) = [task for task in world.tasks("web") if task.serving]
    assert task.spec.container_spec.image == "new"


def test_replicas_per_node_are_limited() -> None:
    world = World(2)
    world.create(spec(replicas=3, max_replicas=1))
    (waiting,) = [task for task in world.tasks("web") if task.node_id is None]
    assert error(waiting) == "no suitable node (max replicas per node limit exceed)"


def test_reservations_count_and_limits_do_not() -> None:
    world = World(1)
    world.set_node("n1", description=NodeDescription(hostname="n1", nano_cpus=2_000_000_000, memory_bytes=1 << 30))

    def asking(limits: ResourceLimits | None, reservations: Reservations | None) -> ServiceSpec:
        wanted = spec(replicas=3)
        template = msgspec.structs.replace(
            wanted.task_template, resources=Resources(limits=limits, reservations=reservations)
        )
        return msgspec.structs.replace(wanted, task_template=template)

    world.create(asking(None, Reservations(nano_cpus=1_000_000_000)))
    (waiting,) = [task for task in world.tasks("web") if task.node_id is None]
    assert error(waiting) == "no suitable node (insufficient resources on 1 node)"
    world.remove("web")
    world.agents()
    world.create(asking(ResourceLimits(nano_cpus=8_000_000_000), None))
    assert all(task.node_id for task in world.tasks("web"))


def test_platforms_are_matched_by_either_name() -> None:
    world = World(3)
    described = msgspec.structs.replace(world.node("n2").description, architecture="aarch64")
    world.set_node("n2", description=described)
    wanted = spec(replicas=2)
    placement = Placement(platforms=(Platform(architecture="arm64", os="linux"),))
    template = msgspec.structs.replace(wanted.task_template, placement=placement)
    world.create(msgspec.structs.replace(wanted, task_template=template))
    assert {task.node_id for task in world.tasks("web")} == {world.node("n2").id}


@pytest.mark.parametrize("label", [("hivemesh.balancer", "ipvs"), ("hivemesh.lb", "lc")])
def test_service_that_asks_for_ipvs_goes_where_it_is_or_says_that_it_is_nowhere(label: tuple[str, str]) -> None:
    world = World(2)
    world.create(msgspec.structs.replace(spec("web", 2), labels=dict([label])))
    assert {error(task) for task in world.tasks("web")} == {
        "no suitable node (no IPVS in the kernel (module ip_vs) of 2 nodes)"
    }
    node = world.node("n2")
    description = msgspec.structs.replace(node.description, balancers=("nftables", "ipvs"))
    world.set_node("n2", description=description)
    assert {task.node_id for task in world.tasks("web")} == {node.id}
