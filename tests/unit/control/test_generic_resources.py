"""Generic resources: parsed, counted, handed out once, taken back."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import World, spec

from hivemesh.control.stock import Stock
from hivemesh.model.errors import Invalid
from hivemesh.model.generic import GenericResource, discrete, environment, named, parse
from hivemesh.model.service import Reservations, Resources, RestartPolicy, ServiceSpec
from hivemesh.model.task import Task, TaskState

GPUS = ("GPU=a", "GPU=b", "GPU=c")


def asking(replicas: int, *asked: GenericResource, name: str = "web", delay: int = 0) -> ServiceSpec:
    wanted = spec(name, replicas, restart=RestartPolicy(delay=delay))
    resources = Resources(reservations=Reservations(generic_resources=asked))
    return msgspec.structs.replace(
        wanted, task_template=msgspec.structs.replace(wanted.task_template, resources=resources)
    )


def equipped(*nodes: tuple[str, ...]) -> World:
    world = World(len(nodes))
    for number, texts in enumerate(nodes, 1):
        equip(world, f"n{number}", *texts)
    return world


def equip(world: World, name: str, *texts: str) -> None:
    description = msgspec.structs.replace(world.node(name).description, hostname=name, generic=parse(texts))
    world.set_node(name, description=description)


def names(task: Task) -> list[str]:
    return [one.named_resource_spec.value for one in task.generic if one.named_resource_spec is not None]


# --- words --------------------------------------------------------------------------------------------------------


def test_numbers_count_and_anything_else_is_a_name() -> None:
    assert parse(["GPU=a", "SSD=3", " GPU = b "]) == (named("GPU", "a"), named("GPU", "b"), discrete("SSD", 3))
    assert parse([]) == ()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["GPU"], "'GPU': write NAME=COUNT or NAME=VALUE"),
        (["=3"], "'=3'"),
        (["GPU="], "'GPU='"),
        (["GPU=a,b"], "'GPU=a,b'"),
        (["G PU=a"], "'G PU=a'"),
        (["GPU=a\nb"], "invalid generic resource"),
        (["GPU=a", "GPU=2"], "GPU: give one count, or names only"),
        (["SSD=1", "SSD=2"], "SSD: give one count, or names only"),
        (["GPU=a", "GPU=a"], "GPU: a name is given twice"),
        (["SSD=-1"], "SSD=-1: the count is out of range"),
        (["SSD=9223372036854775808"], "the count is out of range"),
    ],
)
def test_what_no_node_can_have_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse(texts)
    assert words in str(refused.value)


def test_a_container_is_told_what_it_got() -> None:
    got = (named("gpu", "a"), discrete("SSD", 2), named("gpu", "b"))
    assert environment(got) == ("DOCKER_RESOURCE_GPU=a,b", "DOCKER_RESOURCE_SSD=2")
    assert environment(()) == ()


# --- scheduling ---------------------------------------------------------------------------------------------------


def test_tasks_go_where_enough_is_left_and_get_different_names() -> None:
    world = equipped(GPUS, (), ("GPU=d",))
    world.create(asking(2, discrete("GPU", 1), name="one"))
    world.create(asking(1, discrete("GPU", 2), name="two"))
    (two,) = world.tasks("two")
    assert two.node_id == world.node("n1").id
    got = [name for task in world.tasks() for name in names(task)]
    assert sorted(got) == sorted(set(got)) != []
    assert len(got) == 4
    world.create(asking(1, discrete("GPU", 1), name="three"))
    assert world.tasks("three")[0].status.err == "no suitable node (insufficient resources on 3 nodes)"
    world.remove("two")
    world.agents()
    assert names(world.tasks("three")[0]) == names(two)[:1]


def test_counted_resources_run_out() -> None:
    world = equipped(("SSD=3",), ("SSD=1",))
    world.create(asking(4, discrete("SSD", 2)))
    waiting = [task for task in world.tasks("web") if task.node_id is None]
    assert len(waiting) == 3
    assert {task.status.err for task in waiting} == {"no suitable node (insufficient resources on 2 nodes)"}
    (running,) = [task for task in world.tasks("web") if task.node_id]
    assert running.generic == (discrete("SSD", 2),)
    equip(world, "n2", "SSD=4")
    assert sum(task.node_id is not None for task in world.tasks("web")) == 3


def test_one_kind_named_twice_is_one_request() -> None:
    world = equipped(("SSD=3",))
    world.create(asking(1, discrete("SSD", 2), discrete("SSD", 2)))
    assert world.tasks("web")[0].node_id is None
    equip(world, "n1", "SSD=4")
    assert world.tasks("web")[0].generic == (discrete("SSD", 4),)


def test_asking_for_none_is_asking_for_nothing() -> None:
    world = equipped(())
    world.create(asking(1, discrete("SSD", 0)))
    (task,) = world.tasks("web")
    assert (task.node_id, task.generic) == (world.node("n1").id, ())


def test_a_failed_task_gives_back_what_it_held() -> None:
    world = equipped(("GPU=a",))
    world.create(asking(1, discrete("GPU", 1)))
    world.agents()
    for _ in range(3):
        (task,) = world.wanted("web")
        assert names(task) == ["a"]
        world.report(task, TaskState.RUNNING)
        world.report(task, TaskState.FAILED)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (named("GPU", "a"), "invalid argument for resource GPU: ask for a number of them, such as GPU=1"),
        (GenericResource(), "invalid argument for resource : ask for a number"),
        (discrete("", 1), "expected a name and a count"),
        (discrete("GPU", -1), "invalid argument for resource GPU: expected a name and a count, not -1"),
    ],
)
def test_a_service_asks_by_number(asked: GenericResource, words: str) -> None:
    world = equipped(GPUS)
    with pytest.raises(Invalid) as refused:
        world.create(asking(1, asked))
    assert words in str(refused.value)
    assert not world.view.all(Task)


KINDS = st.sampled_from(["GPU", "SSD", "NIC"])


@given(
    have=st.lists(st.sampled_from(["GPU=a", "GPU=b", "GPU=c", "SSD=3", "NIC=x"]), unique=True),
    asks=st.lists(st.lists(st.tuples(KINDS, st.integers(0, 3)), max_size=3), max_size=6),
)
def test_nothing_is_handed_out_twice_and_everything_can_be(have: list[str], asks: list[list[tuple[str, int]]]) -> None:
    resources = parse(have)
    stock, given_out = Stock(resources), list[GenericResource]()
    for ask in asks:
        asked = [discrete(kind, count) for kind, count in ask]
        if stock.has(asked):
            chosen = stock.choose(asked)
            assert stock.holds(chosen)
            stock.take(chosen)
            given_out += chosen
    found = [one.named_resource_spec for one in given_out if one.named_resource_spec is not None]
    assert len(found) == len(set(found))
    assert Stock(resources).holds(given_out)
