"""Secrets and configs as files of the tasks that use them: from memory to memory.

What stays true
- The managers' words are kept in memory only. Files lie on a tmpfs of ours, a directory per task, which other users of
  the machine cannot enter; the engine binds each file into the container, read-only.
- A task waits for what it uses: large views come in pieces.
- Files outlive the daemon, as containers do, and are gone when their task has ended. One that is in use is not touched.
"""

import asyncio
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from hivemesh.kernel import memory
from hivemesh.model import template
from hivemesh.model.errors import Invalid, Unavailable
from hivemesh.model.ids import ServiceID, TaskID
from hivemesh.model.secret import config_path, secret_path
from hivemesh.model.service import ConfigReference, ContainerSpec, FileTarget, SecretReference
from hivemesh.model.task import Task
from hivemesh.wire.control import ConfigItem, PayloadItem, SecretItem, View

PATIENCE = 30.0
"""Seconds a task waits until the managers have told what it uses."""
LARGEST = 1000 * 1024
"""Bytes that filling in the placeholders may lead to: as large as the largest config."""
UNFINISHED = ".new"

Reference = SecretReference | ConfigReference


class TaskSecrets:
    """Everything under `root` is ours."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, PayloadItem] = {}
        self._news = asyncio.Event()

    def learn(self, view: View) -> None:
        """What the managers say now."""
        self._known = {key: item for key, item in view.items() if isinstance(item, PayloadItem)}
        self._news.set()

    async def provide(self, task: Task, hostname: str) -> dict[str, str]:
        """The files of `task`, by the path where each belongs in the container; `hostname` is the node's.

        Files that are there already stay as they are. Raises `Unavailable` when the managers do not tell what the task
        uses or memory is short, `Invalid` when a placeholder cannot be filled.
        """
        spec = task.spec.container_spec
        if not spec.secrets and not spec.configs:
            return {}
        directory = self._root / task.id
        if not directory.is_dir() or not os.path.ismount(self._root):
            await self._await_all(spec)
            data = self._filled(task, hostname)
            try:
                await asyncio.to_thread(self._write, directory, data)
            except OSError as error:
                raise Unavailable(f"cannot keep the secrets of a task in memory: {error}") from error
        return {path: str(directory / str(number)) for number, (path, _) in enumerate(_places(spec))}

    def credential(self, service: ServiceID) -> str:
        """What a registry is shown for the image of a service, as a client sent it; empty when there is none."""
        item = self._known.get(f"credential/{service}")
        return item.data.decode() if item is not None else ""

    def remove(self, task: TaskID) -> None:
        """The task has ended."""
        shutil.rmtree(self._root / task, ignore_errors=True)

    def keep(self, tasks: Collection[TaskID]) -> None:
        """Remove the files of all others."""
        if self._root.is_dir():
            for directory in self._root.iterdir():
                if directory.name not in tasks:
                    shutil.rmtree(directory, ignore_errors=True)

    def dissolve(self) -> None:
        """Nothing shall remain. Raises `OSError`."""
        self._known = {}
        memory.unmount(self._root)

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def _await_all(self, spec: ContainerSpec) -> None:
        needed = {key_of_reference(reference): name_of(reference) for _, reference in _places(spec)}
        try:
            async with asyncio.timeout(PATIENCE):
                while not needed.keys() <= self._known.keys():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            missing = ", ".join(name for key, name in needed.items() if key not in self._known)
            raise Unavailable(f"the managers did not tell this node about: {missing}") from None

    # --- files ------------------------------------------------------------------------------------------------------

    def _filled(self, task: Task, hostname: str) -> list[tuple[FileTarget, bytes]]:
        spec = task.spec.container_spec
        filler = _Filler(task, hostname, self._known)
        found = []
        for _, reference in _places(spec):
            assert reference.file is not None
            item = self._known[key_of_reference(reference)]
            found.append((reference.file, filler.fill(item.data) if item.templated else item.data))
        return found

    def _write(self, directory: Path, data: list[tuple[FileTarget, bytes]]) -> None:
        """All files of a task, or none."""
        memory.mount(self._root)
        fresh = directory.with_name(directory.name + UNFINISHED)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        try:
            for number, (target, content) in enumerate(data):
                path = fresh / str(number)
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                os.chown(path, int(target.uid), int(target.gid))
                path.chmod(target.mode)
            fresh.rename(directory)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


class _Filler:
    """Fills in placeholders for one task. What they bring in is taken as it is: its own placeholders stay."""

    def __init__(self, task: Task, hostname: str, known: dict[str, PayloadItem]) -> None:
        spec = task.spec.container_spec
        self._values = template.values_of(task, hostname)
        self._known = known
        pairs = (template.fill(entry, self._values).partition("=") for entry in spec.env)
        self._env = {name: value for name, _, value in pairs}
        self._secrets = {r.file.name: r for r in spec.secrets if r.file is not None}
        self._configs = {r.file.name: r for r in spec.configs if r.file is not None}
        self._size = 0

    def fill(self, data: bytes) -> bytes:
        self._size = 0
        functions = {"secret": self._secret, "config": self._config, "env": self._variable}
        text = template.fill(data.decode(errors="surrogateescape"), self._values, functions)
        return text.encode(errors="surrogateescape")

    def _secret(self, target: str) -> str:
        return self._other("secret", target, self._secrets.get(target))

    def _config(self, target: str) -> str:
        return self._other("config", target, self._configs.get(target))

    def _variable(self, name: str) -> str:
        return self._counted(self._env.get(name, ""))

    def _other(self, kind: str, target: str, reference: Reference | None) -> str:
        if reference is None:
            raise Invalid(f"{kind} target {target} not found: the service has no {kind} with this target")
        return self._counted(self._known[key_of_reference(reference)].data.decode(errors="surrogateescape"))

    def _counted(self, text: str) -> str:
        self._size += len(text.encode(errors="surrogateescape"))
        if self._size > LARGEST:
            raise Invalid(f"the placeholders of a secret or a config bring in more than {LARGEST} bytes")
        return text


def _places(spec: ContainerSpec) -> list[tuple[str, Reference]]:
    """Where each file stands in the container, in the order of their numbers."""
    found: list[tuple[str, Reference]] = [(secret_path(r.file), r) for r in spec.secrets if r.file is not None]
    return found + [(config_path(r.file), r) for r in spec.configs if r.file is not None]


def key_of_reference(reference: Reference) -> str:
    """The key in a view of what is referred to."""
    if isinstance(reference, SecretReference):
        return f"secret/{reference.secret_id}"
    return f"config/{reference.config_id}"


def name_of(reference: Reference) -> str:
    """For people."""
    if isinstance(reference, SecretReference):
        return f"secret {reference.secret_name}"
    return f"config {reference.config_name}"


def is_confidential(item: object) -> bool:
    """Never to be written to a disk."""
    return isinstance(item, SecretItem | ConfigItem)
