"""What plain containers are granted, on networks of the node and of the swarm at once."""

import errno
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from hivemesh.agent import grants as module
from hivemesh.agent.grants import Grants
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.records import LocalRequest
from hivemesh.clock import SystemClock
from hivemesh.model.addr import MAC
from hivemesh.model.errors import Conflict, Forbidden, HivemeshError, Invalid, NotFound, Unavailable, Unsupported
from hivemesh.model.ids import EndpointID, NetworkID, NodeID, ServiceID, TaskID
from hivemesh.model.local import LocalSpec, PublishedPort
from hivemesh.model.network import IPAMConfig
from hivemesh.model.service import ContainerSpec, NetworkAttachmentConfig, TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import AttachReply, AttachRequest, Joining

WIDE = NetworkID("wide-id")


class Swarm:
    """Managers that know one network, `wide`."""

    def __init__(self) -> None:
        self.held: set[TaskID] = set()
        self.asked: list[AttachRequest] = []
        self.silent = False

    async def attach(self, request: AttachRequest) -> AttachReply:
        self.asked.append(request)
        if self.silent:
            raise Unavailable("no manager answers")
        for joining in request.networks:
            if joining.network != "wide":
                raise NotFound(f"network {joining.network} not found")
        attachment = Attachment(
            endpoint_id=EndpointID("far"), network_id=WIDE, addresses=(ip_interface("10.9.0.2/24"),), mac=MAC("02")
        )
        task = Task(
            id=request.task, service_id=ServiceID(""), service_name="", slot=0, node_id=NodeID("n"),
            spec=TaskSpec(container_spec=request.spec, networks=(NetworkAttachmentConfig(target=WIDE),)),
            attachments=(attachment,), container=request.container,
        )  # fmt: skip
        if not request.check:
            self.held.add(request.task)
        return AttachReply(task=task, names=("wide",))

    async def detach(self, task: TaskID) -> None:
        if self.silent:
            raise Unavailable("no manager answers")
        self.held.discard(task)


@pytest.fixture
def networks(tmp_path: Path) -> LocalNetworks:
    made = LocalNetworks(tmp_path, SystemClock())
    made.create(LocalSpec(name="mine", ipam=(IPAMConfig(subnet="10.7.0.0/24"),)))
    made.create(LocalSpec(name="also", internal=True, ipam=(IPAMConfig(subnet="10.8.0.0/24"),)))
    return made


@pytest.fixture
def swarm() -> Swarm:
    return Swarm()


@pytest.fixture
def grants(networks: LocalNetworks, swarm: Swarm) -> Grants:
    return Grants(networks, swarm, lambda: [("tcp", 9000)])


def asked(
    name: str, *wanted: str | Joining, ports: tuple[PublishedPort, ...] = (), check: bool = False, hosts: str = ""
) -> LocalRequest:
    return LocalRequest(
        task=TaskID(name), container=name, container_id=f"c-{name}", published=ports, check=check,
        networks=tuple(w if isinstance(w, Joining) else Joining(network=w) for w in wanted),
        spec=ContainerSpec(hosts=(hosts,) if hosts else ()),
    )  # fmt: skip


def addresses(reply: AttachReply) -> list[str]:
    return [str(a.addresses[0].ip) for a in reply.task.attachments]


async def test_container_gets_both_kinds_in_the_order_it_asked_for(grants: Grants, swarm: Swarm) -> None:
    reply = await grants.attach(asked("one", "mine", "wide", "also"))
    assert reply.names == ("mine", "wide", "also")
    assert addresses(reply) == ["10.7.0.2", "10.9.0.2", "10.8.0.2"]
    assert [config.target == WIDE for config in reply.task.spec.networks] == [False, True, False]
    assert [joining.network for joining in swarm.asked[0].networks] == ["wide"]
    again = await grants.attach(asked("one", "mine", "wide", "also"))
    assert addresses(again) == addresses(reply)
    fewer = await grants.attach(asked("one", "also"))
    assert addresses(fewer) == ["10.8.0.2"]
    assert swarm.held == set(), "managers are told that nothing is on their networks any more"


async def test_managers_never_hear_of_containers_on_networks_of_the_node(grants: Grants, swarm: Swarm) -> None:
    swarm.silent = True
    await grants.attach(asked("one", "mine"))
    await grants.detach(TaskID("one"))
    assert swarm.asked == []


async def test_refusal_of_managers_takes_back_what_the_node_gave(
    grants: Grants, networks: LocalNetworks, swarm: Swarm
) -> None:
    swarm.silent = True
    with pytest.raises(Unavailable):
        await grants.attach(asked("one", "mine", "wide"))
    assert networks.owners == set()
    swarm.silent = False
    before = await grants.attach(asked("one", "mine"))
    with pytest.raises(NotFound):
        await grants.attach(asked("one", "mine", "also", "nosuch"))
    assert networks.held_by(TaskID("one")) == before.task


async def test_asking_whether_it_could_be_grants_nothing(grants: Grants, networks: LocalNetworks) -> None:
    await grants.attach(asked("one", "mine", "wide", check=True, ports=(PublishedPort(target=80),)))
    assert networks.owners == set()


async def test_container_that_may_still_run_keeps_what_it_has(grants: Grants, networks: LocalNetworks) -> None:
    task = (await grants.attach(asked("one", "mine"))).task
    await grants.detach(TaskID("one"))
    grants.adopt(task)
    assert addresses(await grants.attach(asked("two", "mine"))) == ["10.7.0.3"]
    assert addresses(await grants.attach(asked("one", "mine"))) == ["10.7.0.2"]
    assert [task.id for task, _ in networks.members(networks.find("mine").id)] == ["one", "two"]


async def test_without_a_swarm_its_networks_are_not_found(networks: LocalNetworks) -> None:
    with pytest.raises(NotFound, match="network wide not found"):
        await Grants(networks, None).attach(asked("one", "mine", "wide"))


@pytest.mark.parametrize(
    ("joining", "error"),
    [
        (Joining(network="bridge", aliases=("x",)), Invalid),
        (Joining(network="bridge", addresses=(ip_address("172.17.0.9"),)), Invalid),
        (Joining(network="mine", addresses=(ip_address("10.1.0.9"),)), Invalid),
        (Joining(network="mine", mac="nonsense"), Invalid),
        (Joining(network="wide", mac="02:42:00:00:00:01"), Unsupported),
        (Joining(network="wide", priority=1), Unsupported),
    ],
)
async def test_what_a_network_cannot_give_is_refused(grants: Grants, joining: Joining, error: type[Exception]) -> None:
    with pytest.raises(error):
        await grants.attach(asked("one", joining, check=True))


async def test_host_gateway_is_the_node_on_the_way_out(grants: Grants) -> None:
    reply = await grants.attach(asked("one", "also", "mine", hosts="host-gateway here"))
    assert reply.task.spec.container_spec.hosts == ("10.7.0.1 here",)
    with pytest.raises(Unsupported, match="host-gateway needs a bridge network that leads out"):
        await grants.attach(asked("two", "also", hosts="host-gateway here"))


# --- ports ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_cannot_bind", lambda port: "")


def numbers(reply: AttachReply) -> list[int]:
    return [port.port for port in reply.task.local.ports]


@pytest.mark.usefixtures("nothing_listens")
async def test_ports_are_chosen_kept_and_never_given_twice(grants: Grants) -> None:
    wanted = (PublishedPort(target=80), PublishedPort(target=80, port=8000, last=8002), PublishedPort(target=81))
    one = await grants.attach(asked("one", "mine", ports=wanted))
    assert numbers(one) == [49153, 8000, 49154]
    two = await grants.attach(asked("two", "mine", ports=wanted))
    assert numbers(two) == [49155, 8001, 49156]
    assert numbers(await grants.attach(asked("one", "mine", "also", ports=wanted))) == numbers(one)
    await grants.detach(TaskID("one"))
    assert numbers(await grants.attach(asked("one", "mine", ports=wanted))) == [49157, 8000, 49158]


@pytest.mark.usefixtures("nothing_listens")
@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (PublishedPort(target=80, port=1), PublishedPort(target=80, port=1), False),
        (PublishedPort(target=80, port=1), PublishedPort(target=80, port=1, protocol="udp"), True),
        (PublishedPort(target=80, port=1), PublishedPort(target=80, port=1, address=ip_address("127.0.0.1")), False),
        (
            PublishedPort(target=80, port=1, address=ip_address("192.0.2.1")),
            PublishedPort(target=80, port=1, address=ip_address("127.0.0.1")),
            True,
        ),
        (PublishedPort(target=80, port=1), PublishedPort(target=80, port=9000), False),
    ],
)
async def test_two_containers_share_a_port_only_where_packets_can_tell(
    grants: Grants, first: PublishedPort, second: PublishedPort, together: bool
) -> None:
    await grants.attach(asked("one", "mine", ports=(first,)))
    if together:
        await grants.attach(asked("two", "mine", ports=(second,)))
    else:
        with pytest.raises(HivemeshError, match="port is already allocated"):
            await grants.attach(asked("two", "mine", ports=(second,)))


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


async def test_port_of_a_program_of_this_machine_is_not_taken_from_it(grants: Grants, listening: int) -> None:
    with pytest.raises(HivemeshError, match="address already in use"):
        await grants.attach(asked("one", "mine", ports=(PublishedPort(target=80, port=listening),)))
    elsewhere = PublishedPort(target=80, port=listening, address=ip_address("127.0.0.2"))
    assert numbers(await grants.attach(asked("one", "mine", ports=(elsewhere,)))) == [listening]
    nowhere = PublishedPort(target=80, port=listening, address=ip_address("192.0.2.1"))
    with pytest.raises(HivemeshError, match="cannot assign requested address"):
        await grants.attach(asked("two", "mine", ports=(nowhere,)))


# --- the networks themselves ------------------------------------------------------------------------------------------


async def test_networks_outlive_the_daemon(tmp_path: Path, networks: LocalNetworks, grants: Grants) -> None:
    default = networks.default()
    await grants.attach(asked("one", "bridge"))
    again = LocalNetworks(tmp_path, SystemClock())
    assert again.all == networks.all
    assert again.default() == default
    assert default in again.in_kernel
    assert again.needed.is_set()


def test_full_disk_makes_and_removes_no_network(
    tmp_path: Path, networks: LocalNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> tuple[int, str]:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = networks.all
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", refuse)
        with pytest.raises(Unavailable, match=r"No space left on device; nothing was changed"):
            networks.create(LocalSpec(name="new"))
        with pytest.raises(Unavailable, match="free some space there"):
            networks.remove("mine")
        assert networks.all == before
    networks.create(LocalSpec(name="new"))
    assert [network.name for network in LocalNetworks(tmp_path, SystemClock()).all] == ["also", "bridge", "mine", "new"]


def test_default_bridge_has_no_device_until_a_container_is_on_it(tmp_path: Path) -> None:
    networks = LocalNetworks(tmp_path, SystemClock())
    assert [network.name for network in networks.all] == ["bridge"]
    assert networks.in_kernel == ()
    assert not networks.needed.is_set()


async def test_network_goes_only_when_nobody_is_on_it(networks: LocalNetworks, grants: Grants) -> None:
    heard: list[tuple[str, str]] = []
    networks.on_event(lambda action, network, more: heard.append((action, more.get("container", ""))))
    await grants.attach(asked("one", "mine"))
    with pytest.raises(Conflict, match="has active endpoints"):
        networks.remove("mine")
    await grants.detach(TaskID("one"))
    networks.remove("mine")
    assert heard == [("connect", "c-one"), ("disconnect", "c-one"), ("destroy", "")]
    with pytest.raises(Forbidden):
        networks.remove("bridge")
    with pytest.raises(NotFound):
        networks.remove("mine")


def test_networks_are_found_by_id_name_and_beginning(networks: LocalNetworks) -> None:
    mine = networks.find("mine")
    assert networks.find(mine.id) is networks.find(mine.id[:12]) is mine
    with pytest.raises(NotFound):
        networks.find("")
    with pytest.raises(Conflict, match="network with name mine already exists"):
        networks.create(LocalSpec(name="mine"))


def test_settings_kept_for_others_are_theirs(networks: LocalNetworks) -> None:
    networks.create(
        LocalSpec(name="kept", config_only=True, ipam=(IPAMConfig(subnet="10.1.0.0/24"),), options={"parent": "lo"})
    )
    made = networks.create(LocalSpec(name="wire", driver="macvlan", config_from="kept"))
    assert (made.device, str(made.subnets[0].prefix)) == ("lo", "10.1.0.0/24")
    with pytest.raises(Conflict, match="in use by network wire"):
        networks.remove("kept")
    for spec, error in (
        (LocalSpec(name="x", config_from="nosuch"), NotFound),
        (LocalSpec(name="x", config_from="mine"), Forbidden),
        (LocalSpec(name="x", config_from="kept", internal=True), Forbidden),
    ):
        with pytest.raises(error):
            networks.create(spec)
