"""Rolling updates: how many at a time, in which order, and what happens when the new tasks do not last."""

from typing import Any

import msgspec
import pytest
from world import SECOND, World, publish, spec

from hivemesh.model.service import Placement, RestartPolicy, Service, ServiceSpec, UpdateConfig
from hivemesh.model.task import Task, TaskState

RUNNING, FAILED, READY, SHUTDOWN = TaskState.RUNNING, TaskState.FAILED, TaskState.READY, TaskState.SHUTDOWN
REJECTED = TaskState.REJECTED
SLOWLY = 30 * SECOND  # one slot at a time, whatever the agents do


def release(version: str, replicas: int = 3, *, back: UpdateConfig | None = None, **update: Any) -> ServiceSpec:
    """A version of the service; its tasks are not restarted, so that what is seen is the updater's doing."""
    wanted = spec(
        replicas=replicas,
        image=f"web:{version}",
        restart=RestartPolicy(condition="none"),
        update=UpdateConfig(**update),
    )
    return msgspec.structs.replace(wanted, rollback_config=back)


def deployed(version: str = "1", replicas: int = 3, nodes: int = 3) -> World:
    world = World(nodes)
    world.create(release(version, replicas))
    world.agents()
    return world


def images(world: World) -> list[str]:
    """What serves."""
    return sorted(task.spec.container_spec.image for task in world.tasks("web") if task.serving)


def state_of(world: World) -> str:
    status = world.service("web").update_status
    return status.state if status else ""


def new_tasks(world: World) -> list[Task]:
    service = world.service("web")
    return [task for task in world.wanted("web") if task.spec_version == service.spec_version]


def let_run(world: World, rounds: int = 20, step: float = 1.0) -> None:
    for _ in range(rounds):
        world.agents()
        world.wait(step)


def test_an_update_goes_slot_by_slot_and_is_completed_after_the_monitor_period() -> None:
    world = deployed()
    world.update("web", release("2"))
    assert state_of(world) == "updating"
    assert len(new_tasks(world)) == 1
    for _ in range(8):
        world.agents()
        assert len(images(world)) >= 2
    assert images(world) == ["web:2"] * 3
    assert state_of(world) == "updating"
    world.wait(5.1)
    status = world.service("web").update_status
    assert status is not None
    assert (status.state, status.message, status.completed) == ("completed", "update completed", world.now)
    assert world.at_rest()


def test_scaling_alone_is_no_update() -> None:
    world = deployed()
    world.update("web", release("1", 5))
    assert state_of(world) == ""


def test_a_new_update_forgets_how_the_last_one_went() -> None:
    world = deployed()
    world.update("web", release("2"))
    let_run(world)
    assert state_of(world) == "completed"
    world.update("web", release("2", 4))
    assert state_of(world) == ""


def test_parallelism_0_replaces_all_at_once() -> None:
    world = deployed()
    world.update("web", release("2", parallelism=0))
    assert len(new_tasks(world)) == 3


def test_the_delay_passes_between_slots() -> None:
    world = deployed()
    world.update("web", release("2", delay=10 * SECOND))
    for _ in range(3):
        world.agents()
    assert images(world) == ["web:1", "web:1", "web:2"]
    world.wait(9.9)
    assert len(new_tasks(world)) == 1
    world.wait(0.2)
    assert len(new_tasks(world)) == 2


def test_start_first_never_has_less_than_all_replicas() -> None:
    world = deployed()
    world.update("web", release("2", order="start-first", parallelism=2))
    assert images(world) == ["web:1"] * 3
    assert [task.desired for task in new_tasks(world)] == [RUNNING, RUNNING]
    for _ in range(10):
        world.agents()
        assert len(images(world)) >= 3
    assert images(world) == ["web:2"] * 3
    assert len(world.wanted("web")) == 3
    let_run(world)
    assert state_of(world) == "completed"


@pytest.mark.parametrize("agents_between", [False, True])
def test_start_first_updates_that_come_one_upon_the_other_keep_what_serves(agents_between: bool) -> None:
    """The successors that were still starting are outdated themselves."""
    world = deployed()
    for number in range(2, 7):
        world.update("web", release(str(number), order="start-first", parallelism=2))
        assert len(images(world)) >= 3
        if agents_between:
            for task in world.wanted("web"):
                if task.status.state < RUNNING:
                    world.report(task, TaskState.STARTING)
            assert len(images(world)) >= 3
    for _ in range(20):
        world.agents()
        assert len(images(world)) >= 3
        world.wait(1)
    assert images(world) == ["web:6"] * 3


@pytest.mark.parametrize("broken", range(4))
def test_what_serves_in_the_middle_of_an_update_is_scaled_down_last(broken: int) -> None:
    world = deployed(replicas=4)
    world.report(world.tasks("web")[broken], FAILED)
    world.update("web", release("2", 4, order="start-first", parallelism=0))
    assert len(images(world)) == 3
    world.update("web", release("2", 3, order="start-first", parallelism=0))
    assert images(world) == ["web:1"] * 3
    assert {task.slot for task in world.wanted("web")} == {1, 2, 3, 4} - {broken + 1}


def test_a_failed_new_task_pauses_the_update_and_names_it() -> None:
    world = deployed()
    world.update("web", release("2", delay=SLOWLY))
    world.agents()
    (new,) = new_tasks(world)
    world.report(new, FAILED, err="task: non-zero exit (1)")
    status = world.service("web").update_status
    assert status is not None
    assert (status.state, status.completed) == ("paused", 0.0)
    assert status.message == f"update paused due to failure or early termination of task {new.id}"
    let_run(world)
    assert images(world) == ["web:1"] * 2
    assert state_of(world) == "paused"


def test_a_task_that_fails_after_the_monitor_period_is_no_failure_of_the_update() -> None:
    world = deployed()
    world.update("web", release("2", monitor=5 * SECOND, delay=SLOWLY))
    world.agents()
    (new,) = new_tasks(world)
    world.wait(5.5)
    world.report(new, FAILED)
    assert state_of(world) == "updating"


@pytest.mark.parametrize(("ratio", "failures", "state"), [(0.5, 1, "updating"), (0.5, 2, "paused"), (0.0, 1, "paused")])
def test_the_failure_ratio_counts_against_all_slots(ratio: float, failures: int, state: str) -> None:
    world = deployed()
    world.update("web", release("2", parallelism=0, max_failure_ratio=ratio))
    for _ in range(2):
        world.agents()
    for task in new_tasks(world)[:failures]:
        world.report(task, FAILED)
    assert state_of(world) == state


def test_with_continue_failing_tasks_hold_up_nothing() -> None:
    world = deployed()
    world.update("web", release("2", failure_action="continue"))
    for _ in range(9):
        world.agents()
        for task in new_tasks(world):
            if task.status.state == RUNNING:
                world.report(task, FAILED)
        world.wait(1)
    assert images(world) == []
    assert {task.spec.container_spec.image for task in world.tasks("web") if task.status.state == FAILED} == {"web:2"}
    let_run(world)
    assert state_of(world) == "completed"


def test_a_failing_update_rolls_itself_back() -> None:
    world = deployed()
    before = {task.id for task in world.tasks("web")}
    world.update("web", release("2", failure_action="rollback", delay=SLOWLY))
    world.agents()
    (new,) = new_tasks(world)
    world.report(new, REJECTED, err="no such image")
    service = world.service("web")
    assert service.update_status is not None
    assert service.update_status.state == "rollback_started"
    assert service.update_status.message == f"update rolled back due to failure or early termination of task {new.id}"
    assert service.spec == release("1")
    assert service.previous_spec is None
    let_run(world)
    assert images(world) == ["web:1"] * 3
    assert len({task.id for task in world.wanted("web")} & before) == 2, "what still ran was right again"
    assert state_of(world) == "rollback_completed"
    assert world.at_rest()


def test_a_start_first_update_that_fails_rolls_back_without_touching_what_serves() -> None:
    world = deployed()
    before = {task.id for task in world.tasks("web")}
    world.update("web", release("2", order="start-first", failure_action="rollback"))
    (new,) = new_tasks(world)
    world.report(new, REJECTED, err="no such image")
    let_run(world)
    assert {task.id for task in world.wanted("web")} == before
    assert state_of(world) == "rollback_completed"


def test_a_rollback_that_fails_is_paused() -> None:
    world = World()
    world.create(release("1", back=UpdateConfig(delay=SLOWLY)))
    world.agents()
    world.update("web", release("2"))
    let_run(world)
    service = world.service("web")
    back = lambda tx: services_update(tx, world, service)  # noqa: E731
    world.change(back)
    assert state_of(world) == "rollback_started"
    world.agents()
    (new,) = new_tasks(world)
    world.report(new, FAILED)
    status = world.service("web").update_status
    assert status is not None
    assert status.state == "rollback_paused"
    assert status.message == f"rollback paused due to failure or early termination of task {new.id}"


def services_update(tx: Any, world: World, service: Service) -> Service:
    from hivemesh.control import services

    return services.update(tx, "web", service.version, service.spec, world.now, rollback=True)


def test_a_second_manual_rollback_goes_forward_again() -> None:
    world = deployed()
    world.update("web", release("2"))
    let_run(world)
    for expected in ("web:1", "web:2"):
        service = world.service("web")
        world.change(lambda tx, s=service: services_update(tx, world, s))  # type: ignore[misc]
        let_run(world)
        assert images(world) == [expected] * 3
        assert state_of(world) == "rollback_completed"


def test_a_paused_update_goes_on_with_the_next_specification() -> None:
    world = deployed()
    world.update("web", release("2"))
    world.agents()
    world.report(new_tasks(world)[0], FAILED)
    assert state_of(world) == "paused"
    world.update("web", release("3"))
    let_run(world)
    assert images(world) == ["web:3"] * 3
    assert state_of(world) == "completed"


def test_a_change_of_placement_moves_only_what_no_longer_fits() -> None:
    world = deployed()
    before = {task.id for task in world.wanted("web")}
    wanted = release("1")
    template = msgspec.structs.replace(wanted.task_template, placement=Placement(constraints=("node.hostname!=n3",)))
    world.update("web", msgspec.structs.replace(wanted, task_template=template))
    let_run(world)
    assert len({task.id for task in world.wanted("web")} & before) == 2
    assert state_of(world) == "completed"


def test_a_published_port_is_changed_like_anything_else() -> None:
    world = deployed()
    wanted = release("1")
    ports = (publish(8080),)
    world.update(
        "web",
        msgspec.structs.replace(wanted, endpoint_spec=msgspec.structs.replace(wanted.endpoint_spec, ports=ports)),
    )
    assert state_of(world) == "updating"
