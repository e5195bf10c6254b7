"""Settings, tokens and keys of a swarm, through the docker CLI and our own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from api_harness import Served, manager_api, outside_api

from hivemesh.agent.vault import Vault
from hivemesh.pki import new_unlock_key

JSON = "Content-Type: application/json"
SECOND = 1_000_000_000


async def ours(api: Served, *words: str, stdin: bytes | None = None) -> str:
    result = await api.run(sys.executable, "-m", "hivemesh.cli", *words, stdin=stdin)
    assert result.code == 0, result
    return result.out


async def refused(api: Served, *words: str) -> str:
    result = await api.run(sys.executable, "-m", "hivemesh.cli", *words)
    assert result.code != 0, result
    return result.err


async def test_settings_are_changed_by_either_command_line() -> None:
    async with manager_api() as api:
        options = "--task-history-limit=2 --dispatcher-heartbeat=10s --cert-expiry=48h"
        assert "Swarm updated." in await api.docker("swarm", "update", *options.split())
        said = await ours(api, "swarm", "update", "--task-history-limit=3", "--dispatcher-heartbeat=1m")
        assert "Swarm updated." in said
        spec = (await api.client.get("/swarm"))["Spec"]
        assert spec["Orchestration"] == {"TaskHistoryRetentionLimit": 3}
        assert spec["Dispatcher"] == {"HeartbeatPeriod": 60 * SECOND}
        assert spec["CAConfig"]["NodeCertExpiry"] == 48 * 3600 * SECOND
        raft = ["--max-snapshots=3", "--snapshot-interval=500"]
        await api.docker("swarm", "update", *raft)  # kept and shown
        shown = json.loads(await api.docker("info", "--format={{json .Swarm.Cluster.Spec.Raft}}"))
        assert (shown["KeepOldSnapshots"], shown["SnapshotInterval"]) == (3, 500)
        for options in ("--cert-expiry=1m", "--dispatcher-heartbeat=1ms", "--task-history-limit=-1"):
            assert "InvalidArgument" in await refused(api, "swarm", "update", options)
        assert "nothing to change" in await refused(api, "swarm", "update")


async def test_what_changed_meanwhile_is_not_overwritten() -> None:
    async with manager_api() as api:
        spec = json.dumps((await api.client.get("/swarm"))["Spec"]).encode()
        status, _, said = await api.http("POST", "/swarm/update?version=999999", spec, JSON)
        assert (status, said["message"]) == (500, "rpc error: code = Unknown desc = update out of sequence")


async def test_external_authorities_are_refused_by_name() -> None:
    async with manager_api() as api:
        error = await api.docker_error("swarm", "update", "--external-ca", "protocol=cfssl,url=https://ca.example")
        assert "CAConfig.ExternalCAs is not supported" in error
    async with outside_api() as api:
        error = await api.docker_error("swarm", "init", "--external-ca", "protocol=cfssl,url=https://ca.example")
        assert "CAConfig.ExternalCAs is not supported" in error


async def test_the_root_is_shown_and_its_rotation_begins() -> None:
    async with manager_api() as api:
        root = await api.docker("swarm", "ca")
        assert root.startswith("-----BEGIN CERTIFICATE-----")
        assert (await ours(api, "swarm", "ca")).strip() == root.strip()
        await api.docker("swarm", "ca", "--rotate", "--detach")
        swarm = await api.client.get("/swarm")
        assert swarm["RootRotationInProgress"] is True
        assert swarm["TLSInfo"]["TrustRoot"].strip() == root.strip()
        (node,) = await api.client.get("/nodes")
        assert node["Description"]["TLSInfo"]["CertIssuerPublicKey"] != swarm["TLSInfo"]["CertIssuerPublicKey"]
        assert "Needs Rotation" in await api.docker("node", "ls", "--format={{.TLSStatus}}")
        key = "\n".join(line for line in str(await api.client.get("/swarm")).split() if "KEY-----" in line)
        assert key == ""


async def test_a_root_of_ones_own_is_checked(tmp_path: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for name in ("one", "two"):
        files = ["-subj", f"/CN={name}", "-keyout", f"{tmp_path}/{name}.key", "-out", f"{tmp_path}/{name}.pem"]
        subprocess.run([*command, *files], check=True, capture_output=True)  # noqa: ASYNC221  (it takes no time)
    one, key, other = (str(tmp_path / name) for name in ("one.pem", "one.key", "two.key"))
    async with manager_api() as api:
        error = await api.docker_error("swarm", "ca", "--rotate", "-d", f"--ca-cert={one}", f"--ca-key={other}")
        assert "the key is another one's" in error
        await ours(api, "swarm", "ca", "--rotate", "--detach", "--ca-cert", one, "--ca-key", key)
        swarm = await api.client.get("/swarm")
        assert swarm["RootRotationInProgress"] is True
        assert swarm["Spec"]["CAConfig"]["SigningCACert"].strip() == (tmp_path / "one.pem").read_text().strip()
        assert swarm["Spec"]["CAConfig"].get("SigningCAKey", "") == ""
        assert "belong together" in await refused(api, "swarm", "ca", "--rotate", "--ca-cert", one)
        assert "need --rotate" in await refused(api, "swarm", "ca", "--ca-cert", one)


async def test_the_unlock_key_is_shown_rotated_and_gone() -> None:
    async with manager_api() as api:
        assert "no unlock key is set" in await refused(api, "swarm", "unlock-key")
        assert "autolock is not turned on" in await refused(api, "swarm", "unlock-key", "--rotate")
        said = await api.docker("swarm", "update", "--autolock=true")
        key = (await api.docker("swarm", "unlock-key", "-q")).strip()
        assert key in said
        assert (await ours(api, "swarm", "unlock-key", "-q")).strip() == key
        assert key in await ours(api, "swarm", "unlock-key")
        await api.docker("swarm", "unlock-key", "--rotate")
        fresh = (await ours(api, "swarm", "unlock-key", "--quiet")).strip()
        assert fresh != key
        everything = str([await api.http("GET", path) for path in ("/swarm", "/info", "/nodes")])
        assert fresh not in everything
        await ours(api, "swarm", "update", "--no-autolock")
        assert await api.client.get("/swarm/unlockkey") == {"UnlockKey": ""}


@pytest.mark.parametrize("program", ["docker", "hivemesh"])
async def test_init_may_lock_and_set(program: str) -> None:
    async with outside_api() as api:
        words = ("swarm", "init", "--autolock", "--task-history-limit=1", "--cert-expiry=2h")
        said = await (api.docker(*words) if program == "docker" else ours(api, *words))
        key = (await api.client.get("/swarm/unlockkey"))["UnlockKey"]
        assert key.startswith("SWMKEY-1-")
        assert key in said
        spec = (await api.client.get("/swarm"))["Spec"]
        assert spec["EncryptionConfig"] == {"AutoLockManagers": True}
        assert spec["Orchestration"]["TaskHistoryRetentionLimit"] == 1
        assert spec["CAConfig"]["NodeCertExpiry"] == 2 * 3600 * SECOND


async def test_a_locked_manager_says_so_everywhere_until_its_key_is_given(tmp_path: Path) -> None:
    vault, key = Vault(tmp_path), new_unlock_key()
    vault.create()
    vault.seal(key)
    async with outside_api() as api:
        api.machine.vault, api.machine.state, api.machine.is_manager = Vault(tmp_path), "locked", True
        words = "Swarm is encrypted and needs to be unlocked before it can be used. Please use"
        for path in ("/nodes", "/services", "/swarm", "/swarm/unlockkey", "/tasks", "/secrets", "/configs"):
            status, _, said = await api.http("GET", path)
            assert (status, said["message"][: len(words)]) == (503, words)
        assert (await api.http("GET", "/_ping"))[1]["swarm"] == "locked"
        assert words in await api.docker_error("node", "ls")
        assert "already part of a swarm" in await api.docker_error("swarm", "init")
        error = await api.run("docker", "swarm", "unlock", stdin=b"SWMKEY-1-wrong\n")
        assert "swarm could not be unlocked: invalid key provided" in error.err
        assert (await api.run("docker", "swarm", "unlock", stdin=f"{key}\n".encode())).code == 0
        assert api.machine.vault.key == vault.key
        assert "not locked" in await refused(api, "swarm", "unlock", "--key", key)


async def test_a_rotated_token_is_another_one() -> None:
    async with manager_api() as api:
        before = (await api.client.get("/swarm"))["JoinTokens"]
        await api.docker("swarm", "join-token", "--rotate", "worker")
        between = (await api.client.get("/swarm"))["JoinTokens"]
        assert between["Worker"] != before["Worker"]
        assert between["Manager"] == before["Manager"]
        await ours(api, "swarm", "join-token", "--rotate", "manager")
        after = (await api.client.get("/swarm"))["JoinTokens"]
        assert (after["Worker"], after["Manager"] != between["Manager"]) == (between["Worker"], True)
