"""Global services and jobs."""

import msgspec
from world import SECOND, World, everywhere, job, spec

from hivemesh.control import lookup
from hivemesh.model.service import ContainerSpec, GlobalJob, Placement, RestartPolicy, ServiceMode, TaskSpec
from hivemesh.model.task import Task, TaskState

RUNNING, FAILED, COMPLETE, SHUTDOWN = TaskState.RUNNING, TaskState.FAILED, TaskState.COMPLETE, TaskState.SHUTDOWN


def hosts(world: World, name: str = "web") -> list[str]:
    """Where tasks of the service should run."""
    return sorted(
        lookup.node(world.view, task.node_id).description.hostname for task in world.wanted(name) if task.node_id
    )


def test_a_global_service_has_a_task_on_every_node() -> None:
    world = World()
    world.create(everywhere())
    assert hosts(world) == ["n1", "n2", "n3"]
    tasks = world.tasks("web")
    assert {task.slot for task in tasks} == {0}
    assert {task.status.state for task in tasks} == {TaskState.ASSIGNED}
    assert tasks[0].name == f"web.{tasks[0].node_id}.{tasks[0].id}"
    world.agents()
    assert world.at_rest()


def test_a_node_that_joins_gets_its_task() -> None:
    world = World()
    world.create(everywhere())
    world.add_node(4)
    assert hosts(world) == ["n1", "n2", "n3", "n4"]


def test_a_drained_node_loses_its_task_and_gets_a_new_one_when_it_is_active_again() -> None:
    world = World()
    world.create(everywhere())
    world.agents()
    world.set_spec("n2", availability="drain")
    assert hosts(world) == ["n1", "n3"]
    world.agents()
    world.set_spec("n2", availability="active")
    assert hosts(world) == ["n1", "n2", "n3"]
    assert world.wake is None, "nobody waits for a delay"


def test_a_paused_node_keeps_its_task_and_gets_no_new_one() -> None:
    world = World()
    world.create(everywhere())
    world.agents()
    world.set_spec("n2", availability="pause")
    assert hosts(world) == ["n1", "n2", "n3"]
    world.create(everywhere("late"))
    assert hosts(world, "late") == ["n1", "n3"]


def test_a_node_that_is_down_keeps_its_task_for_when_it_is_back() -> None:
    world = World()
    world.create(everywhere())
    world.agents()
    before = {task.id for task in world.wanted("web")}
    world.set_node("n2", state="down")
    world.agents()
    world.set_node("n2", state="ready")
    assert {task.id for task in world.wanted("web")} == before


def test_a_removed_node_takes_its_task_along() -> None:
    world = World()
    world.create(everywhere())
    world.agents()
    world.set_node("n3", state="down")
    world.change(lambda tx: tx.delete(world.node("n3")))
    assert hosts(world) == ["n1", "n2"]


def test_a_label_decides_where_a_global_service_runs() -> None:
    world = World()
    template = TaskSpec(
        container_spec=ContainerSpec(image="x"), placement=Placement(constraints=("node.labels.edge==true",))
    )
    world.create(everywhere(task_template=template))
    assert hosts(world) == []
    world.set_spec("n2", labels={"edge": "true"})
    assert hosts(world) == ["n2"]
    world.agents()
    world.set_spec("n2", labels={})
    assert hosts(world) == []


def test_a_failed_global_task_is_replaced_on_its_node_after_the_delay() -> None:
    world = World()
    world.create(everywhere())
    world.agents()
    old = world.wanted("web")[0]
    world.report(old, FAILED)
    assert hosts(world) == ["n1", "n2", "n3"]
    world.wait(5.1)
    world.agents()
    (new,) = [task for task in world.wanted("web") if task.node_id == old.node_id]
    assert new.serving


def test_a_global_update_goes_node_by_node() -> None:
    world = World()
    world.create(everywhere())
    world.agents()
    template = spec(image="other").task_template
    world.update("web", everywhere(task_template=template))
    for _ in range(10):
        world.agents()
        assert sum(task.serving for task in world.tasks("web")) >= 2
    assert {task.spec.container_spec.image for task in world.wanted("web")} == {"other"}
    assert hosts(world) == ["n1", "n2", "n3"]


# --- jobs


def complete(world: World, tasks: list[Task]) -> None:
    for task in tasks:
        world.report(task, COMPLETE)


def test_a_job_runs_so_many_at_a_time_until_enough_have_completed() -> None:
    world = World()
    world.create(job(2, 5))
    seen = []
    for _ in range(4):
        world.agents()
        running = world.wanted("job")
        seen.append(len(running))
        complete(world, running)
    assert seen == [2, 2, 1, 0]
    assert sorted(task.slot for task in world.tasks("job")) == [0, 1, 2, 3, 4]
    assert world.at_rest()


def test_a_failed_task_of_a_job_is_tried_again_in_its_slot() -> None:
    world = World()
    world.create(job(1, 1))
    world.agents()
    (first,) = world.wanted("job")
    world.report(first, FAILED, exit_code=1)
    assert world.wake == world.now + 5
    world.wait(5.1)
    world.agents()
    (second,) = world.wanted("job")
    assert (second.slot, second.status.state) == (0, RUNNING)
    complete(world, [second])
    assert world.wanted("job") == []


def test_a_job_gives_up_after_its_attempts() -> None:
    world = World()
    template = TaskSpec(
        container_spec=ContainerSpec(image="x"), restart_policy=RestartPolicy(max_attempts=1, delay=SECOND)
    )
    world.create(job(task_template=template))
    for _ in range(5):
        world.agents()
        for task in world.wanted("job"):
            world.report(task, FAILED, exit_code=1)
        world.wait(1.1)
    assert sum(task.status.state == FAILED for task in world.tasks("job")) == 2
    assert world.wanted("job") == []


def test_a_changed_job_starts_anew_and_forgets_its_past() -> None:
    world = World()
    world.create(job(2))
    world.agents()
    complete(world, world.wanted("job")[:1])
    template = TaskSpec(container_spec=ContainerSpec(image="other"))
    world.update("job", job(2, task_template=template))
    assert world.service("job").iteration == 1
    world.agents()
    assert {task.iteration for task in world.tasks("job")} == {1}
    assert len(world.wanted("job")) == 2


def test_a_global_job_completes_once_on_every_node_also_on_one_that_joins_later() -> None:
    world = World(2)
    world.create(job(mode=ServiceMode(global_job=GlobalJob())))
    world.agents()
    assert hosts(world, "job") == ["n1", "n2"]
    complete(world, world.wanted("job"))
    assert world.wanted("job") == []
    world.add_node(3)
    assert hosts(world, "job") == ["n3"]


def test_a_task_of_a_job_on_a_lost_node_runs_elsewhere() -> None:
    world = World(2)
    world.create(job())
    world.agents()
    (task,) = world.wanted("job")
    assert task.node_id is not None
    name = lookup.node(world.view, task.node_id).description.hostname
    world.set_node(name, state="down")
    world.wait(5.1)
    world.agents()
    assert hosts(world, "job") == [{"n1": "n2", "n2": "n1"}[name]]


def test_the_rest_of_a_job_is_removed_with_it() -> None:
    world = World()
    made = world.create(job(3))
    world.agents()
    world.remove("job")
    world.agents()
    assert list(world.view.tasks_of(made.id)) == []


def test_a_job_with_fewer_completions_drops_the_slots_beyond() -> None:
    world = World()
    world.create(job(1, 3))
    world.agents()
    complete(world, world.wanted("job"))
    world.update("job", job(1, 1))
    world.agents()
    assert [task.slot for task in world.tasks("job")] == [0]
    assert msgspec.structs.replace(world.tasks("job")[0]).status.state == COMPLETE
    assert world.wanted("job") == []
