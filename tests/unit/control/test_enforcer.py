"""Nodes that change under their tasks."""

import msgspec
import pytest
from test_generic_resources import asking as asking_generic
from test_generic_resources import equip, equipped, names
from world import SECOND, World, everywhere, job, spec

from hivemesh.model.generic import discrete
from hivemesh.model.node import Node
from hivemesh.model.service import (
    ContainerSpec,
    GlobalJob,
    Placement,
    Reservations,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from hivemesh.model.task import Task, TaskState

NORTH = "node.labels.zone==north"
WORDS = ("task rejected by constraint enforcer", "assigned node no longer meets constraints")


def labelled(*zones: str) -> World:
    world = World(len(zones))
    for number, zone in enumerate(zones, 1):
        world.set_spec(f"n{number}", labels={"zone": zone})
    world.agents()
    return world


def where(world: World, name: str = "web") -> list[str]:
    found = [world.view.get(Node, task.node_id) for task in world.wanted(name) if task.node_id]
    return sorted(node.description.hostname for node in found if node is not None)


def only(world: World, task: Task) -> tuple[TaskState, str, str]:
    status = world.task(task).status
    return status.state, status.message, status.err


def reserving(replicas: int = 1, *, cpus: float = 0, memory: int = 0, name: str = "web") -> ServiceSpec:
    wanted = spec(name, replicas)
    resources = Resources(reservations=Reservations(nano_cpus=int(cpus * SECOND), memory_bytes=memory))
    return msgspec.structs.replace(
        wanted, task_template=msgspec.structs.replace(wanted.task_template, resources=resources)
    )


def sized(world: World, name: str, *, cpus: float = 0, memory: int = 0) -> None:
    description = msgspec.structs.replace(
        world.node(name).description, nano_cpus=int(cpus * SECOND), memory_bytes=memory
    )
    world.set_node(name, description=description)


def test_a_task_whose_node_lost_its_label_is_rejected_and_runs_elsewhere() -> None:
    world = labelled("north", "north")
    world.create(spec(constraints=[NORTH]))
    world.agents()
    (old,) = world.wanted("web")
    assert old.node_id is not None
    name = where(world)[0]
    world.set_spec(name, labels={})
    evicted = world.task(old)
    assert (evicted.desired, evicted.status.state, evicted.evicted) == (TaskState.SHUTDOWN, TaskState.RUNNING, True)
    world.agents()
    assert only(world, old) == (TaskState.REJECTED, *WORDS)
    world.agents()
    (new,) = world.wanted("web")
    assert new.serving
    assert where(world) == [{"n1": "n2", "n2": "n1"}[name]]
    assert world.at_rest()


def test_nowhere_else_to_go_is_said_and_ends_with_the_label() -> None:
    world = labelled("north", "south")
    world.create(spec(constraints=[NORTH]))
    world.agents()
    world.set_spec("n1", labels={})
    world.agents()
    (waiting,) = world.wanted("web")
    assert waiting.status.err == "no suitable node (scheduling constraints not satisfied on 2 nodes)"
    world.set_spec("n1", labels={"zone": "north"})
    world.agents()
    assert where(world) == ["n1"]


@pytest.mark.parametrize(
    ("constraint", "change"),
    [
        ("node.role==manager", {"spec": {"role": "worker"}}),
        ("node.ip==198.51.100.11", {"addr": "198.51.100.99"}),
        ("engine.labels.disk==ssd", {"description": {"labels": {"disk": "hdd"}}}),
        ("node.labels.zone!=south", {"spec": {"labels": {"zone": "south"}}}),
    ],
)
def test_whatever_constraints_know_may_change(constraint: str, change: dict[str, object]) -> None:
    world = World(1)
    described = msgspec.structs.replace(world.node("n1").description, labels={"disk": "ssd"})
    world.set_node("n1", description=described, addr="198.51.100.11")
    world.create(spec(constraints=[constraint]))
    world.agents()
    (task,) = world.wanted("web")
    assert task.serving
    for field, value in change.items():
        before = getattr(world.node("n1"), field)
        world.set_node("n1", **{field: msgspec.structs.replace(before, **value) if isinstance(value, dict) else value})
    world.agents()
    assert only(world, task) == (TaskState.REJECTED, *WORDS)


def test_a_restart_policy_of_none_does_not_leave_the_place_empty() -> None:
    world = labelled("north", "north")
    world.create(spec(constraints=[NORTH], restart=RestartPolicy(condition="none")))
    world.agents()
    world.set_spec(where(world)[0], labels={})
    for _ in range(3):
        world.agents()
    assert len([task for task in world.wanted("web") if task.serving]) == 1


def test_evictions_are_neither_failures_of_the_node_nor_attempts() -> None:
    world = labelled("north", "north")
    world.create(spec(constraints=[NORTH], restart=RestartPolicy(max_attempts=1, delay=0)))
    world.agents()
    for _ in range(6):  # to and fro
        (name,) = where(world)
        other = {"n1": "n2", "n2": "n1"}[name]
        world.set_spec(other, labels={"zone": "north"})
        world.set_spec(name, labels={})
        for _ in range(3):
            world.agents()
        assert where(world) == [other]
    world.report(world.wanted("web")[0], TaskState.FAILED)
    for _ in range(3):
        world.agents()
    assert len([task for task in world.wanted("web") if task.serving]) == 1


def test_an_eviction_during_an_update_does_not_fail_it() -> None:
    world = labelled("north", "north")
    update = UpdateConfig(monitor=10 * SECOND, parallelism=0)
    world.create(spec(replicas=2, constraints=[NORTH], update=update))
    world.agents()
    world.update("web", spec(replicas=2, constraints=[NORTH], update=update, image="new"))
    for _ in range(3):
        world.agents()
    world.set_spec("n2", labels={})
    for _ in range(3):
        world.agents()
    world.wait(11)
    status = world.service("web").update_status
    assert status is not None
    assert status.state == "completed"
    assert where(world) == ["n1", "n1"]


def test_a_paused_node_keeps_what_it_has_until_it_is_active() -> None:
    world = labelled("north", "north")
    world.create(spec(constraints=[NORTH]))
    world.agents()
    (name,) = where(world)
    world.set_spec(name, availability="pause", labels={})
    world.agents()
    assert where(world) == [name]
    world.set_spec(name, availability="active", labels={})
    for _ in range(3):
        world.agents()
    assert where(world) == [{"n1": "n2", "n2": "n1"}[name]]


def test_global_tasks_go_and_come_with_the_label() -> None:
    world = labelled("north", "north")
    template = TaskSpec(container_spec=ContainerSpec(image="x"), placement=Placement(constraints=(NORTH,)))
    world.create(everywhere(task_template=template))
    world.agents()
    task = next(task for task in world.wanted("web") if task.node_id == world.node("n2").id)
    world.set_spec("n2", labels={})
    world.agents()
    assert only(world, task) == (TaskState.REJECTED, *WORDS)
    assert where(world) == ["n1"]
    world.set_spec("n2", labels={"zone": "north"})
    world.agents()
    assert where(world) == ["n1", "n2"]


def test_jobs_go_on_elsewhere() -> None:
    world = labelled("north", "north")
    template = TaskSpec(container_spec=ContainerSpec(image="x"), placement=Placement(constraints=(NORTH,)))
    world.create(job(task_template=template))
    world.agents()
    (name,) = where(world, "job")
    world.set_spec(name, labels={})
    for _ in range(3):
        world.agents()
    assert where(world, "job") == [{"n1": "n2", "n2": "n1"}[name]]


def test_a_global_job_waits_where_there_is_not_enough_any_more() -> None:
    world = World(1)
    sized(world, "n1", cpus=2)
    template = msgspec.structs.replace(reserving(cpus=2).task_template)
    world.create(job(mode=ServiceMode(global_job=GlobalJob()), task_template=template))
    world.agents()
    sized(world, "n1", cpus=1)
    world.agents()
    (waiting,) = world.wanted("job")
    assert waiting.status.err == "no suitable node (insufficient resources on 1 node)"
    sized(world, "n1", cpus=2)
    world.agents()
    assert where(world, "job") == ["n1"]


def test_a_node_that_shrank_keeps_its_oldest_tasks() -> None:
    world = World(2)
    sized(world, "n1", cpus=2, memory=1 << 30)
    sized(world, "n2", cpus=8, memory=1 << 30)
    world.set_spec("n2", availability="drain")
    world.create(reserving(cpus=1, name="old"))
    world.now += 1
    world.create(reserving(cpus=1, name="young"))
    world.create(spec("free"))
    world.agents()
    world.set_spec("n2", availability="active")
    sized(world, "n1", cpus=1, memory=1 << 30)
    for _ in range(3):
        world.agents()
    assert [where(world, name) for name in ("old", "young", "free")] == [["n1"], ["n2"], ["n1"]]


def test_less_memory_counts_too() -> None:
    world = World(1)
    sized(world, "n1", memory=1 << 30)
    world.create(reserving(memory=1 << 29))
    world.agents()
    (task,) = world.wanted("web")
    sized(world, "n1", memory=1 << 28)
    world.agents()
    assert only(world, task) == (TaskState.REJECTED, *WORDS)


def test_a_device_that_was_taken_out_takes_its_task_along_and_no_other() -> None:
    world = equipped(("GPU=a", "GPU=b"), ("GPU=c",))
    world.create(asking_generic(3, discrete("GPU", 1)))
    world.agents()
    keeper = next(task for task in world.wanted("web") if names(task) == ["a"])
    loser = next(task for task in world.wanted("web") if names(task) == ["b"])
    equip(world, "n1", "GPU=a")
    world.agents()
    assert only(world, loser) == (TaskState.REJECTED, *WORDS)
    assert world.task(keeper).serving
    equip(world, "n2", "GPU=c", "GPU=d")
    world.agents()
    assert sorted(name for task in world.wanted("web") for name in names(task)) == ["a", "c", "d"]


def test_fewer_of_what_is_counted_are_enough_for_fewer_tasks() -> None:
    world = equipped(("SSD=4",))
    world.create(asking_generic(2, discrete("SSD", 2)))
    world.agents()
    equip(world, "n1", "SSD=3")
    world.agents()
    assert sorted(task.serving for task in world.wanted("web")) == [False, True]
    assert sum(task.status.state == TaskState.REJECTED for task in world.tasks("web")) == 1


def test_a_service_that_changed_its_constraints_moves_as_its_update_says() -> None:
    world = labelled("north", "north", "south", "south")
    update = UpdateConfig(parallelism=1, monitor=0)
    world.create(spec(replicas=4, constraints=["node.labels.zone==south"], update=update))
    world.agents()
    world.update("web", spec(replicas=4, constraints=[NORTH], update=update))
    least = 4
    for _ in range(12):
        world.agents()
        least = min(least, sum(task.serving for task in world.tasks("web")))
    assert least == 3
    assert where(world) == ["n1", "n1", "n2", "n2"]
    assert not any(task.evicted for task in world.tasks("web"))


def test_a_label_the_service_asks_for_no_more_may_go() -> None:
    world = labelled("north")
    world.create(spec(constraints=[NORTH]))
    world.agents()
    world.update("web", spec())
    before = world.wanted("web")
    world.set_spec("n1", labels={})
    assert world.wanted("web") == before


def test_drained_nodes_are_emptied_of_everything_and_filled_again() -> None:
    world = labelled("north", "south")
    world.create(spec("some", 4))
    world.create(everywhere("all"))
    world.create(job(2))
    world.agents()
    place = world.attach("plain", world.create_network("front").spec.name, "n2")
    world.set_spec("n2", availability="drain")
    for _ in range(4):
        world.agents()
    assert [where(world, name) for name in ("some", "all", "job")] == [["n1"] * 4, ["n1"], ["n1"] * 2]
    assert world.task(place).status.state == TaskState.RUNNING
    world.set_spec("n2", availability="active")
    world.agents()
    assert where(world, "all") == ["n1", "n2"]
    assert where(world, "some") == ["n1"] * 4  # nothing is moved for balance
    world.update("some", spec("some", 6))
    assert where(world, "some") == ["n1"] * 4 + ["n2"] * 2
