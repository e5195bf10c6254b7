"""What is confidential never reaches the engine's files in the clear."""

import base64
from pathlib import Path

import msgspec
import pytest

from hivemesh.clock import SystemClock
from hivemesh.control import swarm
from hivemesh.control.manager import Manager
from hivemesh.model.cluster import Cluster
from hivemesh.model.errors import Invalid
from hivemesh.model.secret import Config, PayloadSpec, Secret
from hivemesh.pki import Authority
from hivemesh.pki.seal import Seal, new_seal_key
from hivemesh.store.api import Put
from hivemesh.store.sealed import SealedStore
from hivemesh.store.sqlite import SqliteStore
from hivemesh.store.tables import Tables, Transaction

HUSH, SITE = b"correct horse battery staple", b"listen 8080; # of the site"


def found_in(directory: Path, text: bytes) -> list[str]:
    """The files with `text` in them, as it is or in base64."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files for form in (text, base64.b64encode(text)) if form in path.read_bytes()]


async def opened(directory: Path, key: bytes) -> tuple[SealedStore, Tables]:
    store = SealedStore(await SqliteStore.open(directory), Seal(key))
    tables = Tables(store)
    try:
        await tables.load()
    except BaseException:
        await store.close()
        raise
    return store, tables


def begin(tx: Transaction, authority: Authority) -> None:
    from hivemesh.model.cluster import SwarmSpec
    from hivemesh.model.ids import ClusterID

    cluster = Cluster(id=ClusterID("c"), spec=swarm.check_spec(SwarmSpec()), worker_token="SWMTKN-1-worker")
    tx.put(msgspec.structs.replace(cluster, ca_cert=authority.certificate, ca_key=authority.key))


async def test_secrets_configs_the_ca_key_and_tokens_are_in_no_file_and_come_back(tmp_path: Path) -> None:
    key, authority = new_seal_key(), Authority.create(0.0)
    store, tables = await opened(tmp_path, key)
    await tables.update(lambda tx: begin(tx, authority))
    manager = Manager(tables, SystemClock())
    secret = await manager.create_payload(Secret, PayloadSpec(name="password", data=HUSH))
    await manager.create_payload(Config, PayloadSpec(name="site", data=SITE))
    der = b"".join(authority.key.encode().splitlines()[1:-1])
    for text in (HUSH, SITE, authority.key.encode()[30:90], der[:40], b"SWMTKN-1-worker"):
        assert found_in(tmp_path, text) == []
    await manager.remove_payload(Secret, secret.id)
    await store.close()
    assert found_in(tmp_path, HUSH) == []

    store, tables = await opened(tmp_path, key)
    assert tables.view.cluster.ca_key == authority.key
    assert [config.spec.data for config in tables.view.all(Config)] == [SITE]
    await store.close()


async def test_another_key_opens_nothing_and_says_so(tmp_path: Path) -> None:
    store, tables = await opened(tmp_path, new_seal_key())
    await tables.update(lambda tx: begin(tx, Authority("", "")))
    await store.close()
    with pytest.raises(Invalid, match="sealed with another key"):
        await opened(tmp_path, new_seal_key())


async def test_a_value_does_not_open_in_the_place_of_another(tmp_path: Path) -> None:
    key = new_seal_key()
    inner = await SqliteStore.open(tmp_path)
    store = SealedStore(inner, Seal(key))
    await store.commit([Put("secret/a", b"for a"), Put("service/a", b"for everybody")])
    entries = {entry.key: entry.value for entry in (await inner.snapshot()).entries}
    assert entries["service/a"] == b"for everybody"
    await inner.commit([Put("secret/b", entries["secret/a"])])
    with pytest.raises(Invalid, match="secret/b cannot be read"):
        await store.snapshot()
    await store.close()
