"""Whatever happens to nodes and services: no node is given more than it has, and whoever waits is told why."""

from collections import Counter
from dataclasses import dataclass

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from world import SECOND, World, publish, spec

from hivemesh.control.stock import Stock
from hivemesh.model.generic import GenericResource, discrete, parse
from hivemesh.model.node import Node
from hivemesh.model.service import (
    Placement,
    PlacementPreference,
    Reservations,
    Resources,
    RestartPolicy,
    Service,
    ServiceSpec,
    SpreadOver,
    UpdateConfig,
)
from hivemesh.model.task import TaskState

NODES = ("n1", "n2", "n3")
ZONES = ("", "north", "south")
CPUS, GPUS = 2, ("GPU=a", "GPU=b", "SSD=3")


@dataclass(frozen=True)
class Wish:
    """A service, in few words."""

    name: str
    replicas: int
    cpus: int
    gpus: int
    zone: str
    most: int
    port: bool
    order: str
    image: str

    @property
    def spec(self) -> ServiceSpec:
        wanted = spec(
            self.name,
            self.replicas,
            image=self.image,
            ports=[publish(8000 + ord(self.name), mode="host")] if self.port else [],
            restart=RestartPolicy(delay=0),
            update=UpdateConfig(order="start-first" if self.order == "start-first" else "stop-first", monitor=0),
        )
        template = msgspec.structs.replace(
            wanted.task_template,
            resources=Resources(
                reservations=Reservations(
                    nano_cpus=self.cpus * SECOND,
                    generic_resources=(discrete("GPU", self.gpus), discrete("SSD", self.gpus)),
                )
            ),
            placement=Placement(
                constraints=(f"node.labels.zone=={self.zone}",) if self.zone else (),
                max_replicas=self.most,
                preferences=(PlacementPreference(spread=SpreadOver(spread_descriptor="node.labels.zone")),),
            ),
        )
        return msgspec.structs.replace(wanted, task_template=template)


WISHES = st.builds(
    Wish,
    name=st.sampled_from("abc"),
    replicas=st.integers(0, 5),
    cpus=st.integers(0, 2),
    gpus=st.integers(0, 2),
    zone=st.sampled_from(ZONES),
    most=st.sampled_from([0, 0, 1, 2]),
    port=st.booleans(),
    order=st.sampled_from(["stop-first", "start-first"]),
    image=st.sampled_from(["one", "two"]),
)
STEPS = st.one_of(
    WISHES,
    st.tuples(st.just("availability"), st.sampled_from(NODES), st.sampled_from(["active", "pause", "drain"])),
    st.tuples(st.just("state"), st.sampled_from(NODES), st.sampled_from(["ready", "down"])),
    st.tuples(st.just("zone"), st.sampled_from(NODES), st.sampled_from(ZONES)),
    st.tuples(st.just("remove"), st.sampled_from("abc"), st.just("")),
    st.tuples(st.just("fail"), st.sampled_from("abc"), st.just("")),
    st.tuples(st.just("run"), st.just(""), st.just("")),
)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(STEPS, max_size=14))
def test_no_node_is_given_more_than_it_has_and_who_waits_is_told_why(steps: list[Wish | tuple[str, str, str]]) -> None:
    world = World(3)
    for name in NODES:
        description = msgspec.structs.replace(
            world.node(name).description, nano_cpus=CPUS * SECOND, generic=parse(GPUS), hostname=name
        )
        world.set_node(name, description=description)
    for step in steps:
        _take(world, step)
        _check(world)
    for name in NODES:
        world.set_node(name, state="ready")
        world.set_spec(name, availability="active")
    for _ in range(30):
        world.agents()
        _check(world)
        world.wait(1)
    assert world.at_rest()
    assert all(task.serving or task.status.err for task in world.tasks() if task.wanted)


def _take(world: World, step: Wish | tuple[str, str, str]) -> None:
    there = {service.spec.name for service in world.view.all(Service)}
    match step:
        case Wish():
            _ = world.update(step.name, step.spec) if step.name in there else world.create(step.spec)
        case ("availability", node, value):
            world.set_spec(node, availability=value)
        case ("state", node, value):
            world.set_node(node, state=value)
        case ("zone", node, value):
            world.set_spec(node, labels={"zone": value} if value else {})
        case ("remove", name, _) if name in there:
            world.remove(name)
        case ("fail", name, _) if name in there:
            for task in world.wanted(name)[:1]:
                world.report(task, TaskState.FAILED)
        case ("run", _, _):
            world.agents()


def _check(world: World) -> None:
    for node in world.view.all(Node):
        held = [task for task in world.view.tasks_on(node.id) if task.placed and not task.status.state.dead]
        reserved = [task.spec.resources.reservations or Reservations() for task in held]
        assert sum(one.nano_cpus for one in reserved) <= CPUS * SECOND
        given_out = [resource for task in held for resource in task.generic]
        names = [one for one in given_out if one.named_resource_spec is not None]
        assert len(names) == len(set(names))
        assert Stock(parse(GPUS)).holds(given_out)
        for task, one in zip(held, reserved, strict=True):
            assert _sums(task.generic) == _sums(one.generic_resources)
        ports = Counter((port.protocol, port.published_port) for task in held for port in task.ports)
        assert all(count == 1 for count in ports.values())
    for task in world.tasks():
        if task.status.state == TaskState.PENDING and task.wanted:
            assert task.status.err.startswith("no suitable node (")


def _sums(resources: tuple[GenericResource, ...]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for resource in resources:
        if resource.discrete_resource_spec is not None:
            sums[resource.discrete_resource_spec.kind] += resource.discrete_resource_spec.value
        elif resource.named_resource_spec is not None:
            sums[resource.named_resource_spec.kind] += 1
    return +sums
