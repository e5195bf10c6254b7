"""What every balancer must do, with real connections. An engine joins by being added to `ENGINES`."""

from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
from balancer_rig import CLIENTS, Engine, Machine, Place, vip
from mesh_rig import Reply

from hivemesh.kernel import ipvs

pytestmark = pytest.mark.kernel

ENGINES: tuple[Engine, ...] = ("nftables", "sockets", "ipvs")
PLACES = pytest.mark.parametrize("place", ["vip", "mesh"])
FAMILIES = pytest.mark.parametrize("version", [4, 6])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
UNLIKELY = {1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5}
"""Chi-square by degrees of freedom: chance alone exceeds it once in a thousand times."""


@pytest.fixture(scope="module", params=ENGINES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    if request.param == "ipvs" and (lack := ipvs.missing()):
        pytest.skip(f"{lack}; `make test-guest` runs this where there is one")
    machine = Machine(request.param)
    try:
        machine.start()
        yield machine
    finally:
        machine.close()


def servers(replies: list[Reply | str]) -> Counter[str]:
    return Counter(r.server if isinstance(r, Reply) else r for r in replies)


def chi_square(found: Mapping[str, int], weights: Mapping[str, int]) -> float:
    total, shares = sum(found.values()), sum(weights.values())
    assert found.keys() <= weights.keys(), found
    return sum((found.get(name, 0) - total * w / shares) ** 2 / (total * w / shares) for name, w in weights.items())


@PLACES
@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("weights", [{"b1": 1, "b2": 1, "b3": 1}, {"b1": 3, "b2": 1, "b3": 2}], ids=["equal", "3-1-2"])
def test_connections_in_turn_are_spread_by_weight(
    machine: Machine, place: Place, protocol: str, version: int, weights: dict[str, int]
) -> None:
    machine.spread(place, weights)
    found = servers(machine.ask(place, protocol, version, times=36))
    assert found == {name: 36 * weight // sum(weights.values()) for name, weight in weights.items()}


@PLACES
@FAMILIES
@PROTOCOLS
def test_backend_sees_the_clients_own_address(machine: Machine, place: Place, protocol: str, version: int) -> None:
    machine.spread(place, {"b1": 1, "b2": 1})
    seen = {reply.seen if isinstance(reply, Reply) else reply for reply in machine.ask(place, protocol, version, 4)}
    assert seen == {machine.client(place, version, CLIENTS[0])}


@PLACES
@FAMILIES
@pytest.mark.parametrize("scheduler", ["source", "maglev"])
@pytest.mark.parametrize("weights", [{"b1": 1, "b2": 1, "b3": 1}, {"b1": 1, "b2": 3}], ids=["equal", "1-3"])
def test_affinity_keeps_each_client_and_spreads_them_by_weight(
    machine: Machine, place: Place, version: int, scheduler: str, weights: dict[str, int]
) -> None:
    machine.spread(place, weights, scheduler)  # type: ignore[arg-type]
    first = machine.ask_from_all(place, "tcp", version)
    assert first == machine.ask_from_all(place, "tcp", version)
    assert chi_square(Counter(first.values()), weights) < UNLIKELY[len(weights) - 1]


@PLACES
@FAMILIES
def test_consistent_hash_moves_few_clients_when_a_backend_leaves(machine: Machine, place: Place, version: int) -> None:
    everybody = {f"b{n}": 1 for n in range(1, 6)}
    machine.spread(place, everybody, "maglev")
    before = machine.ask_from_all(place, "tcp", version)
    machine.spread(place, {name: 1 for name in everybody if name != "b2"}, "maglev")
    after = machine.ask_from_all(place, "tcp", version)
    stayed = [client for client, server in before.items() if server != "b2"]
    moved = [client for client in stayed if after[client] != before[client]]
    assert set(after.values()) == everybody.keys() - {"b2"}
    assert len(moved) <= 0.1 * len(stayed)
    machine.spread(place, everybody, "maglev")
    assert machine.ask_from_all(place, "tcp", version) == before


@PLACES
@FAMILIES
@pytest.mark.parametrize("weights", [{}, {"b1": 0}], ids=["none", "only-weight-0"])
def test_entry_without_backends_is_refused_at_once(
    machine: Machine, place: Place, version: int, weights: dict[str, int]
) -> None:
    machine.spread(place, weights)
    assert machine.ask(place, "tcp", version) == ["ConnectionRefusedError"]
    assert machine.ask(place, "udp", version)[0] in ("ConnectionRefusedError", "PermissionError")


@PLACES
@FAMILIES
@pytest.mark.parametrize("after", [{"b1": 0, "b2": 1}, {"b2": 1}], ids=["weight-0", "left"])
def test_backend_that_drains_keeps_old_connections_and_gets_no_new_ones(
    machine: Machine, place: Place, version: int, after: dict[str, int]
) -> None:
    machine.spread(place, {"b1": 1})
    assert servers(machine.ask(place, "tcp", version, keep=True)) == {"b1": 1}
    try:
        machine.spread(place, after)
        assert servers(machine.ask(place, "tcp", version, times=6)) == {"b2": 6}
    finally:
        old = machine.ask_again()
    assert [reply.server for reply in old] == ["b1"]


@FAMILIES
def test_virtual_address_answers_ping(machine: Machine, version: int) -> None:
    machine.spread("vip", {"b1": 1, "b2": 1})
    assert "2 received" in machine.call("caller000000", "ping", "-c2", "-i0.01", "-W2", str(vip(version)))


@FAMILIES
@PROTOCOLS
def test_service_reaches_itself_by_its_own_virtual_address(machine: Machine, protocol: str, version: int) -> None:
    machine.spread("vip", {"b1": 1, "b2": 1}, at="b1")
    assert servers(machine.ask("vip", protocol, version, times=6, at="b1")) == {"b1": 3, "b2": 3}
