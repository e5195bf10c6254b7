"""Run by test_worker_on_a_machine.py inside namespaces of its own: secrets, from the view to the process and away."""

import asyncio
import os
from pathlib import Path

import msgspec
from worker_cases import Machine, a_task, machine, running, sh, underlay, until

from hivemesh.model.ids import PayloadID
from hivemesh.model.service import FileTarget, SecretReference
from hivemesh.model.task import Task, TaskState
from hivemesh.wire.control import SecretItem

__all__ = ["machine", "underlay"]  # fixtures

WORD = b"hush-4711"
SECRETS = Path("/run/hivemesh/secrets")
KEY = SecretItem(id=PayloadID("key"), data=WORD)


def secretive(number: int) -> Task:
    task = a_task(number)
    file = FileTarget(name="deep/key", uid="7", gid="8", mode=0o400)
    reference = SecretReference(file=file, secret_id="key", secret_name="key")
    container = msgspec.structs.replace(task.spec.container_spec, secrets=(reference,))
    return msgspec.structs.replace(task, spec=msgspec.structs.replace(task.spec, container_spec=container))


def read(machine: Machine, task: Task) -> str:
    """As the task's process sees it: owner, mode, content."""
    inside = f"nsenter --target {machine.manager.reports[task.id][-1].pid} --mount"
    return sh(f"{inside} stat -c '%u %g %a' /run/secrets/deep/key; {inside} cat /run/secrets/deep/key")


def written(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and WORD in path.read_bytes()]


async def test_secret_is_in_memory_only_and_stays_with_its_process_while_no_manager_is_there(machine: Machine) -> None:
    task = secretive(1)
    machine.manager.put(KEY)
    async with machine.worker() as worker:
        await running(machine, worker, task)
        assert read(machine, task) == f"7 8 400\n{WORD.decode()}"
        assert os.path.ismount(SECRETS)
        assert oct(SECRETS.stat().st_mode)[-3:] == "700"
        assert {"nosuid", "nodev", "noexec"} <= set(sh(f"findmnt -no OPTIONS {SECRETS}").strip().split(","))
        assert not Path("/run/secrets/deep").exists()
        await until((machine.root / "agent" / "view.msgpack").exists)
        await asyncio.sleep(0.6)  # as long as it takes until the last view is on disk
    assert written(machine.root) == []
    async with machine.worker():
        await asyncio.sleep(0.5)
        assert read(machine, task) == f"7 8 400\n{WORD.decode()}"
    assert written(machine.root) == []
    async with machine.worker() as worker:
        del machine.manager.items[f"task/{task.id}"], machine.manager.items["secret/key"]
        machine.manager.send(worker)
        await until(lambda: not list(SECRETS.iterdir()))
    await machine.clean()
    assert not SECRETS.exists()
    await until(lambda: not Path("/run/secrets").exists())


async def test_task_waits_for_a_secret_that_comes_later(machine: Machine) -> None:
    task = secretive(1)
    async with machine.worker() as worker:
        machine.manager.task(task)
        machine.manager.send(worker)
        await until(lambda: machine.manager.state(task) == TaskState.PREPARING)
        await asyncio.sleep(0.2)
        assert machine.manager.state(task) == TaskState.PREPARING
        machine.manager.put(KEY)
        await running(machine, worker, task)
        assert WORD.decode() in read(machine, task)


async def test_files_of_a_task_that_ended_or_was_forgotten_while_nobody_looked_are_removed(machine: Machine) -> None:
    machine.manager.put(KEY)
    task = secretive(1)
    async with machine.worker() as worker:
        await running(machine, worker, task)
        (SECRETS / "stranger").mkdir()
    async with machine.worker() as worker:
        machine.manager.send(worker)
        await until(lambda: [path.name for path in SECRETS.iterdir()] == [task.id])
        os.kill(machine.manager.reports[task.id][-1].pid, 9)
        await until(lambda: not list(SECRETS.iterdir()))
        assert machine.manager.state(task) == TaskState.FAILED
