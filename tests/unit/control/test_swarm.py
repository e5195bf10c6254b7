"""How a swarm begins, and what of it may change."""

from ipaddress import ip_network

import msgspec
import pytest
from world import FAKE_CA, World
from world import spec as service_spec

from hivemesh.agent.request import container_request
from hivemesh.control import swarm
from hivemesh.model.cluster import (
    CAConfig,
    Dispatcher,
    EncryptionConfig,
    Orchestration,
    Renewal,
    SwarmSpec,
    TaskDefaults,
)
from hivemesh.model.container import LogDriver
from hivemesh.model.errors import Invalid, OutOfSequence
from hivemesh.pki import Authority, JoinToken, ca_digest


@pytest.mark.parametrize(
    ("given", "size", "routes", "words"),
    [
        (["10.0.0.0/8"], 30, [], "mask length must be 1 to 29"),
        (["10.0.0.0/8"], -1, [], "mask length"),
        (["10.0.0.0/26"], 24, [], "no /24 subnet fits into it"),
        (["10.0.0.1/8"], 24, [], "invalid default address pool '10.0.0.1/8'"),
        (["fd00::/8"], 24, [], "it must be IPv4"),
        (["10.0.0.0/8", "10.5.0.0/16"], 24, [], "default address pools 10.0.0.0/8 and 10.5.0.0/16 overlap"),
        (["10.0.0.0/8"], 24, ["10.1.2.0/24"], "overlaps the host's route 10.1.2.0/24"),
        ([], 24, ["10.0.0.0/8"], "no free pool: the host's routes cover all of 10.0.0.0/8"),
    ],
)
def test_pools_that_cannot_be_are_refused(given: list[str], size: int, routes: list[str], words: str) -> None:
    with pytest.raises(Invalid) as caught:
        swarm.choose_pools(given, size, [ip_network(route) for route in routes])
    assert words in str(caught.value)


def test_the_default_pool_avoids_the_hosts_routes() -> None:
    assert swarm.choose_pools([], 24, [ip_network("0.0.0.0/0"), ip_network("192.168.1.0/24")]) == (
        ip_network("10.0.0.0/8"),
    )
    pools = swarm.choose_pools([], 24, [ip_network("10.0.0.0/16")])
    assert pools[0] == ip_network("10.1.0.0/16")


def test_given_pools_are_taken_in_order() -> None:
    world = World(1, pools=("10.77.0.0/16", "10.20.0.0/24"))
    assert str(world.network("ingress").subnets[0].prefix) == "10.77.0.0/24"


@pytest.mark.parametrize("port", [80, 1023, 49152, 70000, -1])
def test_a_data_path_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(Invalid, match="use 1024 to 49151"):
        swarm.check_data_path_port(port)


def test_each_swarm_has_an_ipv6_range_of_its_own() -> None:
    ranges = {swarm.local_pool6() for _ in range(10)}
    assert len(ranges) == 10
    for prefix in ranges:
        assert prefix.prefixlen == 48
        assert str(prefix).startswith("fd")


@pytest.mark.parametrize(
    "spec",
    [
        SwarmSpec(name="mine"),
        SwarmSpec(orchestration=Orchestration(task_history_retention_limit=-1)),
        SwarmSpec(dispatcher=Dispatcher(heartbeat_period=-1)),
        SwarmSpec(ca_config=CAConfig(node_cert_expiry=1)),
    ],
)
def test_settings_out_of_range_are_refused(spec: SwarmSpec) -> None:
    world = World(1)
    with pytest.raises(Invalid):
        world.change(lambda tx: swarm.update(tx, world.view.cluster.version, spec, world.now))


def test_settings_change_under_their_version() -> None:
    world = World(1)
    version = world.view.cluster.version
    spec = SwarmSpec(orchestration=Orchestration(task_history_retention_limit=1))
    world.change(lambda tx: swarm.update(tx, version, spec, world.now))
    assert world.view.cluster.spec == spec
    with pytest.raises(OutOfSequence):
        world.change(lambda tx: swarm.update(tx, version, spec, world.now))


def test_rotating_one_token_keeps_the_other() -> None:
    world = World(1)
    authority = Authority.create(world.now)
    world.change(
        lambda tx: tx.put(msgspec.structs.replace(tx.cluster, ca_cert=authority.certificate, ca_key=FAKE_CA.key))
    )
    before = world.view.cluster
    world.change(lambda tx: swarm.update(tx, tx.cluster.version, tx.cluster.spec, world.now, Renewal(worker=True)))
    after = world.view.cluster
    assert after.manager_token == before.manager_token
    assert after.worker_token != before.worker_token
    assert JoinToken.parse(after.worker_token).digest == ca_digest(authority.certificate)


def test_the_swarms_log_driver_is_that_of_new_tasks_that_name_none() -> None:
    world = World(1)
    driver, own = LogDriver(name="journald"), LogDriver(name="none")
    spec = msgspec.structs.replace(world.view.cluster.spec, task_defaults=TaskDefaults(log_driver=driver))
    world.change(lambda tx: swarm.update(tx, tx.cluster.version, spec, world.now))
    asked = service_spec("special", 1)
    template = msgspec.structs.replace(asked.task_template, log_driver=own)
    special = world.create(msgspec.structs.replace(asked, task_template=template))
    plain = world.create(service_spec("plain", 1))
    (first,), (second,) = world.view.tasks_of(plain.id), world.view.tasks_of(special.id)
    assert container_request(first, "/netns", "host").log_driver == driver
    assert container_request(second, "/netns", "host").log_driver == own
    world.change(lambda tx: swarm.update(tx, tx.cluster.version, SwarmSpec(), world.now))
    assert [task.id for task in world.view.tasks_of(plain.id)] == [first.id]


def test_zero_heartbeat_means_the_default_and_a_tiny_one_is_refused() -> None:
    world = World(1)
    world.change(
        lambda tx: swarm.update(tx, tx.cluster.version, SwarmSpec(dispatcher=Dispatcher(heartbeat_period=0)), world.now)
    )
    assert world.view.cluster.spec.dispatcher == Dispatcher()
    with pytest.raises(Invalid, match="100ms or more"):
        swarm.check_spec(SwarmSpec(dispatcher=Dispatcher(heartbeat_period=1)))


def test_the_unlock_key_is_there_while_managers_lock() -> None:
    world = World(1)
    locking = SwarmSpec(encryption_config=EncryptionConfig(auto_lock_managers=True))

    def update(spec: SwarmSpec, *, anew: bool = False) -> str:
        world.change(lambda tx: swarm.update(tx, tx.cluster.version, spec, world.now, Renewal(unlock_key=anew)))
        return world.view.cluster.unlock_key

    assert world.view.cluster.unlock_key == ""
    assert update(SwarmSpec(), anew=True) == ""
    first = update(locking)
    assert first.startswith("SWMKEY-1-")
    assert update(locking) == first
    assert update(locking, anew=True) not in ("", first)
    assert update(SwarmSpec()) == ""
