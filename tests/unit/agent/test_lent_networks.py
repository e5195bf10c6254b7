"""Networks of the swarm that a node makes itself: made for the first, with lasting addresses, gone after the last."""

from pathlib import Path

import pytest

from hivemesh.agent.lent import LentNetworks
from hivemesh.agent.local import LocalNetworks
from hivemesh.clock import SystemClock
from hivemesh.model.addr import MAC
from hivemesh.model.errors import Conflict, HivemeshError, NotFound
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.local import LocalSpec
from hivemesh.model.network import IPAMConfig, NetworkSpec
from hivemesh.model.service import TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import LocalNetworkItem

WIRE = NetworkID("wire-id")
ITEMS = {WIRE: LocalNetworkItem(id=WIRE, spec=NetworkSpec(name="wire", driver="bridge", config_from="conf"))}


def settings_of(networks: LocalNetworks) -> None:
    subnet = IPAMConfig(subnet="10.44.7.0/24", ip_range="10.44.7.64/26")
    networks.create(LocalSpec(name="conf", config_only=True, ipam=(subnet,)))


@pytest.fixture
def networks(tmp_path: Path) -> LocalNetworks:
    made = LocalNetworks(tmp_path / "local", SystemClock())
    settings_of(made)
    return made


@pytest.fixture
def lent(networks: LocalNetworks, tmp_path: Path) -> LentNetworks:
    return LentNetworks(networks, tmp_path / "lent.json")


def task(name: str) -> Task:
    attachment = Attachment(endpoint_id=EndpointID(f"e-{name}"), network_id=WIRE, addresses=(), mac=MAC("02"))
    return Task(id=TaskID(name), service_id=ServiceID("s"), service_name="web", slot=1, spec=TaskSpec(),
                attachments=(attachment,))  # fmt: skip


def addresses(of: Task) -> list[str]:
    return [str(interface) for attachment in of.attachments for interface in attachment.addresses]


def test_first_task_makes_the_network_and_the_last_takes_it_away(networks: LocalNetworks, lent: LentNetworks) -> None:
    assert addresses(lent.complete(task("a"), ITEMS)) == ["10.44.7.65/24"]
    assert addresses(lent.complete(task("b"), ITEMS)) == ["10.44.7.66/24"]
    made = networks.known(WIRE)
    assert made is not None
    assert (made.lent, made.spec.config_from, [str(p) for p in made.prefixes]) == (True, "conf", ["10.44.7.0/24"])
    with pytest.raises(Conflict, match="in use by network wire"):
        networks.remove("conf")
    lent.release(TaskID("a"))
    assert networks.lent == {WIRE}
    lent.release(TaskID("b"))
    assert (networks.lent, networks.owners) == (frozenset(), frozenset())
    networks.remove("conf")


def test_it_is_none_of_the_nodes_own(networks: LocalNetworks, lent: LentNetworks) -> None:
    lent.complete(task("a"), ITEMS)
    assert not networks.has("wire")
    assert "wire" not in [network.name for network in networks.all]
    with pytest.raises(NotFound):
        networks.remove("wire")
    with pytest.raises(Conflict, match="already exists"):
        networks.create(LocalSpec(name="wire"))


def test_addresses_outlive_the_daemon(networks: LocalNetworks, lent: LentNetworks, tmp_path: Path) -> None:
    before = [addresses(lent.complete(task(name), ITEMS)) for name in ("a", "b")]
    again = LocalNetworks(tmp_path / "local", SystemClock())
    after = LentNetworks(again, tmp_path / "lent.json")
    assert WIRE in {network.id for network in again.in_kernel}
    assert addresses(after.complete(task("c"), ITEMS)) not in before
    assert [addresses(after.complete(task(name), ITEMS)) for name in ("a", "b")] == before
    after.keep({TaskID("a")})
    assert again.owners == {TaskID("a")}
    after.dissolve()
    assert (again.lent, again.owners) == (frozenset(), frozenset())


def test_node_without_the_settings_refuses_and_keeps_nothing(tmp_path: Path) -> None:
    networks = LocalNetworks(tmp_path / "local", SystemClock())
    lent = LentNetworks(networks, tmp_path / "lent.json")
    with pytest.raises(NotFound, match="configuration network conf not found"):
        lent.complete(task("a"), ITEMS)
    assert (networks.lent, networks.owners) == (frozenset(), frozenset())
    settings_of(networks)
    networks.create(LocalSpec(name="wire"))
    with pytest.raises(Conflict, match="this node has a network of its own with the name wire"):
        lent.complete(task("a"), ITEMS)


def test_full_network_is_taken_back_when_nobody_got_a_place(networks: LocalNetworks, lent: LentNetworks) -> None:
    networks.create(LocalSpec(name="tiny", config_only=True, ipam=(IPAMConfig(subnet="10.45.0.0/30"),)))
    items = {WIRE: LocalNetworkItem(id=WIRE, spec=NetworkSpec(name="wire", driver="bridge", config_from="tiny"))}
    lent.complete(task("a"), items)
    with pytest.raises(HivemeshError, match="no available IPv4 addresses"):
        lent.complete(task("b"), items)
    assert networks.lent == {WIRE}
    lent.release(TaskID("a"))
    assert networks.lent == frozenset()
