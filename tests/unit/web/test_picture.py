"""What is wanted and what kernels hold, composed into one picture and laid out."""

from collections.abc import Iterable

import msgspec
import pytest
from world import World, spec

from hivemesh.dataplane.plan.names import overlay_namespace, sandbox_namespace
from hivemesh.model.ids import NodeID
from hivemesh.model.task import TaskState
from hivemesh.web.compose import Seen
from hivemesh.wire.topology import Device, Item, Picture, Space
from sights import Swarm, a_swarm, picture_of, sights


def named(picture: Picture, kind: str, title: str) -> Item:
    (found,) = [item for item in picture.items if (item.kind, item.title) == (kind, title)]
    return found


def changed(world: World, node: str, namespace: str, **changes: object) -> dict[NodeID, Seen]:
    """What nodes tell, but for one namespace of one node."""
    seen = sights(world.view)
    identifier = world.node(node).id
    sight = seen[identifier].sight
    assert sight is not None
    spaces = [msgspec.structs.replace(s, **changes) if s.namespace == namespace else s for s in sight.spaces]
    return {**seen, identifier: Seen(sight=msgspec.structs.replace(sight, spaces=tuple(spaces)))}


def overlaps(items: Iterable[Item]) -> list[tuple[str, str]]:
    boxes = list(items)
    return [
        (a.title, b.title)
        for n, a in enumerate(boxes)
        for b in boxes[n + 1 :]
        if a.x < b.x + b.w and b.x < a.x + a.w and a.y < b.y + b.h and b.y < a.y + a.h
    ]


def test_small_swarm_shows_each_namespace_with_its_links_and_what_they_are_plugged_into() -> None:
    world = a_swarm()
    picture = picture_of(world)
    assert [item.title for item in picture.items if item.kind == "machine"] == ["n1", "n2", "n3"]
    assert {item.title for item in picture.items if item.kind == "service"} == {"web", "db"}
    assert [item.kind for item in picture.items].count("sandbox") == 4
    web = named(picture, "sandbox", "web.1")
    devices = [item.title for item in picture.items if item.parent == web.id]
    assert devices == ["eth0", "eth1", "eth2"]  # ingress, back, gateway
    ends = {link.source: link.target for link in picture.links if link.kind in ("veth", "way out")}
    back = overlay_namespace(world.network("back").id)
    assert ends[f"{web.id}/eth1"] == f"{web.node}/{back}/br0"
    assert ends[f"{web.id}/eth2"] == f"{web.node}//hm_gwbridge"
    assert dict(picture.summary) == {"nodes": "3/3", "services": "2", "tasks": "4/4", "networks": "2"}
    assert all(item.state == "good" for item in picture.items)


def test_service_leads_to_its_tasks_and_clients_to_what_is_published() -> None:
    picture = picture_of(a_swarm())
    web = named(picture, "service", "web")
    led = [link.target for link in picture.links if link.kind == "vip" and link.source == web.id]
    assert sorted(item.title for item in picture.items if item.id in led) == ["web.1", "web.2", "web.3"]
    assert [link.target for link in picture.links if link.kind == "publish"] == [web.id]
    assert (web.door, named(picture, "service", "db").door) == (":8080", "")
    assert "3/3" in web.note
    assert ":8080" in web.note


def test_each_tunnel_drops_onto_the_lane_of_its_network() -> None:
    world = a_swarm()
    picture = picture_of(world)
    boxes = {item.id: item for item in picture.items}
    lanes = {item.network: item for item in picture.items if item.kind == "lane"}
    tunnels = [link for link in picture.links if link.kind == "tunnel"]
    back = world.network("back").id
    assert {link.network for link in tunnels} == {world.network("ingress").id, back, ""}
    for link in tunnels:
        stop, end, lane = boxes[link.target], boxes[link.source], lanes[link.network]
        assert stop.y + stop.h / 2 == pytest.approx(lane.y + lane.h / 2, abs=0.2)
        assert stop.x + stop.w / 2 == pytest.approx(end.x + end.w / 2, abs=0.2)
        assert lane.x <= stop.x <= lane.x + lane.w


@pytest.mark.parametrize(("nodes", "detailed"), [(1, None), (3, True), (3, False), (7, None), (20, True)])
def test_boxes_lie_inside_their_parents_and_never_on_each_other(nodes: int, detailed: bool | None) -> None:
    picture = picture_of(a_swarm(nodes), detailed=detailed)
    boxes = {item.id: item for item in picture.items}
    for parent in {item.parent for item in picture.items}:
        inside = [i for i in picture.items if i.parent == parent and i.kind not in ("lane", "joint", "stop")]
        assert overlaps(inside) == []
        if parent:
            box = boxes[parent]
            for item in inside:
                assert box.x <= item.x
                assert item.x + item.w <= box.x + box.w + 0.2
                assert box.y <= item.y
                assert item.y + item.h <= box.y + box.h + 0.2
    assert all(item.x + item.w <= picture.width and item.y + item.h <= picture.height for item in picture.items)


def test_same_swarm_is_laid_out_the_same_and_a_new_task_moves_no_other_node() -> None:
    world = a_swarm()
    before = picture_of(world)
    assert picture_of(world) == before
    world.create(spec("late", 1, constraints=["node.hostname==n3"]))
    for _ in range(3):
        world.agents()
    after = picture_of(world)
    for kind, title in (("machine", "n1"), ("machine", "n2"), ("sandbox", "web.1")):
        then, now = named(before, kind, title), named(after, kind, title)
        assert (now.id, now.w, now.h) == (then.id, then.w, then.h)
    gap = named(before, "machine", "n2").x - named(before, "machine", "n1").x
    assert named(after, "machine", "n2").x - named(after, "machine", "n1").x == pytest.approx(gap)


def test_nodes_stand_in_as_many_rows_as_before_when_that_is_asked_for() -> None:
    world = a_swarm(4)
    for columns in (1, 2, 4):
        picture = picture_of(world, columns=columns)
        rows = {item.y for item in picture.items if item.kind == "machine"}
        assert (len(rows), picture.columns) == (4 // columns, columns)


def test_large_swarm_leaves_out_links_but_of_nodes_that_are_opened() -> None:
    world = Swarm(6)
    world.create_network("back")
    world.create(spec("web", 60, networks=["back"]))
    for _ in range(4):
        world.agents()
    picture = picture_of(world)
    assert [item for item in picture.items if item.kind == "device"] == []
    assert all(link.shy for link in picture.links if link.kind == "vip")
    first = world.node("n1").id
    opened = picture_of(world, opened=[first])
    assert {item.node for item in opened.items if item.kind == "device"} == {first}


def test_node_that_is_down_or_silent_says_so_and_its_tasks_are_faint() -> None:
    world = a_swarm()
    seen = sights(world.view)
    quiet = world.node("n2").id
    seen[quiet] = Seen(sight=seen[quiet].sight, silent="silent")
    machine = named(picture_of(world, seen), "machine", "n2")
    assert (machine.state, "silent" in machine.note) == ("warn", True)
    world.set_node("n3", state="down", message="heartbeat failure")
    picture = picture_of(world)
    machine = named(picture, "machine", "n3")
    assert (machine.state, "heartbeat failure" in machine.note) == ("bad", True)
    assert {item.state for item in picture.items if item.kind == "sandbox" and item.parent == machine.id} == {"idle"}


def test_namespace_that_is_missing_and_link_that_leads_nowhere_are_broken() -> None:
    world = a_swarm()
    task = next(task for task in world.tasks("web"))
    node = next(n.description.hostname for n in (world.node("n1"), world.node("n2"), world.node("n3"))
                if n.id == task.node_id)  # fmt: skip
    namespace = sandbox_namespace(task.id)
    seen = changed(world, node, namespace, devices=(), problem="the namespace is missing")
    item = named(picture_of(world, seen), "sandbox", f"web.{task.slot}")
    assert (item.state, item.facts[0]) == ("bad", ("problem", "the namespace is missing"))
    loose = (Device(name="eth0", kind="veth", peer="", plugged=""),)
    picture = picture_of(world, changed(world, node, namespace, devices=loose))
    assert named(picture, "sandbox", f"web.{task.slot}").facts[0] == ("problem", "eth0 leads nowhere")
    (end,) = [i for i in picture.items if i.kind == "device" and i.namespace == namespace]
    assert end.state == "bad"


def test_overlay_without_its_tunnel_device_is_broken_and_has_no_line() -> None:
    world = a_swarm()
    namespace = overlay_namespace(world.network("back").id)
    bridge = (Device(name="br0", kind="bridge"),)
    picture = picture_of(world, changed(world, "n1", namespace, devices=bridge))
    broken = [item for item in picture.items if item.kind == "overlay" and item.state == "bad"]
    assert [(item.title, item.node) for item in broken] == [("back", world.node("n1").id)]
    assert f"tunnel/{world.node('n1').id}/{world.network('back').id}" not in {link.id for link in picture.links}


def test_task_that_starts_is_on_its_way_and_the_service_counts_it_not() -> None:
    world = Swarm(1)
    world.create(spec("web", 2))
    world.settle()
    for task in world.tasks("web"):
        world.report(task, TaskState.PREPARING)
    picture = picture_of(world, {})
    assert {item.state for item in picture.items if item.kind == "sandbox"} == {"busy"}
    assert named(picture, "service", "web").state == "bad"
    first, second = world.tasks("web")
    world.report(first, TaskState.RUNNING)
    picture = picture_of(world, {})
    assert named(picture, "service", "web").note.startswith("1/2")
    assert named(picture, "service", "web").state == "busy"
    assert second.slot == 2


def test_container_of_a_node_alone_is_drawn_though_no_manager_knows_it() -> None:
    world = a_swarm(1)
    seen = sights(world.view)
    node = world.node("n1").id
    sight = seen[node].sight
    assert sight is not None
    own = Space(namespace="abc123", mark="hivemesh/sandbox/abc123xyz", devices=(Device(name="eth0", kind="bridge"),))
    seen[node] = Seen(sight=msgspec.structs.replace(sight, spaces=(*sight.spaces, own)))
    assert named(picture_of(world, seen), "sandbox", "abc123").state == "idle"


def test_nodes_are_in_the_order_people_count_in() -> None:
    picture = picture_of(Swarm(11))
    assert [item.title for item in picture.items if item.kind == "machine"] == [f"n{n}" for n in range(1, 12)]
