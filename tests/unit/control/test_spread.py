"""Spread preferences: tasks go evenly over branches of nodes, not over nodes."""

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import World, spec

from hivemesh.control.constraints import ATTRIBUTES
from hivemesh.model.node import Node
from hivemesh.model.service import Placement, PlacementPreference, ServiceSpec, SpreadOver
from hivemesh.model.task import Task


def spread(
    replicas: int, *over: str, name: str = "web", constraints: tuple[str, ...] = (), most: int = 0
) -> ServiceSpec:
    wanted = spec(name, replicas)
    placement = Placement(
        constraints=constraints,
        max_replicas=most,
        preferences=tuple(PlacementPreference(spread=SpreadOver(spread_descriptor=key)) for key in over),
    )
    return msgspec.structs.replace(
        wanted, task_template=msgspec.structs.replace(wanted.task_template, placement=placement)
    )


def zoned(*zones: str) -> World:
    """`n1` in the first zone, `n2` in the second, …; a zone "-" is no label. "north/1" is zone and rack."""
    world = World(1)
    for number, text in enumerate(zones, 1):
        zone, _, rack = text.partition("/")
        labels = {} if zone == "-" else {"zone": zone} | ({"rack": rack} if rack else {})
        if number == 1:
            world.set_spec("n1", labels=labels)
        else:
            world.add_node(number, **labels)
    return world


def placed(world: World, label: str = "zone", name: str = "web") -> Counter[str]:
    """Tasks by the label of their nodes."""
    return Counter(node_of(world, task).spec.labels.get(label, "") for task in world.wanted(name) if task.node_id)


def node_of(world: World, task: Task) -> Node:
    assert task.node_id is not None
    found = world.view.get(Node, task.node_id)
    assert found is not None
    return found


def test_zones_get_as_many_tasks_however_many_nodes_they_have() -> None:
    world = zoned("north", "north", "north", "south")
    world.create(spread(6, "node.labels.zone"))
    assert placed(world) == {"north": 3, "south": 3}
    plain = zoned("north", "north", "north", "south")
    plain.create(spread(8))
    assert placed(plain) == {"north": 6, "south": 2}


def test_nodes_without_the_label_are_a_branch_of_their_own() -> None:
    world = zoned("north", "south", "-", "-")
    world.create(spread(6, "node.labels.zone"))
    assert placed(world) == {"north": 2, "south": 2, "": 2}


def test_inner_preferences_spread_inside_each_branch() -> None:
    world = zoned("north/1", "north/1", "north/2", "south/1", "south/2", "south/2")
    world.create(spread(8, "node.labels.zone", "node.labels.rack"))
    by_both = Counter(
        (node_of(world, task).spec.labels["zone"], node_of(world, task).spec.labels["rack"])
        for task in world.wanted("web")
    )
    assert by_both == {("north", "1"): 2, ("north", "2"): 2, ("south", "1"): 2, ("south", "2"): 2}


def test_a_branch_where_nothing_fits_is_passed_over_and_its_tasks_still_count() -> None:
    world = zoned("north", "south")
    world.create(spread(4, "node.labels.zone"))
    world.set_spec("n2", availability="pause", labels={"zone": "south"})
    world.add_node(3, zone="south")
    world.update("web", spread(6, "node.labels.zone"))
    assert placed(world) == {"north": 3, "south": 3}
    world.set_spec("n3", availability="pause", labels={"zone": "south"})
    world.update("web", spread(8, "node.labels.zone"))
    assert placed(world) == {"north": 5, "south": 3}


def test_preferences_are_wishes_and_constraints_are_not() -> None:
    world = zoned("north", "south", "south")
    world.create(spread(4, "node.labels.zone", constraints=("node.labels.zone==south",)))
    assert placed(world) == {"south": 4}


def test_other_services_do_not_count_for_a_branch() -> None:
    world = zoned("north", "south")
    world.create(spread(5, name="other", constraints=("node.labels.zone==north",)))
    world.create(spread(2, "node.labels.zone"))
    assert placed(world) == {"north": 1, "south": 1}


@pytest.mark.parametrize("key", [*ATTRIBUTES, "engine.labels.disk", "NODE.LABELS.zone"])
def test_everything_constraints_know_can_be_spread_over(key: str) -> None:
    world = zoned("north", "south")
    world.create(spread(2, key))
    assert all(task.node_id for task in world.tasks("web"))


def test_changed_preferences_move_nothing_that_runs() -> None:
    world = zoned("north", "north", "south")
    world.create(spread(3))
    world.agents()
    before = {task.id for task in world.wanted("web")}
    world.update("web", spread(3, "node.labels.zone"))
    for _ in range(3):
        world.agents()
    assert {task.id for task in world.wanted("web")} == before


@given(
    zones=st.lists(st.sampled_from(["a", "b", "c", "-"]), min_size=1, max_size=6),
    replicas=st.integers(0, 12),
    paused=st.sets(st.integers(0, 5), max_size=3),
)
def test_open_zones_never_differ_by_more_than_one_task(zones: list[str], replicas: int, paused: set[int]) -> None:
    world = zoned(*zones)
    closed = {index for index in paused if index < len(zones)}
    for index in closed:
        world.set_spec(f"n{index + 1}", availability="pause", labels=world.node(f"n{index + 1}").spec.labels)
    world.create(spread(replicas, "node.labels.zone"))
    open_ = {zone.strip("-") for index, zone in enumerate(zones) if index not in closed}
    counts = [placed(world)[zone] for zone in open_]
    assert sum(counts) == (replicas if open_ else 0)
    assert not counts or max(counts) - min(counts) <= 1
