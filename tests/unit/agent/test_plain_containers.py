"""Plain containers on our networks, with an engine and managers made up: what is held always ends, whatever fails."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hivemesh.agent import container as timing
from hivemesh.agent import records
from hivemesh.agent.attached import AttachedContainers, Place
from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.local import LocalNetworks
from hivemesh.clock import SystemClock
from hivemesh.engine.api import ContainerInfo, EngineError
from hivemesh.kernel import netns
from hivemesh.model.addr import MAC
from hivemesh.model.errors import Forbidden, HivemeshError, NotFound, Unavailable
from hivemesh.model.ids import EndpointID, NetworkID, NodeID, ServiceID, TaskID
from hivemesh.model.service import ContainerSpec, NetworkAttachmentConfig, TaskSpec
from hivemesh.model.task import Attachment, Task, TaskState, TaskStatus
from hivemesh.wire.control import AttachReply, AttachRequest, Joining, TaskItem
from hivemesh.wire.engine.containers import LABEL, RestartRule, Wish


class Node:
    """Engine, managers and sandboxes at once: what runs, what is granted, what is wired."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: dict[str, str] = {}  # container id to state
        self.owners: dict[str, str] = {}
        self.granted: dict[TaskID, Task] = {}
        self.wired: dict[TaskID, tuple[str, ...]] = {}
        self.ended: dict[str, asyncio.Event] = {}
        self.failing: set[str] = set()
        self.starts = 0
        self.code = 0
        self.attached = self.daemon()

    def daemon(self) -> AttachedContainers:
        self.attached = AttachedContainers(
            sandboxes=_Wires(self),
            files=SandboxFiles(self.directory / "tasks"),
            managers=self,
            engine=_Engine(self),  # type: ignore[arg-type]  # only what is used here
            directory=self.directory,
            clock=SystemClock(),
            local=LocalNetworks(self.directory, SystemClock()),
        )
        return self.attached

    def fail(self, verb: str) -> None:
        if verb in self.failing:
            raise Unavailable(f"{verb} fails")

    # --- managers

    async def attach(self, request: AttachRequest) -> AttachReply:
        self.fail("attach")
        for joining in request.networks:
            if joining.network == "closed":
                raise Forbidden("network closed not manually attachable")
        task = Task(
            id=request.task, service_id=ServiceID(""), service_name="", slot=0, node_id=NodeID("n"),
            container=request.container, status=TaskStatus(state=TaskState.RUNNING),
            spec=TaskSpec(networks=tuple(NetworkAttachmentConfig(target=f"id-{j.network}") for j in request.networks)),
            attachments=tuple(
                Attachment(endpoint_id=EndpointID(j.network), network_id=NetworkID(f"id-{j.network}"),
                           addresses=(ip_interface("10.9.0.2/24"),), mac=MAC("02:42:0a:09:00:02"))
                for j in request.networks
            ),
        )  # fmt: skip
        if not request.check:
            self.granted[request.task] = task
        return AttachReply(task=task, names=tuple(joining.network for joining in request.networks))

    async def detach(self, task: TaskID) -> None:
        self.fail("detach")
        self.granted.pop(task, None)

    def tell(self) -> None:
        """The managers' view reaches the node."""
        self.attached.assign({f"task/{task.id}": TaskItem(task=task) for task in self.granted.values()})

    # --- what the engine's API would do

    async def make(self, place: Place) -> str:
        assert Path(place.namespace).exists()
        assert {Path(path).name for path in place.files.values()} == {"hosts", "resolv.conf"}
        place.container, place.name = f"c{len(self.running)}", f"name{len(self.running)}"
        self.running[place.container], self.owners[place.container] = "created", place.owner
        return place.container

    async def create(self, *networks: str, restart: str = "no", retries: int = 0, remove: bool = False) -> TaskID:
        container = await self.attached.create(
            wish(*networks, restart=restart, retries=retries, remove=remove), "", self.make
        )
        owner = self.attached.owner_of(container)
        assert owner is not None
        return owner

    async def begin(self, owner: TaskID) -> None:
        container = next(c for c, of in self.owners.items() if of == owner)
        assert owner in self.wired, "the sandbox comes first"
        if "begin" in self.failing:
            return
        self.running[container] = "running"
        self.ended[container] = asyncio.Event()
        self.starts += 1

    async def start(self, owner: TaskID) -> None:
        await self.attached.start(owner, lambda: self.begin(owner))

    def die(self, owner: TaskID, code: int = 0, *, gone: bool = False) -> None:
        container = next(c for c, of in self.owners.items() if of == owner)
        self.code = code
        if gone:
            del self.running[container]
        else:
            self.running[container] = "exited"
        self.ended[container].set()


class _Wires:
    def __init__(self, node: Node) -> None:
        self.node = node

    async def attach(self, task: Task) -> str:
        self.node.fail("wire")
        self.node.wired[task.id] = tuple(a.network_id for a in task.attachments)
        return "path"

    async def detach(self, task: TaskID) -> None:
        self.node.wired.pop(task, None)

    def files(self, task: Task, hostname: str, into: SandboxFiles | None = None) -> dict[str, str]:
        return {}


class _Engine:
    def __init__(self, node: Node) -> None:
        self.node = node

    async def list(self, label: str) -> list[ContainerInfo]:
        assert label == LABEL
        if "list" in self.node.failing:
            raise EngineError("the engine is silent")
        return [
            ContainerInfo(
                id=container, name=f"name-{container}", labels={LABEL: self.node.owners[container]}, state=state
            )
            for container, state in self.node.running.items()
        ]

    async def ended(self, container: str) -> None:
        raise NotImplementedError

    async def wait(self, container: str) -> int:
        if self.node.running.get(container) == "running":
            await self.node.ended[container].wait()
        return self.node.code

    async def start(self, container: str) -> None:
        await self.node.begin(TaskID(self.node.owners[container]))

    async def stop(self, container: str, signal: str, grace: float) -> None:
        self.node.running[container] = "exited"


def wish(*networks: str, restart: str = "no", retries: int = 0, remove: bool = False) -> Wish:
    return Wish(
        mode="mynet",
        networks=tuple(Joining(network=network) for network in networks or ("mynet",)),
        spec=ContainerSpec(),
        ports=(),
        restart=RestartRule(name=restart, retries=retries),  # type: ignore[arg-type]
        remove=remove,
    )


@asynccontextmanager
async def living(attached: AttachedContainers) -> AsyncIterator[None]:
    running = asyncio.create_task(attached.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    (tmp_path / "netns").mkdir()
    monkeypatch.setattr(netns, "NETNS_DIR", str(tmp_path / "netns"))
    monkeypatch.setattr(netns, "_share_directory", lambda: None)
    for name, value in {"RETRY": 0.01, "RESTART_FIRST": 0.01, "LOOK_PAUSE": 0.01, "REMOVAL_PAUSE": 0.01}.items():
        monkeypatch.setattr(timing, name, value)
    made = Node(tmp_path)
    async with living(made.attached):
        yield made
    assert not any((tmp_path / "netns").iterdir())


def saved(node: Node) -> dict[str, Any]:
    found = records.load(node.directory / "attached.json")
    return {owner: msgspec.to_builtins(record.granted is not None) for owner, record in found.items()}


async def test_container_holds_a_place_exactly_while_it_runs(node: Node) -> None:
    owner = await node.create()
    assert (node.granted, node.wired, saved(node)) == ({}, {}, {owner: False})
    await node.start(owner)
    assert node.granted.keys() == node.wired.keys() == {owner}
    assert saved(node) == {owner: True}
    node.die(owner, 1)
    await eventually(lambda: not node.granted and not node.wired)
    await node.start(owner)
    assert node.granted[owner].container == "name0"
    await node.attached.stop(owner, lambda: _do(lambda: node.die(owner)))
    assert not node.granted
    await node.attached.remove(owner, lambda: _do(lambda: node.running.clear()))
    assert (saved(node), node.attached.any) == ({}, False)
    assert not list((node.directory / "tasks").iterdir())


async def _do(work: Callable[[], None]) -> None:
    work()


async def test_refused_or_failed_creation_leaves_nothing(node: Node) -> None:
    with pytest.raises(Forbidden):
        await node.create("closed")

    async def fail(place: Place) -> None:
        raise Unavailable("the engine is down")

    with pytest.raises(Unavailable):
        await node.attached.create(wish(), "c1", fail)
    assert saved(node) == {}
    assert not node.attached.any


@pytest.mark.parametrize("failing", ["attach", "wire", "begin"])
async def test_start_that_fails_gives_everything_back(node: Node, failing: str) -> None:
    owner = await node.create()
    node.failing = {failing}
    try:
        await node.start(owner)
    except HivemeshError:
        assert failing != "begin"
    assert (node.granted, node.wired, saved(node)) == ({}, {}, {owner: False})
    node.failing = set()
    await node.start(owner)
    assert owner in node.granted


async def test_start_goes_on_when_its_client_hangs_up(node: Node) -> None:
    owner = await node.create()
    slow = asyncio.Event()

    async def begin() -> None:
        await slow.wait()
        await node.begin(owner)

    asking = asyncio.create_task(node.attached.start(owner, begin))
    await eventually(lambda: owner in node.wired)
    asking.cancel()
    slow.set()
    await eventually(lambda: node.starts == 1)
    node.die(owner)
    await eventually(lambda: not node.granted)


async def test_what_managers_could_not_be_told_is_told_later(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivemesh.agent.attached.RETRY_FIRST", 0.01)
    owner = await node.create()
    await node.start(owner)
    node.failing = {"detach"}
    node.die(owner)
    await eventually(lambda: not node.wired)
    assert owner in node.granted
    node.failing = set()
    await eventually(lambda: not node.granted)


async def test_networks_change_while_it_runs_and_while_it_does_not(node: Node) -> None:
    owner = await node.create()
    await node.attached.connect(owner, Joining(network="other"))
    assert not node.granted
    await node.start(owner)
    assert node.wired[owner] == ("id-mynet", "id-other")
    await node.attached.disconnect(owner, "id-my")
    assert node.wired[owner] == ("id-other",)
    with pytest.raises(Forbidden, match="already exists in network other"):
        await node.attached.connect(owner, Joining(network="other"))
    with pytest.raises(HivemeshError, match="is not connected to the network mynet"):
        await node.attached.disconnect(owner, "mynet")
    node.failing = {"wire"}
    with pytest.raises(Unavailable):
        await node.attached.connect(owner, Joining(network="third"))
    assert [member.name for member in node.attached.shown(owner).networks] == ["other"]


async def test_watched_container_has_its_sandbox_before_it_starts(node: Node) -> None:
    owner = await node.create()
    async with node.attached.looked_into(owner):
        assert owner in node.wired
        await node.start(owner)
    await asyncio.sleep(0.02)
    assert owner in node.wired
    node.die(owner)
    await eventually(lambda: not node.granted)
    async with node.attached.looked_into(owner):  # and nobody starts it
        assert owner in node.granted
    await eventually(lambda: not node.granted and not node.wired)


async def test_container_that_removes_itself_is_forgotten(node: Node) -> None:
    owner = await node.create(remove=True)
    await node.start(owner)
    node.die(owner)
    await eventually(lambda: not node.granted)
    node.running.clear()
    await eventually(lambda: saved(node) == {})


async def test_container_removed_behind_our_back_is_forgotten(node: Node) -> None:
    owner, idle = await node.create(), await node.create()
    await node.start(owner)
    node.die(owner, gone=True)
    await eventually(lambda: not node.granted)
    del node.running["c1"]
    assert {owner, idle} == saved(node).keys()
    await node.attached.tidy()
    assert saved(node) == {}


@pytest.mark.parametrize(
    ("rule", "retries", "code", "starts"),
    [
        ("no", 0, 1, 1),
        ("on-failure", 0, 0, 1),
        ("on-failure", 2, 1, 3),
        ("always", 0, 0, 4),
        ("unless-stopped", 0, 1, 4),
    ],
)
async def test_restart_policy_begins_again_in_the_same_place(
    node: Node, rule: str, retries: int, code: int, starts: int
) -> None:
    owner = await node.create(restart=rule, retries=retries)
    await node.start(owner)
    place = node.granted[owner]
    for number in range(1, starts):
        node.die(owner, code)
        await eventually(lambda number=number: node.starts == number + 1)  # type: ignore[misc]
        assert node.granted[owner] is place
    if rule in ("always", "unless-stopped"):
        await node.attached.stop(owner, lambda: _do(lambda: node.die(owner, code)))
    else:
        node.die(owner, code)
    await eventually(lambda: not node.granted)
    assert node.starts == starts
    assert node.attached.shown(owner).restarts == starts - 1


async def test_next_daemon_adopts_what_runs_and_gives_back_what_does_not(node: Node, tmp_path: Path) -> None:
    runs, ended, gone, idle, always = [await node.create(restart=r) for r in ("no", "no", "no", "no", "always")]
    for owner in (runs, ended, gone, always):
        await node.start(owner)
    held = node.granted[runs]
    next_one = Node.daemon(node)  # the first did not notice any more
    node.running.update({"c1": "exited", "c4": "exited"})
    del node.running["c2"]
    node.wired.clear()
    async with living(next_one):
        node.tell()
        await eventually(lambda: node.granted.keys() == {runs, always} and node.wired.keys() == {runs, always})
        assert node.granted[runs] is held
        assert saved(node).keys() == {runs, ended, idle, always}
        await eventually(lambda: node.running["c4"] == "running")
        node.die(runs)
        await eventually(lambda: node.granted.keys() == {always})


async def test_next_daemon_claims_what_runs_and_the_managers_forgot(node: Node) -> None:
    owner = await node.create()
    await node.start(owner)
    next_one = Node.daemon(node)
    node.granted.clear()
    async with living(next_one):
        node.tell()
        await eventually(lambda: owner in node.granted)


async def test_place_that_nobody_uses_is_given_back(node: Node) -> None:
    stranger = TaskID("s" * 25)
    await node.attach(AttachRequest(task=stranger, container="lost"))
    node.wired[stranger] = ()
    node.tell()
    await eventually(lambda: not node.granted and not node.wired)


async def test_silent_engine_holds_up_nothing_but_its_containers(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivemesh.agent.attached.RETRY_FIRST", 0.01)
    owner = await node.create()
    await node.start(owner)
    next_one = Node.daemon(node)
    node.failing = {"list"}
    async with living(next_one):
        asking = asyncio.create_task(next_one.rename(owner, "new"))
        await asyncio.sleep(0.03)
        assert not asking.done()
        node.failing = set()
        await asking
        assert node.granted[owner].container == "new"


async def test_unknown_container_is_not_found(node: Node) -> None:
    with pytest.raises(NotFound):
        await node.attached.start(TaskID("x"), lambda: _do(lambda: None))


def test_damaged_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "attached.json"
    path.write_text("{")
    assert records.load(path) == {}
    assert path.with_suffix(".broken").exists()
    assert records.load(path) == {}
