"""Replicas in slots: how many, restarts, lost nodes, updates, history."""

from collections import Counter

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from world import SECOND, World, publish, spec

from hivemesh.control import services
from hivemesh.model.errors import HivemeshError, OutOfSequence
from hivemesh.model.network import Network
from hivemesh.model.node import Node
from hivemesh.model.service import RestartPolicy, Service, UpdateConfig
from hivemesh.model.task import Task, TaskState

RUNNING, FAILED, COMPLETE = TaskState.RUNNING, TaskState.FAILED, TaskState.COMPLETE
SHUTDOWN, REMOVE, READY = TaskState.SHUTDOWN, TaskState.REMOVE, TaskState.READY
ORPHANED = TaskState.ORPHANED


def test_a_new_service_has_assigned_tasks_in_one_commit() -> None:
    world = World()
    world.create(spec(replicas=3))
    tasks = world.tasks("web")
    assert [task.slot for task in tasks] == [1, 2, 3]
    assert {task.status.state for task in tasks} == {TaskState.ASSIGNED}
    assert len({task.node_id for task in tasks}) == 3
    assert {task.version for task in tasks} == {world.service("web").version}
    assert world.at_rest()


def test_scaling_up_fills_the_lowest_slots() -> None:
    world = World()
    world.create(spec(replicas=4))
    world.agents()
    first, second, *_ = world.tasks("web")
    world.update("web", spec(replicas=2))
    kept = {task.slot for task in world.wanted("web")}
    world.agents()
    world.update("web", spec(replicas=4))
    assert {task.slot for task in world.wanted("web")} == {1, 2, 3, 4}
    assert {first.slot, second.slot} | kept <= {1, 2, 3, 4}


def test_scaling_down_takes_tasks_that_do_not_run_first_then_from_the_fullest_node() -> None:
    world = World(2)
    world.create(spec(replicas=4))
    world.agents()
    world.add_node(3)
    world.update("web", spec(replicas=6))
    placed = Counter(task.node_id for task in world.wanted("web"))
    assert sorted(placed.values()) == [2, 2, 2]
    world.update("web", spec(replicas=4))  # the two on n3 do not run yet
    assert world.node("n3").id not in {task.node_id for task in world.wanted("web")}
    world.update("web", spec(replicas=2))
    assert len({task.node_id for task in world.wanted("web")}) == 2
    assert {task.desired for task in world.tasks("web") if not task.wanted} == {REMOVE}
    world.agents()
    assert len(world.tasks("web")) == 2


def test_scaling_to_zero_and_back() -> None:
    world = World()
    world.create(spec(replicas=2))
    world.agents()
    world.update("web", spec(replicas=0))
    world.agents()
    assert world.tasks("web") == []
    world.update("web", spec(replicas=1))
    assert len(world.wanted("web")) == 1


def test_scaling_leaves_running_tasks_alone() -> None:
    world = World()
    world.create(spec(replicas=2))
    world.agents()
    before = world.tasks("web")
    world.update("web", spec(replicas=5))
    assert [world.task(task) for task in before] == before


def test_a_removed_service_is_gone_at_once_and_its_tasks_drain() -> None:
    world = World()
    world.create(spec(replicas=2, ports=[publish(8090)]))
    world.agents()
    world.remove("web")
    assert {task.desired for task in world.tasks()} == {REMOVE}
    world.create(spec(replicas=1, ports=[publish(8090)]))
    world.agents()
    assert len(world.tasks()) == 1
    assert world.at_rest()


def test_a_failed_task_is_replaced_after_the_delay() -> None:
    world = World()
    world.create(spec(restart=RestartPolicy(delay=5 * SECOND)))
    world.agents()
    (old,) = world.tasks("web")
    world.report(old, FAILED, err="task: non-zero exit (1)")
    assert world.task(old).desired == SHUTDOWN
    (new,) = world.wanted("web")
    assert (new.slot, new.desired) == (old.slot, READY)
    assert new.start_after == world.wake == world.now + 5
    world.agents()
    assert world.task(new).status.state == READY
    world.wait(4.9)
    assert world.task(new).desired == READY
    world.wait(0.2)
    assert world.task(new).desired == RUNNING
    world.agents()
    assert world.task(new).serving


def test_a_leader_with_an_earlier_clock_waits_for_nobody_and_makes_younger_tasks() -> None:
    world = World()
    world.create(spec(restart=RestartPolicy(delay=5 * SECOND)))
    world.agents()
    world.report(world.tasks("web")[0], FAILED)
    world.now -= 600  # another manager leads
    world.settle()
    (new,) = world.wanted("web")
    assert new.desired == RUNNING
    world.agents()
    for _ in range(3):
        (old,) = world.wanted("web")
        world.report(old, FAILED)
        world.settle()
        (new,) = world.wanted("web")
        assert new.created > old.created
        world.wait(5.1)
        world.agents()
        assert world.task(new).serving


def test_a_task_that_is_refused_before_its_turn_gets_a_successor_at_that_turn() -> None:
    world = World()
    world.create(spec(restart=RestartPolicy(delay=5 * SECOND)))
    world.report(world.tasks("web")[0], TaskState.REJECTED, err="no such image")
    (early,) = world.wanted("web")
    world.report(early, TaskState.REJECTED, err="no such image")
    assert world.wanted("web") == []
    assert world.wake == early.start_after
    world.wait(5.1)
    (late,) = world.wanted("web")
    assert late.start_after == world.now + 5


def test_no_delay_means_at_once() -> None:
    world = World()
    world.create(spec(restart=RestartPolicy(delay=0)))
    world.agents()
    world.report(world.tasks("web")[0], FAILED)
    (new,) = world.wanted("web")
    assert new.desired == RUNNING


@pytest.mark.parametrize(
    ("condition", "state", "restarted"),
    [
        ("any", COMPLETE, True),
        ("any", FAILED, True),
        ("on-failure", COMPLETE, False),
        ("on-failure", FAILED, True),
        ("on-failure", TaskState.REJECTED, True),
        ("none", COMPLETE, False),
        ("none", FAILED, False),
    ],
)
def test_the_restart_condition_decides(condition: str, state: TaskState, restarted: bool) -> None:
    world = World()
    policy = msgspec.convert({"Condition": condition, "Delay": 0}, RestartPolicy)
    world.create(spec(restart=policy))
    world.agents()
    (old,) = world.tasks("web")
    world.report(old, state)
    assert bool(world.wanted("web")) is restarted
    assert world.task(old).desired == SHUTDOWN
    assert world.at_rest()
    world.wait(100_000)
    assert bool(world.wanted("web")) is restarted
    world.update("web", spec(image="other", restart=policy))  # a new version is a new chance
    assert len(world.wanted("web")) == 1


def test_attempts_are_counted_within_the_window() -> None:
    world = World()
    policy = RestartPolicy(delay=0, max_attempts=2, window=60 * SECOND)
    world.create(spec(restart=policy))

    def fail() -> bool:
        world.wait(10)
        world.report(world.wanted("web")[0], FAILED)
        return bool(world.wanted("web"))

    assert fail()
    world.wait(100)
    assert [fail(), fail(), fail()] == [True, True, False]
    world.wait(1000)
    assert not world.wanted("web")
    assert len(world.tasks("web")) <= 5


def test_tasks_of_a_lost_node_are_replaced_elsewhere_after_the_delay() -> None:
    world = World()
    world.create(spec(replicas=3))
    world.agents()
    lost = next(task for task in world.tasks("web") if task.node_id == world.node("n2").id)
    world.set_node("n2", state="down")
    (new,) = [task for task in world.wanted("web") if task.slot == lost.slot]
    assert new.node_id not in (None, lost.node_id)
    assert new.desired == READY
    world.wait(5)
    assert world.task(new).desired == RUNNING  # nobody can say when the old one stopped
    assert world.task(lost).desired == SHUTDOWN
    assert set(world.task(lost).attachments[:1]).isdisjoint(new.attachments)
    world.set_node("n2", state="ready")
    world.agents()
    assert world.task(lost).status.state == SHUTDOWN
    assert len([task for task in world.tasks("web") if task.serving]) == 3


def test_tasks_of_a_node_that_stays_down_are_given_up_after_a_day_with_their_addresses() -> None:
    world = World()
    world.create(spec(replicas=3))
    world.agents()
    lost = next(task for task in world.tasks("web") if task.node_id == world.node("n2").id)
    world.set_node("n2", state="down")
    world.wait(24 * 3600 - 1)
    assert world.task(lost).status.state == RUNNING
    assert world.wake == world.now + 1
    world.wait(1)
    status = world.task(lost).status
    assert (status.state, status.err) == (ORPHANED, "the node is down: heartbeat failure")
    world.set_node("n2", state="ready")
    world.report(lost, RUNNING)  # it was given up: the node's word comes too late
    assert world.task(lost).status.state == ORPHANED
    world.agents()
    assert len([task for task in world.tasks("web") if task.serving]) == 3


def test_a_node_that_comes_back_in_time_may_go_down_again_for_as_long() -> None:
    world = World()
    world.create(spec(replicas=3))
    world.agents()
    world.set_node("n2", state="down")
    world.wait(23 * 3600)
    world.set_node("n2", state="ready")
    assert world.node("n2").lost_at == 0.0
    world.set_node("n2", state="down")
    world.set_node("n2", state="down")
    assert world.node("n2").lost_at == world.now + 24 * 3600


def test_a_plain_container_keeps_its_place_while_its_node_is_down() -> None:
    world = World()
    world.create_network("back")
    place = world.attach("box", "back", "n2")
    world.set_node("n2", state="down")
    world.wait(48 * 3600)
    assert world.task(place).status.state == RUNNING


def test_draining_a_node_moves_its_tasks_at_once() -> None:
    world = World()
    world.create(spec(replicas=3))
    world.agents()
    world.set_spec("n2", availability="drain")
    assert all(task.start_after <= world.now for task in world.wanted("web"))
    world.agents()
    serving = [task for task in world.tasks("web") if task.serving]
    assert len(serving) == 3
    assert world.node("n2").id not in {task.node_id for task in serving}


def test_a_paused_node_keeps_its_tasks_and_gets_no_more() -> None:
    world = World()
    world.create(spec(replicas=3))
    world.agents()
    before = world.tasks("web")
    world.set_spec("n2", availability="pause")
    assert world.tasks("web") == before
    world.update("web", spec(replicas=9))
    assert Counter(task.node_id for task in world.wanted("web"))[world.node("n2").id] == 1


def test_tasks_of_a_removed_node_are_orphaned_and_replaced() -> None:
    world = World()
    world.create(spec(replicas=3))
    world.agents()
    node = world.node("n3")
    (old,) = world.view.tasks_on(node.id)
    world.change(lambda tx: tx.delete(node))
    assert world.task(old).status.state == TaskState.ORPHANED
    world.wait(5)
    world.agents()
    assert len([task for task in world.tasks("web") if task.serving]) == 3


def test_a_label_taken_away_moves_the_task() -> None:
    world = World(1)
    world.add_node(2, zone="north")
    world.create(spec(constraints=["node.labels.zone==north"]))
    world.agents()
    world.add_node(3, zone="north")
    world.set_spec("n2", labels={})
    world.agents()
    (task,) = [task for task in world.tasks("web") if task.serving]
    assert task.node_id == world.node("n3").id


def test_an_update_replaces_one_after_the_other_stopping_first() -> None:
    world = World()
    world.create(spec(replicas=3))
    world.agents()
    world.update("web", spec(replicas=3, image="new"))
    for _ in range(3):
        tasks = world.tasks("web")
        assert len([task for task in tasks if task.serving]) == 2
        (leaving,) = [task for task in tasks if task.desired == SHUTDOWN and not task.status.state.dead]
        (coming,) = [task for task in tasks if task.desired == READY]
        assert coming.slot == leaving.slot
        world.report(coming, READY)
        assert world.task(coming).desired == READY  # the old one still runs
        world.report(leaving, SHUTDOWN)
        assert world.task(coming).desired == RUNNING
        world.report(coming, RUNNING)
    assert [task.spec.container_spec.image for task in world.wanted("web")] == ["new"] * 3
    assert world.at_rest()


@pytest.mark.parametrize(("parallelism", "moving"), [(2, 2), (0, 5)])
def test_an_update_moves_so_many_at_a_time(parallelism: int, moving: int) -> None:
    world = World()
    world.create(spec(replicas=5))
    world.agents()
    world.update("web", spec(replicas=5, image="new", update=UpdateConfig(parallelism=parallelism)))
    assert len([task for task in world.tasks("web") if task.desired == SHUTDOWN]) == moving


def test_an_update_waits_its_delay_between_tasks() -> None:
    world = World()
    update = UpdateConfig(delay=10 * SECOND)
    world.create(spec(replicas=2, update=update))
    world.agents()
    world.wait(100)
    world.update("web", spec(replicas=2, image="new", update=update))
    world.agents()
    assert len([task for task in world.tasks("web") if task.desired == SHUTDOWN]) == 1
    assert world.wake == world.now + 10
    world.wait(10)
    assert len([task for task in world.tasks("web") if task.desired == SHUTDOWN]) == 2


def test_an_update_that_fails_goes_no_further_until_the_next() -> None:
    world = World()
    quick = RestartPolicy(delay=0)
    world.create(spec(replicas=3, restart=quick))
    world.agents()
    world.update("web", spec(replicas=3, image="broken", restart=quick))
    for _ in range(4):
        for task in world.tasks("web"):
            if task.desired == SHUTDOWN and not task.status.state.dead:
                world.report(task, SHUTDOWN)
            elif task.wanted and task.spec.container_spec.image == "broken":
                world.report(task, TaskState.REJECTED, err="no such image")
    assert len([task for task in world.tasks("web") if task.serving]) == 2
    world.update("web", spec(replicas=3, image="good", restart=quick))
    for _ in range(3):
        world.agents()
    assert [task.spec.container_spec.image for task in world.tasks("web") if task.serving] == ["good"] * 3


def test_a_change_of_ports_makes_new_tasks_and_of_labels_none() -> None:
    world = World()
    world.create(spec())
    world.agents()
    before = world.wanted("web")
    world.update("web", msgspec.structs.replace(spec(), labels={"team": "red"}))
    assert world.wanted("web") == before
    world.update("web", spec(ports=[publish(8090)]))
    for _ in range(3):
        world.agents()
    (task,) = world.wanted("web")
    assert task.ports == world.service("web").ports != ()


def test_an_update_of_an_old_version_is_refused() -> None:
    world = World()
    made = world.create(spec())
    world.update("web", spec(replicas=2))
    with pytest.raises(OutOfSequence, match="update out of sequence"):
        world.change(lambda tx: services.update(tx, "web", made.version, spec(), world.now))


def test_an_update_of_what_only_the_managers_have_written_to_since_is_taken() -> None:
    world = World()
    world.create(spec(image="one"))
    read = world.update("web", spec(image="two"))
    for _ in range(5):
        world.agents()
        world.wait(6)
    assert world.service("web").version > read.version, "the state of the update is told"
    world.change(lambda tx: services.update(tx, "web", read.version, spec(image="three"), world.now))
    with pytest.raises(OutOfSequence):
        world.change(lambda tx: services.update(tx, "web", read.version, spec(image="four"), world.now))


def test_rolling_back_swaps_the_specs() -> None:
    world = World()
    world.create(spec(image="one"))
    world.update("web", spec(image="two"))
    for expected in ("one", "two"):
        version = world.service("web").version
        world.change(lambda tx, v=version: services.update(tx, "web", v, spec(), world.now, rollback=True))  # type: ignore[misc]
        assert world.service("web").spec.task_template.container_spec.image == expected


def test_history_is_kept_up_to_the_limit() -> None:
    world = World()
    world.create(spec(restart=RestartPolicy(delay=0)))
    for _ in range(12):
        world.wait(1)
        world.report(world.wanted("web")[0], FAILED)
    tasks = world.tasks("web")
    assert len(tasks) == 6
    assert tasks[-1].wanted
    assert [task.status.timestamp for task in tasks[:5]] == [world.now - back for back in range(4, -1, -1)]


class Operations(RuleBasedStateMachine):
    """Anything in any order. Whatever happened, nobody owns what somebody else does."""

    names = st.sampled_from(["web", "api"])

    def __init__(self) -> None:
        super().__init__()
        self.world = World(3, pools=("10.0.0.0/22",), subnet_size=27)
        self.world.create_network("front", ipv6=True)

    @rule(name=names, replicas=st.integers(0, 12), port=st.booleans(), network=st.booleans(), image=st.booleans())
    def want(self, name: str, replicas: int, port: bool, network: bool, image: bool) -> None:
        wanted = spec(
            name,
            replicas,
            ports=[publish(0)] if port else [],
            networks=["front"] if network else [],
            image="a" if image else "b",
        )
        exists = any(service.spec.name == name for service in self.world.view.all(Service))
        if exists:
            self.world.update(name, wanted)
        else:
            self.world.create(wanted)

    @rule(name=names)
    def unwant(self, name: str) -> None:
        try:
            self.world.remove(name)
        except HivemeshError:
            assert not any(service.spec.name == name for service in self.world.view.all(Service))

    @rule(index=st.integers(0, 50), state=st.sampled_from([FAILED, COMPLETE, RUNNING, TaskState.REJECTED]))
    def agent_reports(self, index: int, state: TaskState) -> None:
        tasks = [task for task in self.world.tasks() if task.node_id and not task.status.state.dead]
        if tasks:
            self.world.report(tasks[index % len(tasks)], state)

    @rule()
    def agents_work(self) -> None:
        self.world.agents()

    @rule(name=st.sampled_from(["n1", "n2", "n3"]), state=st.sampled_from(["ready", "down"]))
    def node_turns(self, name: str, state: str) -> None:
        self.world.set_node(name, state=state)

    @rule(name=st.sampled_from(["n1", "n2", "n3"]), availability=st.sampled_from(["active", "drain", "pause"]))
    def node_is_set(self, name: str, availability: str) -> None:
        self.world.set_spec(name, availability=availability)

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.world.wait(seconds)

    @invariant()
    def one_wanted_task_per_slot_and_as_many_as_asked(self) -> None:
        for service in self.world.view.all(Service):
            tasks = self.world.view.tasks_of(service.id)
            # A task that ended before its turn holds its slot until then; only at that turn a successor takes it.
            ended = [task for task in tasks if task.desired <= RUNNING and task.status.state.dead]
            slots = [task.slot for task in tasks if task.wanted]
            slots += [task.slot for task in ended if task.start_after > self.world.now]
            assert len(slots) == len(set(slots)) == service.spec.replicas

    @invariant()
    def no_address_has_two_owners(self) -> None:
        owned: list[tuple[str, str]] = []
        for network in self.world.view.all(Network):
            owned += [(network.id, str(subnet.gateway)) for subnet in network.subnets]
        for node in self.world.view.all(Node):
            owned += [(a.network_id, str(address.ip)) for a in node.attachments for address in a.addresses]
        for service in self.world.view.all(Service):
            owned += [(vip.network_id, str(address.ip)) for vip in service.vips for address in vip.addresses]
        for task in self.world.view.all(Task):
            if not task.status.state.dead:
                owned += [(a.network_id, str(address.ip)) for a in task.attachments for address in a.addresses]
        assert len(owned) == len(set(owned))

    @invariant()
    def published_ports_have_one_service(self) -> None:
        ports = [port.published_port for service in self.world.view.all(Service) for port in service.ports]
        assert len(ports) == len(set(ports))
        assert 0 not in ports

    @invariant()
    def history_is_bounded(self) -> None:
        dead = Counter(
            (task.service_id, task.slot)
            for task in self.world.tasks()
            if task.status.state.dead and task.desired < REMOVE
        )
        assert max(dead.values(), default=0) <= 5

    @invariant()
    def the_passes_are_at_rest(self) -> None:
        assert self.world.at_rest()

    def teardown(self) -> None:
        """Whatever happened: with living nodes and time everything converges."""
        for name in ("n1", "n2", "n3"):
            self.world.set_node(name, state="ready")
            self.world.set_spec(name, availability="active")
        for _ in range(40):
            self.world.wait(6)
            self.world.agents()
        for service in self.world.view.all(Service):
            serving = [task for task in self.world.view.tasks_of(service.id) if task.serving]
            assert len(serving) == service.spec.replicas
            status = service.update_status
            if status is None or status.state != "paused":  # by a task that failed; then old ones go on
                assert {task.spec_version for task in serving} <= {service.spec_version}


TestOperations = Operations.TestCase
TestOperations.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


# --- plain containers on networks


def test_plain_container_keeps_its_place_through_drain_and_a_lost_node() -> None:
    world = World(2)
    front = world.create_network("front")
    place = world.task(world.attach("c1", "front", "n2"))
    assert world.node("n2").attachments[-1].network_id == front.id
    world.set_spec("n2", availability="drain")
    world.set_node("n2", state="down")
    assert world.task(place) == place
    assert place.desired == RUNNING
    assert world.at_rest()


def test_plain_container_that_ended_frees_its_address() -> None:
    world = World(2)
    world.create_network("small", "10.9.0.0/29")
    places = [world.attach(f"c{number}", "small", "n1") for number in range(4)]
    world.report(places[0], TaskState.SHUTDOWN)
    assert [task.container for task in world.tasks()] == ["c1", "c2", "c3"]
    assert world.attach("c9", "small", "n1").attachments[0].addresses == places[0].attachments[0].addresses


def test_plain_container_goes_with_its_node() -> None:
    world = World(2)
    world.create_network("front")
    world.attach("c1", "front", "n2")
    node = world.node("n2")
    world.change(lambda tx: tx.delete(node))
    assert world.tasks() == []
