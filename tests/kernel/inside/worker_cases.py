"""Run by test_worker_on_a_machine.py inside network and mount namespaces of its own: here, the host is ours to change.

The views are made by hand, as a manager would send them; the engine runs commands of the machine.
"""

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from hivemesh.agent import names, resolver
from hivemesh.agent.resolver import COMMAND, Resolver
from hivemesh.agent.worker import Worker
from hivemesh.clock import SystemClock
from hivemesh.dataplane.apply import Applier
from hivemesh.engine import process
from hivemesh.engine.api import ContainerInfo
from hivemesh.engine.process import ProcessEngine
from hivemesh.kernel import conntrack, rtnl
from hivemesh.model.addr import MAC, VNI, Interface, endpoint_mac
from hivemesh.model.ids import EndpointID, NetworkID, NodeID, ServiceID, TaskID, new_id
from hivemesh.model.network import Subnet
from hivemesh.model.service import ContainerSpec, PortConfig, TaskSpec
from hivemesh.model.task import Attachment, Task, TaskState, TaskStatus
from hivemesh.wire.control import Backend, NetworkItem, NodeItem, PeerItem, PublishItem, TaskItem, View, key_of

VTEP = ipaddress.ip_address("198.51.100.11")
INGRESS = NetworkID("ingressnetwork00000000000")
USER = NetworkID("usernetwork00000000000000")
OVERLAY = f"1-{INGRESS[:10]}"
IMAGE = "localhost/web"
SERVER = ["/bin/busybox", "httpd", "-f", "-p", "[::]:80", "-h"]


def sh(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def attachment(network: NetworkID, name: str, *addresses: str) -> Attachment:
    interfaces: tuple[Interface, ...] = tuple(map(ipaddress.ip_interface, addresses))
    return Attachment(
        endpoint_id=EndpointID(name.ljust(25, "0")),
        network_id=network,
        addresses=interfaces,
        mac=endpoint_mac(interfaces, name),
    )


def network(identifier: NetworkID, number: int, vni: int, *, ingress: bool = False) -> NetworkItem:
    v4, v6 = ipaddress.ip_network(f"10.0.{number}.0/24"), ipaddress.ip_network(f"fd00:{number}::/64")
    return NetworkItem(
        id=identifier,
        name="ingress" if ingress else "user",
        vni=VNI(vni),
        port=4789,
        subnets=(Subnet(prefix=v4, gateway=v4[1]), Subnet(prefix=v6, gateway=v6[1])),
        ingress=ingress,
        own=attachment(identifier, f"own{number}", f"10.0.{number}.2/24", f"fd00:{number}::2/64"),
    )


def a_task(number: int, *, args: tuple[str, ...] = (), image: str = IMAGE, host_port: int | None = None) -> Task:
    ports: tuple[PortConfig, ...] = (PortConfig(target_port=80, published_port=8090),)
    if host_port is not None:
        ports += (PortConfig(target_port=80, published_port=host_port, publish_mode="host"),)
    return Task(
        id=TaskID(f"task{number}".ljust(25, "x")),
        service_id=ServiceID("service".ljust(25, "0")),
        service_name="web",
        slot=number,
        spec=TaskSpec(container_spec=ContainerSpec(image=image, args=args, stop_grace_period=2_000_000_000)),
        node_id=NodeID("node".ljust(25, "0")),
        status=TaskStatus(state=TaskState.ASSIGNED),
        ports=ports,
        attachments=(
            attachment(INGRESS, f"i{number}", f"10.0.0.{10 + number}/24", f"fd00:0::{10 + number}/64"),
            attachment(USER, f"u{number}", f"10.0.1.{10 + number}/24", f"fd00:1::{10 + number}/64"),
        ),
    )


BALANCER: Any = os.environ.get("HIVEMESH_TEST_BALANCER", "nftables")
PATIENCE = 30 if "HIVEMESH_GUEST" in os.environ else 1  # an emulated machine is that much slower, beside other tests


class Manager:
    """What the agent would talk to: sends views, remembers answers."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}
        self.revision = 0
        self.acked: dict[int, tuple[int, float]] = {}
        self.reports: dict[TaskID, list[TaskStatus]] = {}
        self.put(
            NodeItem(id=NodeID("node".ljust(25, "0")), vtep=VTEP),
            NodeItem(id=NodeID("other".ljust(25, "0")), vtep=ipaddress.ip_address("198.51.100.12")),
            network(INGRESS, 0, 4096, ingress=True),
        )

    def put(self, *items: Any) -> None:
        for item in items:
            self.items[key_of(item)] = item

    def task(self, task: Task, *, released: bool = False) -> None:
        self.put(network(USER, 1, 4097), TaskItem(task=task, released=released))

    def publish(self, *numbers: int, protocol: str = "tcp") -> None:
        backends = tuple(
            Backend(
                task=TaskID(f"task{n}".ljust(25, "x")),
                addresses=(ipaddress.ip_address(f"10.0.0.{10 + n}"), ipaddress.ip_address(f"fd00:0::{10 + n}")),
            )
            for n in numbers
        )
        self.put(
            PublishItem(
                service=ServiceID(new_id()), service_name="web", protocol=protocol, port=8090, backends=backends
            )
        )

    def send(self, worker: Worker) -> int:
        self.revision += 1
        view: View = dict(self.items)
        worker.assign(view, self.revision)
        return self.revision

    def state(self, task: Task) -> TaskState | None:
        seen = self.reports.get(task.id)
        return seen[-1].state if seen else None

    def report(self, task: TaskID, status: TaskStatus) -> None:
        self.reports.setdefault(task, []).append(status)
        item = self.items.get(f"task/{task}")
        if item is not None:
            self.put(msgspec.structs.replace(item, task=item.task.with_report(status)))

    def ack(self, revision: int, pending: int = 0) -> None:
        self.acked[revision] = (pending, time.monotonic())


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds * PATIENCE):
        while not condition():  # noqa: ASYNC110 - conditions of the kernel have no event
            await asyncio.sleep(0.01)


class Machine:
    """Starts and stops daemons' worth of workers on the same disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manager = Manager()
        web = root / "www"
        web.mkdir()
        (web / "index.html").write_text("hello\n")
        self.resolver_command = COMMAND
        self.images = {IMAGE: [*SERVER, str(web)]}

    def _new(self, engine: ProcessEngine) -> Worker:
        self.resolver = Resolver(self.root / "resolver.sock", clock=SystemClock(), command=self.resolver_command)
        return Worker(
            port=self.manager,
            engine=engine,
            applier=Applier(),
            resolver=self.resolver,
            data_dir=self.root,
            vtep=VTEP,
            clock=SystemClock(),
            balancer=BALANCER,
        )

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        engine = ProcessEngine(self.root / "process", self.images)
        worker = self._new(engine)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await engine.close()

    async def clean(self) -> None:
        engine = ProcessEngine(self.root / "process", self.images)
        worker = self._new(engine)
        await worker.dissolve()
        await engine.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an emulated machine a program takes that much longer to start, and to answer."""
    for module, name in (
        (resolver, "START_TIMEOUT"),
        (resolver, "ANSWER_TIMEOUT"),
        (names, "ADMIT_TIMEOUT"),
        (process, "START_TIMEOUT"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name) * PATIENCE)


@pytest.fixture(autouse=True)
def underlay() -> None:
    """The machine's one interface. Nothing answers there."""
    if "eth9" not in os.listdir("/sys/class/net"):
        sh("mount -t sysfs sysfs /sys; ip link set lo up; ip link add eth9 type veth peer eth8")
        sh("ip link set eth8 up; ip link set eth9 up")
        sh("ip addr add 198.51.100.11/24 dev eth9; ip addr add fd00:99::11/64 dev eth9 nodad")


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        await made.clean()
        assert sh("ip -o netns list") == ""
        # the kernel takes namespaces apart at its leisure, and veths with them
        await until(lambda: not any(name.startswith("hm") for name in os.listdir("/sys/class/net")))
        assert sh("nft list tables") == ""


async def running(machine: Machine, worker: Worker, *tasks: Task) -> None:
    """The tasks assigned, running and published."""
    for task in tasks:
        machine.manager.task(task)
    machine.manager.send(worker)
    await until(lambda: all(machine.manager.state(t) == TaskState.RUNNING for t in tasks))
    machine.manager.publish(*(t.slot for t in tasks))
    revision = machine.manager.send(worker)
    await until(lambda: revision in machine.manager.acked)


def curl(url: str) -> str:
    return sh(f"curl -sS --max-time {3 * PATIENCE} {url}")


async def served(url: str) -> bool:
    try:
        return await asyncio.to_thread(curl, url) == "hello\n"
    except AssertionError:
        return False


async def test_published_task_answers_on_every_address_of_the_node(machine: Machine) -> None:
    async with machine.worker() as worker:
        await running(machine, worker, a_task(1), a_task(2))
        await asyncio.sleep(0.1)
        for address in ("198.51.100.11", "127.0.0.1", "[fd00:99::11]", "[::1]"):
            assert await served(f"http://{address}:8090/"), address
        assert await worker.equal_to_plan() == []
        states = [status.state for status in machine.manager.reports[a_task(1).id]]
        assert states == [
            TaskState.ACCEPTED, TaskState.PREPARING, TaskState.READY, TaskState.STARTING, TaskState.RUNNING,
        ]  # fmt: skip


async def test_namespaces_hold_what_users_know_from_swarm(machine: Machine) -> None:
    async with machine.worker() as worker:
        task = a_task(1)
        await running(machine, worker, task)
        names = set(sh("ip netns list | cut -d' ' -f1").split())
        assert names == {OVERLAY, f"1-{USER[:10]}", "ingress_sbox", task.id[:12]}
        links = json.loads(sh(f"ip -j -n {task.id[:12]} addr show"))
        addresses = {link["ifname"]: link["addr_info"][0]["local"] for link in links}
        assert addresses == {"lo": "127.0.0.1", "eth0": "10.0.0.11", "eth1": "172.18.0.3", "eth2": "10.0.1.11"}


async def test_new_backends_reach_the_kernel_with_the_view_that_names_them(machine: Machine) -> None:
    async with machine.worker() as worker:
        await running(machine, worker, a_task(1))
        for number in range(10):
            machine.manager.publish(1, *range(2, 3 + number))
            machine.manager.put(
                PeerItem(
                    network=INGRESS,
                    endpoint=EndpointID(f"peer{number}".ljust(25, "0")),
                    addresses=(ipaddress.ip_interface(f"10.0.0.{100 + number}/24"),),
                    mac=MAC(f"02:42:0a:00:00:{100 + number:02x}"),
                    vtep=ipaddress.ip_address("198.51.100.12"),
                )
            )
            revision = machine.manager.send(worker)
            await until(lambda r=revision: r in machine.manager.acked)  # type: ignore[misc]
            entries = [line for line in sh(f"bridge -n {OVERLAY} fdb show dev vxlan0").splitlines() if "dst" in line]
            assert len(entries) == number + 1
            backends = sh("ip netns exec ingress_sbox nft list map inet hivemesh backends4")
            assert backends.count("8090") == number + 2, backends


async def test_task_runs_until_it_is_released(machine: Machine) -> None:
    async with machine.worker() as worker:
        task = a_task(1)
        await running(machine, worker, task)
        stopping = machine.manager.items[f"task/{task.id}"].task
        stopping = msgspec.structs.replace(stopping, desired=TaskState.SHUTDOWN)
        machine.manager.task(stopping)
        machine.manager.publish()
        machine.manager.send(worker)
        await asyncio.sleep(0.3)
        assert machine.manager.state(task) == TaskState.RUNNING
        machine.manager.task(stopping, released=True)
        machine.manager.send(worker)
        await until(lambda: machine.manager.state(task) == TaskState.SHUTDOWN)
        await until(lambda: task.id[:12] not in sh("ip netns list"))


async def test_sandbox_removed_while_others_are_put_right_does_not_come_back(machine: Machine) -> None:
    async with machine.worker() as worker:
        first, second = a_task(1), a_task(2)
        await running(machine, worker, first)
        await running(machine, worker, second)
        ensure, begun, go_on = worker.network._namespaces.kernel.ensure, threading.Event(), threading.Event()
        ensured: list[str] = []

        def held(plan: Any) -> Any:
            ensured.append(plan.namespace)
            if plan.namespace == first.id[:12]:
                begun.set()
                assert go_on.wait(20)
            return ensure(plan)

        worker.network._namespaces.kernel.ensure = held  # type: ignore[method-assign]
        for task in (first, second):
            worker.network._namespaces.applied.pop(task.id[:12])
        machine.manager.send(worker)
        await until(begun.is_set)
        try:
            del machine.manager.items[f"task/{second.id}"]
            revision = machine.manager.send(worker)
            await until(lambda: second.id[:12] not in sh("ip netns list"))
        finally:
            go_on.set()
        await until(lambda: revision in machine.manager.acked)
        assert second.id[:12] not in ensured


async def test_network_that_could_not_be_put_right_goes_once_nobody_wants_it(machine: Machine) -> None:
    async with machine.worker() as worker:
        task = a_task(1)
        await running(machine, worker, task)
        ensure = worker.network._namespaces.kernel.ensure

        def failing(plan: Any) -> Any:
            outcome = ensure(plan)
            return replace(outcome, failed=("as the test wants it",)) if plan.namespace == f"1-{USER[:10]}" else outcome

        worker.network._namespaces.kernel.ensure = failing  # type: ignore[method-assign]
        worker.network._namespaces.applied.pop(f"1-{USER[:10]}")
        revision = machine.manager.send(worker)
        await until(lambda: machine.manager.acked.get(revision, (0, 0))[0] > 0)
        for key in (f"task/{task.id}", key_of(network(USER, 1, 4097))):
            del machine.manager.items[key]
        machine.manager.publish()
        machine.manager.send(worker)
        await until(lambda: f"1-{USER[:10]}" not in sh("ip netns list"))


async def test_task_given_up_while_the_node_was_away_ends_once_nobody_here_is_led_to_it(machine: Machine) -> None:
    """Its end and its successor come in one view, and the kernel is slow to follow."""
    async with machine.worker() as worker:
        task, other = a_task(1), a_task(2)
        await running(machine, worker, task, other)
        ensure = worker.network._namespaces.kernel.ensure

        def slowly(plan: Any) -> Any:
            time.sleep(0.2)
            return ensure(plan)

        worker.network._namespaces.kernel.ensure = slowly  # type: ignore[method-assign]
        stopping = machine.manager.items[f"task/{task.id}"].task
        machine.manager.task(msgspec.structs.replace(stopping, desired=TaskState.SHUTDOWN), released=True)
        machine.manager.publish(2)
        machine.manager.send(worker)
        while machine.manager.state(task) != TaskState.SHUTDOWN:
            assert await served("http://198.51.100.11:8090/")


async def test_removed_service_leaves_nothing(machine: Machine) -> None:
    async with machine.worker() as worker:
        task = a_task(1)
        await running(machine, worker, task)
        for key in (f"task/{task.id}", "publish/tcp/8090", f"network/{USER}"):
            del machine.manager.items[key]
        machine.manager.send(worker)
        await until(lambda: set(sh("ip netns list | cut -d' ' -f1").split()) == {OVERLAY, "ingress_sbox"})
        await until(lambda: not any((machine.root / "process").iterdir()))
        assert "8090" not in sh("nft list ruleset; ip netns exec ingress_sbox nft list ruleset")
        assert await worker.equal_to_plan() == []
        assert worker.drift == {}


async def test_killed_process_fails_its_task_at_once(machine: Machine) -> None:
    async with machine.worker() as worker:
        task = a_task(1)
        await running(machine, worker, task)
        os.kill(machine.manager.reports[task.id][-1].pid, 9)
        await until(lambda: machine.manager.state(task) == TaskState.FAILED, 1)
        assert machine.manager.reports[task.id][-1].err == "task: non-zero exit (137)"


@pytest.mark.parametrize(
    ("image", "args", "state", "words"),
    [
        ("localhost/none", (), TaskState.REJECTED, "no command is configured for the image localhost/none"),
        ("/bin/busybox", ("true",), TaskState.COMPLETE, ""),
        ("/bin/busybox", ("sh", "-c", "exit 3"), TaskState.FAILED, "task: non-zero exit (3)"),
    ],
)
async def test_task_ends_with_the_engines_words(
    machine: Machine, image: str, args: tuple[str, ...], state: TaskState, words: str
) -> None:
    async with machine.worker() as worker:
        task = a_task(1, image=image, args=args)
        machine.manager.task(task)
        machine.manager.send(worker)
        await until(lambda: machine.manager.state(task) == state)
        assert words in machine.manager.reports[task.id][-1].err
        await until(lambda: task.id[:12] not in sh("ip netns list"))


async def test_udp_connections_to_a_backend_that_left_are_forgotten(machine: Machine) -> None:
    async with machine.worker() as worker:
        machine.manager.publish(1, 2, protocol="udp")
        revision = machine.manager.send(worker)
        await until(lambda: revision in machine.manager.acked)
        for address in ("198.51.100.11", "fd00:99::11"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for _ in range(2):  # round robin: one flow to each
                with socket.socket(family, socket.SOCK_DGRAM) as client:
                    client.sendto(b"hello", (address, 8090))
        machine.manager.publish(2, protocol="udp")
        revision = machine.manager.send(worker)
        await until(lambda: revision in machine.manager.acked)
        left = {
            address: conntrack.forget("ingress_sbox", udp=[ipaddress.ip_address(address)])
            for address in ("10.0.0.11", "fd00:0::11", "10.0.0.12", "fd00:0::12")
        }
        assert list(left.values()) == [0, 0, 1, 1]


async def test_sandbox_is_wired_once_its_bridge_is_back(machine: Machine) -> None:
    async with machine.worker() as worker:
        await running(machine, worker, a_task(1))
        sh(f"ip -n {OVERLAY} link del br0")
        machine.manager.task(a_task(2))
        machine.manager.send(worker)
        await until(lambda: machine.manager.state(a_task(2)) == TaskState.RUNNING)
        assert TaskState.REJECTED not in [status.state for status in machine.manager.reports[a_task(2).id]]


async def test_host_mode_port_leads_to_the_task(machine: Machine) -> None:
    async with machine.worker() as worker:
        chosen, open_ = a_task(1, host_port=8080), a_task(2, host_port=0)
        await running(machine, worker, chosen, open_)
        (port,) = machine.manager.reports[open_.id][-1].ports
        assert port.published_port >= 49153
        for number in (8080, port.published_port):
            for address in ("198.51.100.11", "[fd00:99::11]"):
                assert await served(f"http://{address}:{number}/"), (address, number)


async def test_host_mode_ports_stay_open_while_a_restarted_worker_waits_for_its_engine(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine.worker() as worker:
        chosen, open_ = a_task(1, host_port=8080), a_task(2, host_port=0)
        await running(machine, worker, chosen, open_)
        (port,) = machine.manager.reports[open_.id][-1].ports
        await asyncio.sleep(0.6)  # the view is on disk

    async def say_nothing(engine: ProcessEngine) -> NoReturn:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("hivemesh.agent.network.TRUST_AFTER", 0.05)
    with monkeypatch.context() as silent:
        silent.setattr(ProcessEngine, "list", say_nothing)
        async with machine.worker() as worker:
            await until(lambda: "" in worker.network.plans)
            assert await served("http://198.51.100.11:8080/"), "by the view on disk"
            revision = machine.manager.send(worker)
            await until(lambda: revision in machine.manager.acked)
            for number in (8080, port.published_port):
                assert await served(f"http://198.51.100.11:{number}/"), "by the managers' view, which sweeps"
    async with machine.worker() as worker:
        for task in (chosen, open_):
            del machine.manager.items[f"task/{task.id}"]
        machine.manager.send(worker)
        await until(lambda: "8080" not in sh("nft list ruleset"))


async def test_restarted_worker_adopts_without_a_manager(machine: Machine) -> None:
    async with machine.worker() as worker:
        task = a_task(1)
        await running(machine, worker, task)
        machine.manager.send(worker)
        await until(lambda: (machine.root / "agent/view.msgpack").exists())
        await asyncio.sleep(0.6)
    pid = machine.manager.reports[task.id][-1].pid
    before = sh("ip -a netns exec ip -o link; ip -o link")
    reports = len(machine.manager.reports[task.id])
    rtnl.forget("")
    async with machine.worker() as worker:
        await asyncio.sleep(0.5)
        assert await served("http://198.51.100.11:8090/")
        assert (
            sh("ip -a netns exec ip -o link; ip -o link") == before
        )  # links have their old numbers: nothing was rebuilt
        assert len(machine.manager.reports[task.id]) == reports
        assert await worker.equal_to_plan() == []
        os.kill(pid, 9)
        await until(lambda: machine.manager.state(task) == TaskState.FAILED)


@contextlib.asynccontextmanager
async def restarted_with_an_older_view(machine: Machine) -> AsyncIterator[Worker]:
    """Port 8090 was opened after the view on disk was written; meanwhile the other network lost its tunnel."""
    saved = machine.root / "agent/view.msgpack"
    async with machine.worker() as worker:
        machine.manager.task(a_task(1))
        machine.manager.send(worker)
        await until(lambda: machine.manager.state(a_task(1)) == TaskState.RUNNING)
        await until(saved.exists)
        older = saved.read_bytes()
        machine.manager.publish(1)
        revision = machine.manager.send(worker)
        await until(lambda: revision in machine.manager.acked)
    saved.write_bytes(older)
    sh(f"ip -n 1-{USER[:10]} link del vxlan0")
    rtnl.forget("")
    async with machine.worker() as worker:
        yield worker


async def test_older_view_on_disk_closes_no_port_before_a_manager_could_speak_but_repairs_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hivemesh.agent.network.TRUST_AFTER", 3600.0)
    async with restarted_with_an_older_view(machine) as worker:
        await until(lambda: {"", "ingress_sbox"} <= worker.network._namespaces.waiting)
        await until(lambda: "vxlan0" in sh(f"ip -n 1-{USER[:10]} -o link"))
        assert await served("http://198.51.100.11:8090/")
        machine.manager.send(worker)
        await until(lambda: machine.manager.revision in machine.manager.acked)
        assert await served("http://198.51.100.11:8090/")
        assert await worker.equal_to_plan() == []


async def test_without_a_manager_the_view_on_disk_holds_after_a_moment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hivemesh.agent.network.TRUST_AFTER", 0.05)
    async with restarted_with_an_older_view(machine) as worker:
        await until(lambda: "8090" not in sh("nft list ruleset; ip netns exec ingress_sbox nft list ruleset"))
        await until(lambda: {"", "ingress_sbox", OVERLAY} <= worker.network.plans.keys())
        assert await worker.equal_to_plan() == []


async def test_first_view_of_a_restarted_worker_sweeps_what_is_gone(machine: Machine) -> None:
    async with machine.worker() as worker:
        task = a_task(1)
        await running(machine, worker, task)
    pid = machine.manager.reports[task.id][-1].pid
    for key in (f"task/{task.id}", "publish/tcp/8090", f"network/{USER}"):
        del machine.manager.items[key]
    async with machine.worker() as worker:
        await asyncio.sleep(0.2)
        assert os.path.exists(f"/proc/{pid}")
        machine.manager.send(worker)
        await until(lambda: set(sh("ip netns list | cut -d' ' -f1").split()) == {OVERLAY, "ingress_sbox"})
        await until(lambda: not os.path.exists(f"/proc/{pid}"))
        assert await worker.equal_to_plan() == []


@pytest.mark.parametrize("known", ["before the engine speaks", "before the manager speaks", "to nobody", "as orphaned"])
async def test_task_given_up_while_there_was_no_daemon_is_unplugged_at_once_though_its_process_lives_on(
    machine: Machine, known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its addresses are somebody else's by now. Neither the process nor the resolver, which knew of it, keeps them."""
    machine.images["stubborn"] = ["sh", "-c", f"trap '' TERM; exec {' '.join(machine.images[IMAGE])}"]
    task, saved = a_task(1, image="stubborn"), machine.root / "agent/view.msgpack"
    plugged = f"ip -n 1-{USER[:10]} -o link show type veth"
    async with machine.worker() as worker:
        await running(machine, worker, task)
        await until(lambda: saved.exists() and task.id.encode() in saved.read_bytes())
        assert sh(plugged)
    pid = machine.manager.reports[task.id][-1].pid
    if known == "to nobody":
        saved.unlink()
    spoken, look = asyncio.Event(), ProcessEngine.list

    async def list_late(engine: ProcessEngine) -> list[ContainerInfo]:
        await spoken.wait()
        return await look(engine)

    monkeypatch.setattr(ProcessEngine, "list", list_late)
    del machine.manager.items["publish/tcp/8090"]
    status = machine.manager.items.pop(f"task/{task.id}").task.status
    if known == "as orphaned":
        given_up = msgspec.structs.replace(status, state=TaskState.ORPHANED)
        machine.manager.task(msgspec.structs.replace(task, status=given_up, desired=TaskState.SHUTDOWN))
    async with machine.worker() as worker:
        if known != "to nobody":
            await until(lambda: machine.resolver.sandboxes)
        if known == "before the manager speaks":
            spoken.set()
            await until(lambda: task.id in worker.network._sandboxes)
        machine.manager.send(worker)
        spoken.set()
        await until(lambda: not sh(plugged) and not machine.resolver.sandboxes)
        assert os.path.exists(f"/proc/{pid}"), "too late to tell"
        os.kill(pid, 9)


async def test_plain_container_that_ended_while_there_was_no_daemon_leaves_no_sandbox(machine: Machine) -> None:
    """Its end is seen to while the first look at this machine goes on."""
    plain = msgspec.structs.replace(a_task(3), attachments=a_task(3).attachments[1:], ports=())
    async with machine.worker() as worker:
        await running(machine, worker, a_task(1))
        await worker.network.attach(plain)
    async with machine.worker() as worker:
        network, looking, removing = worker.network, asyncio.Event(), threading.Event()
        network._local.hold(plain)
        look, remove = network._look, network._namespaces.kernel.remove

        async def look_late() -> Any:
            await looking.wait()
            return await look()

        def remove_late(namespace: str, **how: Any) -> None:
            assert removing.wait(20)
            remove(namespace, **how)

        network._look = look_late  # type: ignore[method-assign]
        network._namespaces.kernel.remove = remove_late  # type: ignore[method-assign]
        await until(lambda: network._heirs)
        ending = asyncio.create_task(network.detach(plain.id))
        await asyncio.sleep(0)
        looking.set()
        with contextlib.suppress(TimeoutError):
            await until(lambda: plain.id in network._sandboxes, 0.5)
        removing.set()
        await ending
        network._local.release(plain.id)
        revision = machine.manager.send(worker)
        await until(lambda: revision in machine.manager.acked)
        assert plain.id[:12] not in sh("ip netns list")


async def test_resolver_that_ends_as_it_starts_is_started_again_at_once(machine: Machine) -> None:
    died = machine.root / "died"
    machine.resolver_command = ("sh", "-c", f'[ -e {died} ] || {{ touch {died}; exit 1; }}; exec "$@"', "sh", *COMMAND)
    async with machine.worker() as worker:
        await running(machine, worker, a_task(1))
        assert died.exists()


async def test_names_of_namespaces_half_made_or_half_removed_go_and_those_of_others_stay(machine: Machine) -> None:
    async with machine.worker() as worker:
        await running(machine, worker, a_task(1))
    folder = Path("/run/netns")
    ours, other = [folder / "abcdefghij12", folder / "1-abcdefghij"], folder / "somebodys"
    for name in (*ours, other):
        name.touch(mode=0)
    try:
        async with machine.worker() as worker:
            machine.manager.send(worker)
            await until(lambda: not any(map(Path.exists, ours)))
            assert other.exists()
            assert await worker.equal_to_plan() == []
    finally:
        other.unlink()


def processes_of(machine: Machine) -> set[int]:
    """Those that name this machine's directory: tasks, their shells, the resolver."""
    mark, found = str(machine.root).encode(), set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if int(name) != os.getpid() and mark in Path("/proc", name, "cmdline").read_bytes():
                found.add(int(name))
    return found


async def test_after_a_reboot_tasks_begin_anew_and_no_leftover_is_in_the_way(machine: Machine) -> None:
    """All processes and all of the kernel's objects are gone; files, sockets without a listener and all, are not."""
    before = processes_of(machine)
    async with machine.worker() as worker:
        task = a_task(1)
        await running(machine, worker, task)
        await until(lambda: (machine.root / "agent/view.msgpack").exists())
        await asyncio.sleep(0.6)
    ours = processes_of(machine) - before | {machine.manager.reports[task.id][-1].pid}
    assert len(ours) >= 2  # the resolver too
    for pid in ours:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in ours))
    sh("ip -all netns del; ip link del hm_gwbridge; nft flush ruleset")
    assert (machine.root / "resolver.sock").exists()
    rtnl.forget("")
    async with machine.worker() as worker:
        machine.manager.send(worker)
        await until(lambda: machine.manager.state(task) == TaskState.FAILED)
        del machine.manager.items[f"task/{task.id}"], machine.manager.items["publish/tcp/8090"]
        again = a_task(2)
        await running(machine, worker, again)
        assert await served("http://198.51.100.11:8090/")
        await until(lambda: task.id[:12] not in sh("ip netns list"))
        assert await worker.equal_to_plan() == []


@pytest.mark.parametrize(
    "damage",
    [
        "nft delete table inet hivemesh",
        "ip netns exec ingress_sbox nft flush ruleset",
        f"bridge -n {OVERLAY} fdb del 02:42:0a:00:00:63 dev vxlan0 dst 198.51.100.12 self",
        f"ip -n {OVERLAY} link del vxlan0",
        f"ip -n {OVERLAY} link del br0",
        "ip link del hm_gwbridge",
        "ip -n ingress_sbox link set eth0 down",
        "ip -n ingress_sbox route del default",
        f"ip -n {a_task(1).id[:12]} addr del 10.0.0.11/24 dev eth0",
        f"ip -n {a_task(1).id[:12]} link del eth1",
        "ip netns del ingress_sbox",
        "nft flush ruleset",
        f"ip netns exec {a_task(1).id[:12]} sysctl -qw net.ipv4.fwmark_reflect=0 net.ipv4.conf.all.rp_filter=0",
        f"ip netns exec {OVERLAY} sysctl -qw net.ipv6.conf.all.disable_ipv6=0; sysctl -qw net.ipv4.ip_forward=0",
    ],
)
async def test_damage_is_found_and_repaired(machine: Machine, damage: str) -> None:
    async with machine.worker() as worker:
        machine.manager.put(
            PeerItem(
                network=INGRESS,
                endpoint=EndpointID("peer".ljust(25, "0")),
                addresses=(ipaddress.ip_interface("10.0.0.99/24"),),
                mac=MAC("02:42:0a:00:00:63"),
                vtep=ipaddress.ip_address("198.51.100.12"),
            )
        )
        await running(machine, worker, a_task(1))
        assert await worker.equal_to_plan() == []
        begun = time.monotonic()
        sh(damage)
        await until(lambda: sum(worker.drift.values()))
        print(f"{damage}: {worker.drift} after {time.monotonic() - begun:.3f} s")
        await asyncio.sleep(0.2)
        async with asyncio.timeout(10 * PATIENCE):
            while await worker.equal_to_plan():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for address in ("198.51.100.11", "[::1]"):
            assert await served(f"http://{address}:8090/")
        assert machine.manager.state(a_task(1)) == TaskState.RUNNING


async def test_full_disk_rejects_new_tasks_and_leaves_the_others_alone(machine: Machine) -> None:
    kept, late, retried = a_task(1), a_task(2), a_task(3)
    async with machine.worker() as worker:
        await running(machine, worker, kept)
        agent = machine.root / "agent"
        await asyncio.sleep(1.2)  # the view is on disk
        sh(f"mkdir {agent}.disk; mount -t tmpfs -o size=128k small {agent}.disk; cp -a {agent}/. {agent}.disk/")
        sh(f"mount --move {agent}.disk {agent}; rmdir {agent}.disk")
        try:
            with (agent / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                while filler.write(b"x" * 4096):
                    pass
            machine.manager.task(late)
            machine.manager.send(worker)
            await until(lambda: machine.manager.state(late) == TaskState.REJECTED)
            assert "No space left on device" in machine.manager.reports[late.id][-1].err
            assert "free some space there" in machine.manager.reports[late.id][-1].err
            assert await served("http://198.51.100.11:8090/")
            (agent / "filler").unlink()
            machine.manager.task(retried)
            machine.manager.send(worker)
            await until(lambda: machine.manager.state(retried) == TaskState.RUNNING)
            assert machine.manager.state(kept) == TaskState.RUNNING
        finally:
            sh(f"umount --lazy {agent}")  # something may just be being written


async def test_unchanged_view_touches_nothing(machine: Machine) -> None:
    async with machine.worker() as worker:
        await running(machine, worker, a_task(1))
        events = await asyncio.create_subprocess_exec("ip", "-ts", "monitor", "all", stdout=asyncio.subprocess.PIPE)
        assert events.stdout is not None
        with contextlib.suppress(TimeoutError):
            while await asyncio.wait_for(events.stdout.read(1 << 16), 2.5):
                pass  # the kernel gives new links addresses and routes of their own, up to two seconds later (DAD)
        revision = machine.manager.send(worker)
        await until(lambda: revision in machine.manager.acked)
        await asyncio.sleep(0.1)
        events.terminate()
        assert await events.stdout.read() == b""
        await events.wait()
        assert worker.drift == {}
