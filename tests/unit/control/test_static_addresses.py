"""Addresses that services insist on: kept for them, given to one task at a time, refused where they cannot be had."""

from ipaddress import ip_address

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import World, everywhere, job, spec

from hivemesh.control.addresses import kept
from hivemesh.control.grants import Grants
from hivemesh.model.addr import Address, address_of
from hivemesh.model.errors import Conflict, HivemeshError, Invalid, Unsupported
from hivemesh.model.service import NetworkAttachmentConfig, RestartPolicy, Service, ServiceSpec, UpdateConfig
from hivemesh.model.task import Task, TaskState

SUBNET = "10.9.0.0/24"
DB = "10.9.0.50"


def fixed(name: str = "db", replicas: int = 1, *, image: str = "sql", **options: str) -> ServiceSpec:
    return on_back(spec(name, replicas, image=image, restart=RestartPolicy(delay=0)), **(options or {"ip": DB}))


def on_back(wanted: ServiceSpec, /, **options: str) -> ServiceSpec:
    attachment = NetworkAttachmentConfig(target="back", driver_opts=options)
    template = msgspec.structs.replace(wanted.task_template, networks=(attachment,))
    return msgspec.structs.replace(wanted, task_template=template)


def world_with_back(nodes: int = 2, *, ipv6: bool = False) -> World:
    world = World(nodes)
    world.create_network("back", SUBNET, *(["fd09::/64"] if ipv6 else []), ipv6=ipv6)
    return world


def addresses(task: Task) -> list[str]:
    return [str(address_of(interface)) for attachment in task.attachments for interface in attachment.addresses]


def settle(world: World, rounds: int = 4) -> None:
    for _ in range(rounds):
        world.agents()


def test_the_task_has_the_address() -> None:
    world = world_with_back()
    world.create(fixed())
    world.agents()
    (task,) = world.wanted("db")
    assert (task.serving, addresses(task)) == (True, [DB])
    (vip,) = world.service("db").vips
    assert str(address_of(vip.addresses[0])) != DB


def test_both_families_can_be_chosen_under_either_name() -> None:
    world = world_with_back(ipv6=True)
    world.create(on_back(spec("db"), **{"hivemesh.ip": DB, "hivemesh.ip6": "fd09::50"}))
    world.create(fixed("only6", ip6="fd09::60"))
    assert addresses(world.tasks("db")[0]) == [DB, "fd09::50"]
    assert addresses(world.tasks("only6")[0])[1] == "fd09::60"


def test_a_replacement_waits_until_its_predecessor_is_gone_and_has_the_same_address() -> None:
    world = world_with_back()
    world.create(fixed())
    world.agents()
    (old,) = world.wanted("db")
    world.update("db", fixed(image="sql:2"))
    (new,) = world.wanted("db")
    assert (new.status.state, addresses(new)) == (TaskState.NEW, [])
    assert new.status.err == f"network back: address {DB} is already in use or reserved"
    world.report(old, TaskState.SHUTDOWN)
    settle(world)
    (new,) = world.wanted("db")
    assert (new.serving, addresses(new), new.status.err) == (True, [DB], "")


def test_a_failed_task_passes_its_address_on() -> None:
    world = world_with_back()
    world.create(fixed())
    world.agents()
    for _ in range(3):
        (task,) = world.wanted("db")
        world.report(task, TaskState.RUNNING)
        world.report(task, TaskState.FAILED)
        settle(world)
        assert [addresses(task) for task in world.wanted("db")] == [[DB]]


def test_the_address_stays_free_while_nothing_runs() -> None:
    world = world_with_back()
    world.create(fixed(replicas=0, ip="10.9.0.3"))
    world.create(on_back(spec("many", 20)))
    assert "10.9.0.3" not in [text for task in world.tasks("many") for text in addresses(task)]
    world.update("db", fixed(replicas=1, ip="10.9.0.3"))
    assert addresses(world.wanted("db")[0]) == ["10.9.0.3"]
    world.remove("db")
    world.agents()
    world.create(fixed("other", ip="10.9.0.3"))
    assert addresses(world.wanted("other")[0]) == ["10.9.0.3"]


def test_plain_containers_are_refused_what_is_kept() -> None:
    world = world_with_back()
    world.create(fixed(replicas=0))
    back, db = world.network("back"), world.service("db")
    with pytest.raises(Conflict, match=f"network back: address {DB} is kept for service db"):
        world.change(lambda tx: Grants(tx, world.new_id).addresses(back, [ip_address(DB)]))
    given = world.change(lambda tx: Grants(tx, world.new_id).addresses(back, [ip_address(DB)], owner=db.id))
    assert [str(address_of(interface)) for interface in given] == [DB]


def test_another_address_is_had_at_once_and_the_old_one_is_free_after_it() -> None:
    world = world_with_back()
    world.create(fixed())
    world.agents()
    world.update("db", fixed(ip="10.9.0.51"))
    settle(world)
    assert [addresses(task) for task in world.wanted("db")] == [["10.9.0.51"]]
    with pytest.raises(Conflict, match="already in use by service db"):  # the update may still fail
        world.create(fixed("next"))
    world.wait(6)
    world.create(fixed("next"))
    assert addresses(world.wanted("next")[0]) == [DB]


def test_a_failed_update_goes_back_to_the_address_of_before() -> None:
    world = world_with_back()
    world.create(fixed())
    world.agents()
    back = msgspec.structs.replace(
        fixed(image="bad", ip="10.9.0.51"), update_config=UpdateConfig(failure_action="rollback")
    )
    world.update("db", back)
    world.agents()
    world.agents()
    (bad,) = world.wanted("db")
    assert addresses(bad) == ["10.9.0.51"]
    world.create(on_back(spec("many", 240)))
    world.report(bad, TaskState.FAILED)
    settle(world)
    (task,) = world.wanted("db")
    assert (task.serving, addresses(task), task.spec.container_spec.image) == (True, [DB], "sql")


def test_a_service_made_anew_waits_for_the_tasks_of_the_one_before() -> None:
    world = world_with_back()
    world.create(fixed())
    world.agents()
    (old,) = world.tasks("db")
    world.remove("db")
    world.create(fixed())
    assert [task.status.state for task in world.wanted("db")] == [TaskState.NEW]
    world.report(old, TaskState.SHUTDOWN)
    settle(world)
    assert [addresses(task) for task in world.wanted("db")] == [[DB]]


def test_the_address_moves_off_a_node_that_is_down_and_its_old_task_stays_given_up() -> None:
    world = world_with_back()
    world.create(fixed())
    world.agents()
    (old,) = world.wanted("db")
    down = next(name for name in ("n1", "n2") if world.node(name).id == old.node_id)
    world.set_node(down, state="down")
    settle(world)
    (new,) = world.wanted("db")
    assert (new.serving, addresses(new)) == (True, [DB])
    assert new.node_id != old.node_id
    given_up = world.task(old)
    assert given_up.status.state == TaskState.ORPHANED
    assert given_up.status.err == f"the node is down; task {new.id} has its address {DB} now"
    world.set_node(down, state="ready")
    world.report(old, TaskState.RUNNING)
    settle(world)
    assert world.task(old).status.state == TaskState.ORPHANED
    assert [task.id for task in world.wanted("db")] == [new.id]


def test_other_tasks_of_a_node_that_is_down_keep_their_addresses() -> None:
    world = world_with_back()
    world.create(on_back(spec("web", 2, restart=RestartPolicy(delay=0))))
    world.agents()
    world.set_node("n2", state="down")
    settle(world)
    assert not [task for task in world.tasks("web") if task.status.state == TaskState.ORPHANED]


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        (
            fixed(replicas=2),
            Invalid,
            "network back: a static address is for one task: use mode replicated with at most 1",
        ),
        (on_back(everywhere("db"), ip=DB), Invalid, "a static address is for one task"),
        (on_back(job(), ip=DB), Invalid, "a static address is for one task"),
        (fixed(ip="10.8.0.1"), Invalid, "invalid address 10.8.0.1: It does not belong to network back (10.9.0.0/24)"),
        (fixed(ip="10.9.0.1"), Conflict, "network back: address 10.9.0.1 is reserved"),
        (fixed(ip="10.9.0.0"), Conflict, "address 10.9.0.0 is reserved"),
        (fixed(ip="10.9.0.255"), Conflict, "address 10.9.0.255 is reserved"),
        (fixed(ip="fd09::1"), Invalid, "driver option 'ip' is for IPv4, not for fd09::1"),
        (fixed(ip6=DB), Invalid, "driver option 'ip6' is for IPv6"),
        (fixed(ip6="fd09::1"), Invalid, "invalid address fd09::1: It does not belong to network back"),
        (fixed(ip="10.9.0"), Invalid, "invalid address in driver option 'ip' of network back '10.9.0'"),
        (fixed(ip=""), Invalid, "invalid address in driver option 'ip'"),
        (on_back(spec("db"), **{"ip": DB, "hivemesh.ip": DB}), Invalid, "two static addresses of one family"),
        (fixed(ip=DB, mac="x"), Unsupported, "network back: driver option 'mac' of a service is not supported: use ip"),
        (
            msgspec.structs.replace(fixed(), update_config=UpdateConfig(order="start-first")),
            Invalid,
            "UpdateConfig: order start-first would need the static address of network back twice: use stop-first",
        ),
        (
            msgspec.structs.replace(fixed(), rollback_config=UpdateConfig(order="start-first")),
            Invalid,
            "RollbackConfig: order start-first",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_made(
    wanted: ServiceSpec, error: type[HivemeshError], words: str
) -> None:
    world = world_with_back()
    with pytest.raises(error) as refused:
        world.create(wanted)
    assert words in str(refused.value)
    assert not world.view.all(Task)


def test_addresses_of_others_are_refused_by_their_names() -> None:
    world = world_with_back()
    world.create(on_back(spec("web")))
    world.attach("shell", "back", "n1")
    world.create(fixed())
    world.agents()
    (web,) = world.tasks("web")
    taken = {
        addresses(web)[0]: f"task {web.name}",
        str(address_of(world.service("web").vips[0].addresses[0])): "the virtual address of service web",
        DB: "service db",
        addresses(next(task for task in world.tasks() if task.attached))[0]: "container shell",
        str(address_of(world.node("n1").attachments[1].addresses[0])): "node n1",
    }
    for address, owner in taken.items():
        with pytest.raises(Conflict) as refused:
            world.create(fixed("next", ip=address))
        assert str(refused.value) == f"network back: address {address} is already in use by {owner}"
    assert len(taken) == 5


def test_scaling_above_one_is_refused_and_leaves_the_task_alone() -> None:
    world = world_with_back()
    world.create(fixed())
    world.agents()
    before = world.wanted("db")
    with pytest.raises(Invalid, match="a static address is for one task"):
        world.update("db", fixed(replicas=3))
    assert world.wanted("db") == before
    world.update("db", fixed(replicas=0))
    world.agents()
    assert world.wanted("db") == []


ADDRESSES = st.sampled_from([f"10.9.0.{number}" for number in range(2, 10)])
STEPS = st.one_of(
    st.tuples(st.just("pin"), st.sampled_from("abc"), ADDRESSES),
    st.tuples(st.just("plain"), st.sampled_from("def"), st.integers(0, 3)),
    st.tuples(st.just("remove"), st.sampled_from("abcdef"), st.none()),
    st.tuples(st.sampled_from(["down", "up"]), st.sampled_from(["n1", "n2"]), st.none()),
    st.tuples(st.just("run"), st.none(), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=12))
def test_no_address_ever_has_two_owners_nor_another_than_its_keeper(
    steps: list[tuple[str, str | None, str | int | None]],
) -> None:
    world = World(2)
    world.create_network("back", "10.9.0.0/28")
    for verb, name, value in steps:
        try:
            _step(world, verb, name or "", value)
        except HivemeshError:
            continue  # refused: nothing changed
        finally:
            _check(world)


def _step(world: World, verb: str, name: str, value: str | int | None) -> None:
    there = {service.spec.name for service in world.view.all(Service)}
    match verb:
        case "pin" | "plain":
            wanted = fixed(name, ip=str(value)) if verb == "pin" else on_back(spec(name, int(value or 0)))
            _ = world.update(name, wanted) if name in there else world.create(wanted)
        case "remove" if name in there:
            world.remove(name)
        case "down" | "up":
            world.set_node(name, state="down" if verb == "down" else "ready")
        case "run":
            world.agents()


def _check(world: World) -> None:
    back = world.network("back")
    owners: dict[Address, str] = {}
    keepers = {address: service.id for address, service in kept(world.view, back.id).items()}
    for task in world.tasks():
        for attachment in task.attachments:
            if task.status.state.dead or attachment.network_id != back.id:
                continue
            for interface in attachment.addresses:
                address = address_of(interface)
                assert owners.setdefault(address, task.id) == task.id
                assert keepers.get(address, task.service_id) == task.service_id or task.desired > TaskState.RUNNING
