"""Run by test_worker_on_a_machine.py inside namespaces of its own: names and health, from the view to the container.

`dig` asks in the sandboxes; the resolver is the real one, a process of its own.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from worker_cases import USER, Machine, a_task, machine, running, sh, underlay, until

from hivemesh.agent import resolver
from hivemesh.kernel.netns import call_inside
from hivemesh.model.ids import ServiceID
from hivemesh.model.service import ContainerSpec, DNSConfig, HealthConfig
from hivemesh.model.task import Task, TaskState
from hivemesh.wire.control import Backend, ServiceItem

__all__ = ["machine", "underlay"]  # fixtures

OTHER_VERSION = "import hivemesh; hivemesh.__version__ = 'other'; from hivemesh.dns.process import main; main()"


def service(*tasks: Task) -> ServiceItem:
    backends = tuple(
        Backend(task=t.id, addresses=tuple(a.ip for a in t.attachments[1].addresses), names=(t.name, f"c{t.slot}"))
        for t in tasks
    )
    return ServiceItem(network=USER, service=ServiceID("service".ljust(25, "0")), name="web", backends=backends)


def dig(task: Task, *question: str) -> set[str]:
    """What `dig` finds in the task's sandbox; with no answer, nothing."""
    command = ["ip", "netns", "exec", task.id[:12], "dig", "+short", "+time=1", "+tries=1", "@127.0.0.11", *question]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {line for line in done.stdout.splitlines() if not line.startswith(";")}


def resolvers(root: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if process.name.isdecimal() and str(root / "resolver.sock").encode() in words:
                found.append(int(process.name))
    return found


def sockets(pid: int) -> int:
    return sum(os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:") for fd in os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture(autouse=True)
def no_resolver_stays(machine: Machine) -> Iterator[None]:
    yield
    for pid in resolvers(machine.root):
        os.kill(pid, signal.SIGKILL)


class Asker:
    """Asks for `web` again and again, and remembers what was not answered."""

    def __init__(self, task: Task) -> None:
        self.asked = 0
        self.failed: list[str] = []
        self._task = task
        self._ended = False

    async def __aenter__(self) -> "Asker":
        self._asking = asyncio.create_task(asyncio.to_thread(call_inside, self._task.id[:12], self._ask))
        await until(lambda: self.asked)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await self._asking

    def _ask(self) -> None:
        while not self._ended:
            query = struct.pack("!6H", self.asked & 0xFFFF, 0x100, 1, 0, 0, 0) + b"\x03web\0\0\1\0\1"
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(3)
                asking.connect(("127.0.0.11", 53))
                asking.send(query)
                try:
                    answer = asking.recv(4096)
                except OSError as error:
                    self.failed.append(str(error))
                    continue
            if answer[:2] != query[:2] or answer[3] & 15 or not answer[7]:
                self.failed.append(answer.hex())
            self.asked += 1


async def named(machine: Machine, worker: object, *tasks: Task) -> None:
    """The tasks run, and are the backends of `web`."""
    machine.manager.put(service(*tasks))
    await running(machine, worker, *tasks)  # type: ignore[arg-type]
    await until(lambda: machine.manager.acked.get(machine.manager.revision, (1, 0))[0] == 0)


async def test_acknowledged_view_is_what_names_say(machine: Machine) -> None:
    async with machine.worker() as worker:
        first, second = a_task(1), a_task(2)
        await named(machine, worker, first)
        assert dig(first, "web") == dig(first, "tasks.web") == {"10.0.1.11"}
        assert dig(first, "web", "AAAA") == {"fd00:1::11"}
        assert dig(first, "-x", "10.0.1.11") == {f"{first.name}.user."}
        await named(machine, worker, first, second)
        assert dig(second, "tasks.web.user", "+tcp") == {"10.0.1.11", "10.0.1.12"}
        machine.manager.put(service(second))
        revision = machine.manager.send(worker)
        await until(lambda: revision in machine.manager.acked)
        assert dig(second, "web") == {"10.0.1.12"}
        assert dig(second, "c1") == set()


async def test_killed_resolver_is_back_with_all_it_knew(machine: Machine) -> None:
    async with machine.worker() as worker:
        task = a_task(1)
        await named(machine, worker, task)
        for _ in range(2):
            (pid,) = resolvers(machine.root)
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: resolvers(machine.root) not in ([], [pid]))  # type: ignore[misc]
            await until(lambda: dig(task, "web") == {"10.0.1.11"})


async def test_deaf_resolver_is_ended_and_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "PROBE_PERIOD", 0.1)
    monkeypatch.setattr(resolver, "ANSWER_TIMEOUT", 1.0)
    async with machine.worker() as worker:
        task = a_task(1)
        await named(machine, worker, task)
        (pid,) = resolvers(machine.root)
        os.kill(pid, signal.SIGSTOP)
        machine.manager.put(service(task, a_task(2)))
        revision = machine.manager.send(worker)
        await until(lambda: machine.manager.acked.get(revision, (0, 0))[0] == 1)  # the kernel holds it, names do not
        await until(lambda: machine.manager.acked[revision][0] == 0)
        assert pid not in resolvers(machine.root)
        assert dig(task, "web") == {"10.0.1.11", "10.0.1.12"}


async def test_restarted_worker_loses_no_question(machine: Machine) -> None:
    async with machine.worker() as worker:
        task = a_task(1)
        await named(machine, worker, task)
        await until(lambda: (machine.root / "agent/view.msgpack").exists())
    before = resolvers(machine.root)
    async with Asker(task) as asker:
        async with machine.worker() as worker:
            seen = asker.asked
            await until(lambda: asker.asked > seen + 100)  # no manager has spoken yet
            machine.manager.send(worker)
            await until(lambda: machine.manager.acked.get(machine.manager.revision, (1, 0))[0] == 0)
            seen = asker.asked
            await until(lambda: asker.asked > seen + 100)
    assert asker.failed == []
    assert resolvers(machine.root) == before


async def test_resolver_of_another_version_is_replaced_without_losing_a_question(machine: Machine) -> None:
    machine.resolver_command = (sys.executable, "-c", OTHER_VERSION)
    async with machine.worker() as worker:
        task = a_task(1)
        await named(machine, worker, task)
    (before,) = resolvers(machine.root)
    machine.resolver_command = resolver.COMMAND
    async with Asker(task) as asker:
        async with machine.worker() as worker:
            machine.manager.send(worker)
            await until(lambda: machine.manager.acked.get(machine.manager.revision, (1, 0))[0] == 0)
            await until(lambda: before not in resolvers(machine.root))
            seen = asker.asked
            await until(lambda: asker.asked > seen + 100)
    assert asker.failed == []
    assert len(resolvers(machine.root)) == 1


async def test_stale_names_are_not_told_from_the_view_on_disk(machine: Machine) -> None:
    """The resolver that runs on knows what the last view of the daemon before said; the disk may be behind."""
    async with machine.worker() as worker:
        first, second = a_task(1), a_task(2)
        await named(machine, worker, first, second)
        await until(lambda: (machine.root / "agent/view.msgpack").exists())
        await asyncio.sleep(0.6)
        saved = (machine.root / "agent/view.msgpack").read_bytes()
        machine.manager.put(service(first))
        revision = machine.manager.send(worker)
        await until(lambda: revision in machine.manager.acked)
    (machine.root / "agent/view.msgpack").write_bytes(saved)
    async with machine.worker():
        await asyncio.sleep(0.5)
        assert dig(first, "tasks.web") == {"10.0.1.11"}


async def test_ended_task_leaves_no_socket_and_no_file(machine: Machine) -> None:
    async with machine.worker() as worker:
        stays, goes = a_task(1), a_task(2)
        await named(machine, worker, stays)
        (pid,) = resolvers(machine.root)
        before = sockets(pid)
        await named(machine, worker, stays, goes)
        assert sockets(pid) == before + 2
        assert (machine.root / "agent/tasks" / goes.id / "hosts").exists()
        del machine.manager.items[f"task/{goes.id}"]
        machine.manager.send(worker)
        await until(lambda: goes.id[:12] not in sh("ip netns list"))
        assert sockets(pid) == before
        await until(lambda: not (machine.root / "agent/tasks" / goes.id).exists())
        assert (machine.root / "agent/tasks" / stays.id).exists()


async def test_resolver_ends_when_the_node_leaves(machine: Machine) -> None:
    async with machine.worker() as worker:
        await named(machine, worker, a_task(1))
    assert len(resolvers(machine.root)) == 1
    await machine.clean()
    assert resolvers(machine.root) == []
    assert not (machine.root / "resolver.sock").exists()


async def test_idle_node_runs_no_resolver(machine: Machine) -> None:
    async with machine.worker() as worker:
        revision = machine.manager.send(worker)
        await until(lambda: machine.manager.acked.get(revision, (1, 0))[0] == 0)
        assert resolvers(machine.root) == []


async def test_process_sees_files_of_its_own(machine: Machine) -> None:
    theirs = Path("/etc/hosts").read_text(), Path("/etc/resolv.conf").read_text()
    spec = ContainerSpec(
        image="localhost/web", hostname="box", hosts=("192.0.2.1 legacy",), stop_grace_period=10**9,
        dns_config=DNSConfig(search=("inside.example",), options=("ndots:2",)),
    )  # fmt: skip
    async with machine.worker() as worker:
        task = a_task(1)
        task = msgspec.structs.replace(task, spec=msgspec.structs.replace(task.spec, container_spec=spec))
        await named(machine, worker, task)
        pid = machine.manager.reports[task.id][-1].pid
        hosts = sh(f"nsenter --target {pid} --mount cat /etc/hosts")
        assert "10.0.1.11\tbox\n" in hosts
        assert "fd00:1::11\tbox\n" in hosts
        assert "192.0.2.1\tlegacy\n" in hosts
        assert "10.0.0.11" not in hosts  # ingress is not its name's
        lines = sh(f"nsenter --target {pid} --mount cat /etc/resolv.conf").splitlines()
        assert {"nameserver 127.0.0.11", "search inside.example", "options ndots:2"} <= set(lines)
        assert (Path("/etc/hosts").read_text(), Path("/etc/resolv.conf").read_text()) == theirs


def checked(flag: Path) -> Task:
    """A task that is healthy as long as there is a file."""
    health = HealthConfig(
        test=("CMD", "test", "-e", str(flag)),
        interval=30_000_000,
        start_period=60 * 10**9,
        start_interval=30_000_000,
    )
    task = a_task(1)
    spec = msgspec.structs.replace(task.spec.container_spec, healthcheck=health)
    return msgspec.structs.replace(task, spec=msgspec.structs.replace(task.spec, container_spec=spec))


async def test_task_runs_once_it_is_healthy_and_fails_when_it_is_not(machine: Machine) -> None:
    flag, task = machine.root / "healthy", checked(machine.root / "healthy")
    async with machine.worker() as worker:
        machine.manager.task(task)
        machine.manager.send(worker)
        await until(lambda: machine.manager.state(task) == TaskState.STARTING)
        await asyncio.sleep(0.3)  # some checks failed: its start period lasts
        assert machine.manager.state(task) == TaskState.STARTING
        container = machine.manager.reports[task.id][-1].container_id
        assert container
        flag.touch()
        await until(lambda: machine.manager.state(task) == TaskState.RUNNING)
    flag.unlink()
    async with machine.worker() as worker:  # checks go on
        machine.manager.send(worker)
        await until(lambda: machine.manager.state(task) == TaskState.FAILED)
        reports = machine.manager.reports[task.id]
        assert reports[-1].err.startswith("unhealthy container")
        assert (reports[-2].state, reports[-2].unhealthy) == (TaskState.RUNNING, True)  # no new connections any more
        await until(lambda: task.id[:12] not in sh("ip netns list"))


async def test_starting_task_can_be_stopped_before_it_is_healthy(machine: Machine) -> None:
    task = checked(machine.root / "healthy")
    async with machine.worker() as worker:
        machine.manager.task(task)
        machine.manager.send(worker)
        await until(lambda: machine.manager.state(task) == TaskState.STARTING)
        machine.manager.task(msgspec.structs.replace(task, desired=TaskState.SHUTDOWN), released=True)
        machine.manager.send(worker)
        await until(lambda: machine.manager.state(task) == TaskState.SHUTDOWN)
