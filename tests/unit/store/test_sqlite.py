"""The embedded engine's own troubles: full disks, other versions, other owners."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from hivemesh.model.errors import Invalid, Unavailable
from hivemesh.store.api import Put
from hivemesh.store.sqlite import FILE, SqliteStore


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "hivemesh-test", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def fill(disk: Path) -> Path:
    """Leaves no byte free; returns the file that takes them."""
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    return disk / "filler"


async def test_a_full_disk_refuses_writes_and_works_again_with_room(small_disk: Path) -> None:
    store = await SqliteStore.open(small_disk / "data")
    try:
        revision = await store.commit([Put("kept", b"1")])
        filler = fill(small_disk)
        for _ in range(3):
            with pytest.raises(Unavailable, match=r"disk under .* is full: nothing was changed; free some space"):
                await store.commit([Put("half", b"y" * 100_000), Put("kept", b"2")])
        snapshot = await store.snapshot()
        assert snapshot.revision == revision
        assert [(entry.key, entry.value) for entry in snapshot.entries] == [("kept", b"1")]
        filler.unlink()
        assert await store.commit([Put("kept", b"3")]) == revision + 1
    finally:
        await store.close()
    store = await SqliteStore.open(small_disk / "data")
    try:
        assert [(entry.key, entry.value) for entry in (await store.snapshot()).entries] == [("kept", b"3")]
    finally:
        await store.close()


async def test_a_disk_full_from_the_start_is_one_clear_error(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(Unavailable, match=r"space|full"):
        await SqliteStore.open(small_disk / "data")


async def test_a_second_daemon_on_one_directory_is_refused(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)
    try:
        with pytest.raises(Unavailable, match="another hivemeshd runs on this data directory"):
            await SqliteStore.open(tmp_path)
    finally:
        await store.close()
    await (await SqliteStore.open(tmp_path)).close()


async def test_a_directory_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    await (await SqliteStore.open(tmp_path)).close()
    connection = sqlite3.connect(tmp_path / FILE)
    with connection:
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'format'")
        connection.execute("UPDATE meta SET value = '9.9.9' WHERE name = 'version'")
    connection.close()
    with pytest.raises(Invalid, match=r"data directory .* was written by version 9\.9\.9 .*run that version"):
        await SqliteStore.open(tmp_path)
    connection = sqlite3.connect(tmp_path / FILE)
    assert connection.execute("SELECT value FROM meta WHERE name = 'format'").fetchone() == ("99",)
    connection.close()


async def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"this is not a database, it is a letter to my aunt" * 100)
    with pytest.raises(Invalid, match="damaged"):
        await SqliteStore.open(tmp_path)


async def test_a_read_only_file_system_is_one_clear_error(small_disk: Path) -> None:
    await (await SqliteStore.open(small_disk / "data")).close()
    await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(Unavailable, match="Read-only file system"):
        await SqliteStore.open(small_disk / "data")


async def test_the_store_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "data")
    await store.commit([Put("a", b"1")])
    modes = {path.name: path.stat().st_mode & 0o077 for path in (tmp_path / "data").iterdir()}
    await store.close()
    assert set(modes.values()) == {0}, modes


async def test_closing_ends_watches_and_refuses_commits(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path)

    async def follow() -> int:
        return len([batch async for batch in store.watch("", 0)])

    watching = asyncio.create_task(follow())
    await store.commit([Put("a", b"1")])
    await asyncio.sleep(0)
    await store.close()
    async with asyncio.timeout(10):
        assert await watching == 1
    with pytest.raises(Unavailable, match="closed"):
        await store.commit([Put("a", b"2")])


async def test_a_file_system_that_became_read_only_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error of the disk: writes to what is open fail with EIO or EROFS: to SQLite they are one."""
    store = await SqliteStore.open(tmp_path)
    try:
        await store.commit([Put("kept", b"1")])
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
        found = os.statvfs(tmp_path)
        values = list(found)
        values[8] |= os.ST_RDONLY
        with monkeypatch.context() as patched:
            patched.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
            patched.setattr(store, "_apply", Mock(side_effect=error))
            with pytest.raises(Unavailable, match=r"cannot be written .* nothing was changed; check .* read-write"):
                await store.commit([Put("kept", b"2")])
        assert [entry.value for entry in (await store.snapshot()).entries] == [b"1"]
        await store.commit([Put("kept", b"3")])
    finally:
        await store.close()
