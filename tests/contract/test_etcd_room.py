"""An etcd whose file reached its quota: what is asked of it is refused in words, and it works again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivemesh.model.errors import Unavailable
from hivemesh.store.api import Put
from hivemesh.store.etcd import EtcdStore
from hivemesh.store.etcdapi import EtcdClient
from hivemesh.store.room import keep_room, make_room
from running_etcd import running_etcd

QUOTA = 4 << 20
VALUE = bytes(range(256)) * 1024


@pytest.fixture
async def full(tmp_path: Path) -> AsyncIterator[EtcdStore]:
    """One key, written until its history fills the file."""
    with running_etcd(tmp_path, "--quota-backend-bytes", str(QUOTA)) as url:
        store = await EtcdStore.create(EtcdClient([url]), history=None)
        await store.finish()
        try:
            with pytest.raises(Unavailable, match=r"no room left.*nothing was changed; compact and defragment it"):
                await _write(store, 2 * QUOTA // len(VALUE))
            yield store
        finally:
            await store.close()


async def _write(store: EtcdStore, times: int) -> None:
    for _ in range(times):
        await store.commit([Put("big", VALUE)])


async def _next(store: EtcdStore, after: int) -> list[str]:
    async for batch in store.watch("", after):
        return [event.key for event in batch]
    return []


async def test_writes_are_refused_reads_are_not_and_room_is_made_for_both(full: EtcdStore) -> None:
    before = await full.snapshot()
    for size in (1, 100_000):
        with pytest.raises(Unavailable, match="no room left"):
            await full.commit([Put("other", bytes(size))])
    assert await full.snapshot() == before
    seen = asyncio.create_task(_next(full, before.revision))
    keeping = asyncio.create_task(keep_room(full.client, QUOTA, 0.1))
    try:
        async with asyncio.timeout(10):
            while await full.client.alarms():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        at = await full.commit([Put("other", b"1")], at=before.revision)
        assert await asyncio.wait_for(seen, 5) == ["other"]
    finally:
        for each in (keeping, seen):
            each.cancel()
        await asyncio.gather(keeping, seen, return_exceptions=True)
    after = await full.snapshot()
    assert after.revision == at
    assert {entry.key: entry.value for entry in after.entries} == {"big": VALUE, "other": b"1"}
    assert (await full.client.status()).size < QUOTA / 2


async def test_what_holds_more_than_its_quota_stays_refused_and_is_told_once(
    full: EtcdStore, caplog: pytest.LogCaptureFixture
) -> None:
    small = len(VALUE)
    said = await make_room(full.client, small)
    assert "and its quota is 262144: writes are refused" in said
    assert await make_room(full.client, small, said) == said
    assert caplog.text.count(said) == 1
    with pytest.raises(Unavailable, match="no room left"):
        await full.commit([Put("other", b"1")])


async def test_a_file_that_is_mostly_empty_becomes_smaller_before_it_is_full(tmp_path: Path) -> None:
    with running_etcd(tmp_path) as url:
        store = await EtcdStore.create(EtcdClient([url]), history=None)
        try:
            await _write(store, 10)
            revision = (await store.snapshot()).revision
            await store.client.compact(revision)
            before = (await store.client.status()).size
            async with asyncio.timeout(10):  # what is free is known with the next writes
                while (await store.client.status()).size > before / 2:
                    await store.commit([Put("small", b"")])
                    await make_room(store.client, 2 * before - 1)
        finally:
            await store.close()


async def test_a_member_that_ended_on_a_full_disk_is_missed_in_words_that_say_so(tmp_path: Path) -> None:
    client = EtcdClient(socket=tmp_path / "nobody", ailing=lambda: "the disk under /x is full: make room")
    try:
        with pytest.raises(Unavailable, match=r"does not have a leader.*; the disk under /x is full: make room\)"):
            await client.status()
    finally:
        await client.close()
