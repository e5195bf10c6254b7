"""A view counts as applied once the resolver holds it, and what the resolver is told of a sandbox."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from hivemesh.agent import names as names_module
from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.names import NodeNames, asker
from hivemesh.cnm.node import parts_of
from hivemesh.dns.hostconf import HostConf
from hivemesh.model.addr import MAC, VNI
from hivemesh.model.errors import Unavailable
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.network import Subnet
from hivemesh.model.service import ContainerSpec, DNSConfig, TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import Backend, NetworkItem, ServiceItem, key_of
from hivemesh.wire.resolver import Names, Sandbox

Acks = asyncio.Queue[tuple[int, int]]


class Told:
    """A resolver that holds what it was told when the test says so."""

    def __init__(self) -> None:
        self.revision = 0
        self.failed: dict[str, str] = {}
        self.held = 0
        self.tables: Mapping[NetworkID, Names] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        self.is_all = False
        self._heard = asyncio.Event()

    def answer(self, networks: Mapping[NetworkID, Names]) -> None:
        if networks != self.tables:
            self.revision += 1
        self.tables = networks

    def admit(self, sandbox: Sandbox) -> None:
        self.sandboxes[sandbox.id] = sandbox
        self.revision += 1

    def forget(self, sandbox: str) -> None:
        self.sandboxes.pop(sandbox, None)
        self.revision += 1

    async def dismiss(self, sandbox: str) -> None:
        self.forget(sandbox)

    def complete(self) -> None:
        self.is_all = True

    def holds(self, revision: int) -> bool:
        return self.held >= revision

    async def until_held(self, revision: int, seconds: float) -> bool:
        self._heard.clear()
        while not self.holds(revision):
            try:
                await asyncio.wait_for(self._heard.wait(), seconds)
            except TimeoutError:
                break
        return self.holds(revision)

    def catch_up(self) -> None:
        self.held = self.revision
        self._heard.set()

    async def run(self) -> None: ...

    async def dissolve(self) -> None: ...


def network(name: str, *, ingress: bool = False, internal: bool = False) -> NetworkItem:
    prefix = ip_network("10.0.1.0/24")
    return NetworkItem(
        id=NetworkID(name), name=name, vni=VNI(4097), port=4789, subnets=(Subnet(prefix=prefix, gateway=prefix[1]),),
        ingress=ingress, internal=internal,
    )  # fmt: skip


def task_on(*networks: str, dns: DNSConfig | None = None) -> Task:
    return Task(
        id=TaskID("task1"),
        service_id=ServiceID("s"),
        service_name="web",
        slot=1,
        spec=TaskSpec(container_spec=ContainerSpec(dns_config=dns)),
        attachments=tuple(
            Attachment(
                endpoint_id=EndpointID(f"e-{name}"),
                network_id=NetworkID(name),
                addresses=(ip_interface("10.0.1.5/24"),),
                mac=MAC("02:42:0a:00:01:05"),
            )
            for name in networks
        ),
    )


def service(*backends: str) -> ServiceItem:
    return ServiceItem(
        network=NetworkID("mynet"), service=ServiceID("s"), name="web",
        backends=tuple(Backend(task=TaskID(b), addresses=(ip_address(b),), names=(b,)) for b in backends),
    )  # fmt: skip


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def acks() -> Acks:
    return asyncio.Queue()


@pytest.fixture
async def node(told: Told, acks: Acks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeNames]:
    monkeypatch.setattr(names_module, "PATIENCE", 0.01)
    made = NodeNames(told, SandboxFiles(tmp_path), lambda revision, pending: acks.put_nowait((revision, pending)))
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_sandbox_is_asked_for_as_its_networks_and_settings_say() -> None:
    networks = {n.id: n for n in (network("ingress", ingress=True), network("a"), network("b", internal=True))}
    host = HostConf(nameservers=(ip_address("192.0.2.53"),))
    found = asker(task_on("ingress", "b", "a"), networks, host)
    assert found.netns.endswith("/task1")
    assert found.networks == ("b", "a")  # in the task's order; ingress has no names
    assert (found.forward, found.ndots, found.nameservers) == (True, False, ())
    inside = asker(task_on("b"), {NetworkID("b"): networks[NetworkID("b")]}, host)
    assert not inside.forward
    dns = DNSConfig(nameservers=("2001:db8::53", "192.0.2.1"), options=("ndots:2",))
    own = asker(task_on("a", dns=dns), {NetworkID("a"): networks[NetworkID("a")]}, host)
    assert own.nameservers == (ip_address("2001:db8::53"), ip_address("192.0.2.1"))
    assert own.ndots


async def test_view_counts_once_the_resolver_holds_it(node: NodeNames, told: Told, acks: Acks) -> None:
    items = (network("mynet"), network("ingress", ingress=True), service("10.0.1.5"))
    node.follow(parts_of({key_of(item): item for item in items}), all_known=False)
    assert list(told.tables) == ["mynet"]
    node.acknowledge(7, 2)
    assert acks.empty()
    assert await acks.get() == (7, 3)  # the kernel's two, and a resolver that is behind
    told.catch_up()
    while (latest := await acks.get()) != (7, 2):
        assert latest == (7, 3)
    node.acknowledge(8, 0)
    assert acks.get_nowait() == (8, 0)  # at once: nothing was told


async def test_unchanged_network_is_the_same_table(node: NodeNames, told: Told) -> None:
    items = (network("mynet"), service("10.0.1.5"))
    node.follow(parts_of({key_of(item): item for item in items}), all_known=False)
    before = told.tables[NetworkID("mynet")]
    node.follow(parts_of({key_of(item): item for item in items}), all_known=True)
    assert told.tables[NetworkID("mynet")] is before
    assert told.is_all
    items = (network("mynet"), service("10.0.1.5", "10.0.1.6"))
    node.follow(parts_of({key_of(item): item for item in items}), all_known=True)
    assert told.tables[NetworkID("mynet")].addresses["web"] == (ip_address("10.0.1.5"), ip_address("10.0.1.6"))


async def test_sandbox_that_cannot_ask_is_refused_in_words(
    node: NodeNames, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = {NetworkID("mynet"): network("mynet")}
    told.failed = {"task1": "the port is taken"}
    told.held = 100
    with pytest.raises(Unavailable, match="the port is taken"):
        await node.admit(task_on("mynet"), networks)
    told.failed, told.held = {}, 0
    monkeypatch.setattr(names_module, "ADMIT_TIMEOUT", 0.01)
    with pytest.raises(Unavailable, match="hivemesh-resolver does not answer"):
        await node.admit(task_on("mynet"), networks)
    told.held = 100
    await node.admit(task_on("mynet"), networks)
    await node.dismiss(TaskID("task1"))
    assert told.sandboxes == {}
