"""Who may open the daemon's socket and files, and where keys and tokens never show."""

import asyncio
import grp
import logging
import os
import stat
import sys
import time
from pathlib import Path

import pytest
from port_rig import LOOPBACK, eventually, open_swarm

from hivemesh.agent.join import join
from hivemesh.api import server as api
from hivemesh.model.cluster import CAConfig, RootRotation
from hivemesh.model.errors import Forbidden, Invalid
from hivemesh.model.ids import PayloadID
from hivemesh.model.secret import Credential, PayloadSpec, Secret
from hivemesh.pki import Authority, JoinToken, make_request, new_token
from hivemesh.wire.control import JoinRequest, ManagerReply, SecretItem
from hivemesh.wire.engine.requests import SwarmJoin, SwarmUnlock

HIDDEN = "hidden-text"


def test_socket_is_for_its_owner_and_group_from_its_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for group in (None, 4321):
        with api._listen(path, group):
            found = path.stat()
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid() if group is None else group)


def test_group_of_the_socket_is_the_one_named_or_dockers(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"docker": 7, "wheel": 8}

    def look_up(name: str) -> grp.struct_group:
        return grp.struct_group((name, "x", known[name], []))

    monkeypatch.setattr(grp, "getgrnam", look_up)
    assert (api._group_id(""), api._group_id("wheel"), api._group_id("99")) == (7, 8, 99)
    known["hivemesh"] = 9
    assert api._group_id("") == 9
    with pytest.raises(Invalid, match="there is no group 'nobodies': make it with `groupadd nobodies`"):
        api._group_id("nobodies")
    known.clear()
    assert api._group_id("") is None


async def test_state_of_managers_and_nodes_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        task = await swarm.put_task(agent.node)
        await eventually(lambda: f"task/{task.id}" in agent.session.view)
        written = [path for path in (tmp_path / "n1").rglob("*") if path.is_file()]
        assert {"node.json", "node.pem"} <= {path.name for path in written}
        store = [path for path in (tmp_path / "manager").iterdir() if path.name != "node.pem"]  # that is the rig's
        for path in (*written, *(each for each in store if each.is_file())):
            open_to_all = path.name in ("ca.pem",) and stat.S_IMODE(path.stat().st_mode) == 0o644
            assert open_to_all or not stat.S_IMODE(path.stat().st_mode) & 0o077, path
        for path in (*(tmp_path / "n1").rglob("*"), *store):
            if path.is_dir():
                assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_keys_tokens_and_secrets_have_no_words_of_their_own() -> None:
    """Whatever ends up in a log or an error is shown by `repr`."""
    data, request = HIDDEN.encode(), make_request()
    authority = Authority.create(time.time())
    shown = [
        JoinToken("digest", HIDDEN),
        JoinRequest(token=HIDDEN, csr="", addr=""),
        SwarmJoin(join_token=HIDDEN),
        SwarmUnlock(unlock_key=HIDDEN),
        ManagerReply(seal_key=data),
        SecretItem(id=PayloadID("s"), data=data),
        Secret(id=PayloadID("s"), spec=PayloadSpec(data=data)),
        Credential(id=PayloadID("s"), spec=PayloadSpec(data=data), previous=data),
        CAConfig(signing_ca_key=HIDDEN),
        RootRotation(ca_cert="", ca_key=HIDDEN, link=""),
    ]
    for value in shown:
        assert HIDDEN not in repr(value)
    assert "PRIVATE" not in repr(authority) + repr(request)


async def test_the_swarm_itself_shows_neither_keys_nor_tokens(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        cluster = swarm.cluster
        for value in (cluster.ca_key, cluster.worker_token, cluster.manager_token):
            assert value
            assert value not in repr(cluster)
        assert "PRIVATE" not in repr(cluster)


async def test_joining_and_failing_to_join_log_no_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_swarm(tmp_path) as swarm:
        caplog.set_level(logging.DEBUG)
        wrong = new_token(swarm.cluster.ca_cert)
        await swarm.agent("n1")
        with pytest.raises(Forbidden, match="invalid join token") as refused:
            await join([swarm.manager], wrong, data_dir=tmp_path / "n2", addr=LOOPBACK, vtep=LOOPBACK, listen="")
        assert "n1" in caplog.text
        for token in (wrong, swarm.cluster.worker_token):
            assert JoinToken.parse(token).secret not in caplog.text + str(refused.value)
        assert "PRIVATE" not in caplog.text


async def test_a_process_that_holds_keys_leaves_no_cores_and_starts_others_that_do() -> None:
    """In a process of its own: it cannot be undone."""
    code = (
        "import subprocess, sys; from hivemesh.kernel.cores import keep_out_of_cores as keep; keep();"
        "import ctypes; ask = 'import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))';"
        "exec(ask); sys.stdout.flush(); subprocess.run([sys.executable, '-c', ask])"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert out.split() == [b"0", b"1"]
