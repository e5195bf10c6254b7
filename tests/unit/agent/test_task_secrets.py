"""What a task finds in its secrets and configs; the memory they lie in is seen in tests/kernel and tests/scenario."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from hivemesh.agent import secrets
from hivemesh.agent.secrets import TaskSecrets
from hivemesh.kernel import memory
from hivemesh.model.errors import Invalid, Unavailable
from hivemesh.model.ids import NodeID, PayloadID, ServiceID, TaskID
from hivemesh.model.service import ConfigReference, ContainerSpec, FileTarget, SecretReference, TaskSpec
from hivemesh.model.task import Task
from hivemesh.wire.control import ConfigItem, SecretItem, key_of


def secret(name: str, /, **file: Any) -> SecretReference:
    return SecretReference(file=FileTarget(**{"name": name, **file}), secret_id=name, secret_name=name)


def config(name: str, /, **file: Any) -> ConfigReference:
    return ConfigReference(file=FileTarget(**{"name": name, **file}), config_id=name, config_name=name)


def task(*references: SecretReference | ConfigReference, env: tuple[str, ...] = ()) -> Task:
    spec = ContainerSpec(
        image="a",
        env=env,
        secrets=tuple(r for r in references if isinstance(r, SecretReference)),
        configs=tuple(r for r in references if isinstance(r, ConfigReference)),
    )
    return Task(
        id=TaskID("t1"), service_id=ServiceID("s1"), service_name="web", slot=2, node_id=NodeID("n1"),
        spec=TaskSpec(container_spec=spec),
    )  # fmt: skip


def view(*items: SecretItem | ConfigItem) -> Any:
    return {key_of(item): item for item in items}


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskSecrets:
    """In a plain directory that passes for one in memory."""
    root = tmp_path / "secrets"
    monkeypatch.setattr(memory, "mount", lambda path: path.mkdir(exist_ok=True))
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).is_dir())
    return TaskSecrets(root)


async def texts(held: TaskSecrets, of: Task) -> dict[str, str]:
    files = await held.provide(of, "host")
    return {target: Path(source).read_text() for target, source in files.items()}


async def test_files_stand_where_they_are_wanted_with_their_mode(held: TaskSecrets, tmp_path: Path) -> None:
    held.learn(view(SecretItem(id=PayloadID("a"), data=b"A"), ConfigItem(id=PayloadID("b"), data=b"B")))
    both = task(secret("a", mode=0o400), config("b"))
    assert await texts(held, both) == {"/run/secrets/a": "A", "/b": "B"}
    files = await held.provide(both, "host")
    assert [Path(path).stat().st_mode & 0o7777 for path in files.values()] == [0o400, 0o444]
    assert await held.provide(task(), "host") == {}
    held.keep({TaskID("other")})
    assert list((tmp_path / "secrets").iterdir()) == []


async def test_task_waits_until_it_is_told(held: TaskSecrets) -> None:
    waiting = asyncio.ensure_future(texts(held, task(secret("a"), secret("b"))))
    held.learn(view(SecretItem(id=PayloadID("a"), data=b"A")))
    await asyncio.sleep(0)
    assert not waiting.done()
    held.learn(view(*(SecretItem(id=PayloadID(name), data=name.encode()) for name in "ab")))
    assert await waiting == {"/run/secrets/a": "a", "/run/secrets/b": "b"}


async def test_task_that_is_never_told_fails_in_words(held: TaskSecrets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "PATIENCE", 0.01)
    with pytest.raises(Unavailable, match="did not tell this node about: secret a"):
        await held.provide(task(secret("a")), "host")


async def test_placeholders_are_filled_where_the_template_says_so(held: TaskSecrets) -> None:
    form = b'{{.Service.Name}}.{{.Task.Slot}} {{secret "a"}} {{config `/etc/b`}} {{env "X"}}{{env "NONE"}} \xff'
    held.learn(
        view(
            SecretItem(id=PayloadID("a"), data=b"{{.Task.ID}}"),
            ConfigItem(id=PayloadID("b"), data=b"B"),
            ConfigItem(id=PayloadID("c"), data=form, templated=True),
        )
    )
    uses = task(secret("a"), config("b", name="/etc/b"), config("c"), env=("X={{.Node.Hostname}}=1",))
    files = await held.provide(uses, "host")
    assert Path(files["/c"]).read_bytes() == b"web.2 {{.Task.ID}} B host=1 \xff"
    assert Path(files["/run/secrets/a"]).read_text() == "{{.Task.ID}}"


async def test_placeholder_for_what_the_service_does_not_use_fails(held: TaskSecrets) -> None:
    held.learn(view(ConfigItem(id=PayloadID("c"), data=b'{{secret "other"}}', templated=True)))
    with pytest.raises(Invalid, match="secret target other not found"):
        await held.provide(task(config("c")), "host")


async def test_placeholders_cannot_fill_the_memory(held: TaskSecrets) -> None:
    held.learn(
        view(
            ConfigItem(id=PayloadID("b"), data=bytes(600_000)),
            ConfigItem(id=PayloadID("c"), data=b'{{config "b"}}{{config "b"}}', templated=True),
        )
    )
    with pytest.raises(Invalid, match="bring in more than"):
        await held.provide(task(config("b"), config("c")), "host")
