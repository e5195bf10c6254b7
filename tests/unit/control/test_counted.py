"""What `service ls` counts."""

from world import World, spec

from hivemesh.wire.engine import objects


def running(world: World, *down: str) -> tuple[int, int]:
    """How many run, out of how many."""
    unheard = {world.node(name).id for name in down}
    status = objects.service(world.service("web"), world.tasks("web"), down=unheard)["ServiceStatus"]
    return status["RunningTasks"], status["DesiredTasks"]


def test_what_runs_on_a_node_that_is_down_counts_as_lost_until_its_successor_runs() -> None:
    world = World()
    world.create(spec(replicas=3))
    world.agents()
    assert running(world) == (3, 3)
    world.set_node("n2", state="down")
    assert running(world, "n2") == (2, 3)
    world.wait(5)
    world.agents()
    assert running(world, "n2") == (3, 3)
