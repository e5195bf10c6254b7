"""One root after another: sessions stand, both roots are trusted meanwhile, and then only the new one."""

import asyncio
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
from port_rig import Agent, Swarm, eventually, open_swarm

from hivemesh.agent.identity import load
from hivemesh.agent.join import join, renew
from hivemesh.api import tls
from hivemesh.control import rotation
from hivemesh.control import swarm as settings
from hivemesh.model.errors import Forbidden, Invalid, Unavailable
from hivemesh.pki import Authority, ca_digest, certificates_in, given_root, issuer_id, key_id, linked, make_request


async def rotate(swarm: Swarm, **asked: str | int) -> None:
    spec = swarm.cluster.spec
    config = msgspec.structs.replace(spec.ca_config, **(asked or {"force_rotate": spec.ca_config.force_rotate + 1}))
    spec = msgspec.structs.replace(spec, ca_config=config)
    await swarm.tables.update(lambda tx: settings.update(tx, tx.cluster.version, spec, time.time()))


async def finish(swarm: Swarm) -> bool:
    """Whether all nodes are with the new root by now."""
    await swarm.tables.update(lambda tx: rotation.finish(tx, time.time()))
    return swarm.cluster.rotation is None


async def renew_manager(swarm: Swarm) -> None:
    """What the agent beside the manager does."""
    request = make_request()
    certificate = rotation.signer(swarm.cluster).sign(
        request.csr, node_id="m", cluster_id=swarm.cluster.id, role="manager", now=time.time()
    )
    (swarm.directory / "manager" / "node.pem").write_text(certificate + request.key)


def is_with(swarm: Swarm, agent: Agent, root: str) -> bool:
    return rotation.is_with(swarm.node(agent.node), root)


async def test_all_nodes_come_to_the_new_root_without_losing_their_sessions(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agents = [await swarm.agent(name) for name in ("n1", "n2")]
        old = swarm.cluster.ca_cert
        await rotate(swarm)
        coming = swarm.cluster.rotation
        assert coming is not None
        assert tls.of_cluster(swarm.cluster)["TrustRoot"] == old
        for agent in agents:
            await eventually(lambda agent=agent: is_with(swarm, agent, coming.ca_cert))  # type: ignore[misc]
            assert agent.session.identity.ca == old + coming.ca_cert
            assert (agent.session.state, agent.session.error) == ("ready", "")
        late = await swarm.agent("n3")  # who joins meanwhile still has the old token
        await eventually(lambda: is_with(swarm, late, coming.ca_cert))
        await renew_manager(swarm)
        before, token = [len(agent.assigned) for agent in agents], swarm.cluster.worker_token
        assert await finish(swarm)
        assert swarm.cluster.ca_cert == coming.ca_cert
        for agent in agents:
            await eventually(lambda agent=agent: agent.session.identity.ca == coming.ca_cert)  # type: ignore[misc]
            await eventually(
                lambda agent=agent: tls.of_node(swarm.node(agent.node), swarm.cluster) == tls.of_cluster(swarm.cluster)  # type: ignore[misc]
            )
            known = load(agent.session.identity.data_dir)
            assert known is not None
            assert known.ca == coming.ca_cert
            assert agent.session.error == ""
        assert [len(agent.assigned) for agent in agents] >= before
        with pytest.raises(Forbidden, match="another swarm"):
            await join([swarm.manager], token, data_dir=tmp_path / "n4", addr=agents[0].session.identity.facts.addr,
                       vtep=agents[0].session.identity.facts.vtep, listen="")  # fmt: skip
        await agents[0].stop()
        again = await swarm.connect(agents[0].session.identity)
        assert again.session.state == "ready"


async def test_a_node_that_is_away_is_waited_for_and_takes_part_when_it_comes_back(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        here, away = await swarm.agent("n1"), await swarm.agent("n2")
        await away.stop()
        await rotate(swarm)
        coming = swarm.cluster.rotation
        assert coming is not None
        await renew_manager(swarm)
        await eventually(lambda: is_with(swarm, here, coming.ca_cert))
        assert not await finish(swarm)
        back = await swarm.connect(away.session.identity)  # it trusts the old root only, and has its certificate
        await eventually(lambda: is_with(swarm, back, coming.ca_cert))
        assert await finish(swarm)


async def test_the_old_root_admits_nobody_once_it_is_dropped(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        away = await swarm.agent("n1")
        await away.stop()
        await rotate(swarm)
        await renew_manager(swarm)
        node = swarm.node(away.node)
        await swarm.tables.update(lambda tx: tx.delete(node))  # node rm
        assert await finish(swarm)
        await swarm.tables.update(lambda tx: tx.put(node))  # even if it were a member still
        with pytest.raises(Unavailable, match="cannot reach"):  # the server ends the connection
            await renew(away.session.identity)


async def test_a_second_rotation_replaces_the_first_and_the_old_root_ends_it(tmp_path: Path) -> None:
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        old = swarm.cluster.ca_cert
        await rotate(swarm)
        first = swarm.cluster.rotation
        assert first is not None
        await eventually(lambda: is_with(swarm, agent, first.ca_cert))
        await rotate(swarm)
        second = swarm.cluster.rotation
        assert second is not None
        assert second != first
        await eventually(lambda: is_with(swarm, agent, second.ca_cert))
        await rotate(swarm, signing_ca_cert=old)
        assert swarm.cluster.rotation is None
        await eventually(lambda: is_with(swarm, agent, old) and agent.session.identity.ca == old)
        assert agent.session.error == ""


def make_root(directory: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1", "-nodes", "-days", "30",
         "-subj", "/O=Example/CN=own root", "-keyout", directory / "key", "-out", directory / "root"],
        check=True, capture_output=True,
    )  # fmt: skip


async def test_an_administrators_own_root_takes_over(tmp_path: Path) -> None:
    await asyncio.to_thread(make_root, tmp_path)
    root, key = (tmp_path / "root").read_text(), (tmp_path / "key").read_text()
    async with open_swarm(tmp_path) as swarm:
        agent = await swarm.agent("n1")
        await rotate(swarm, signing_ca_cert=root, signing_ca_key=key)
        await renew_manager(swarm)
        await eventually(lambda: is_with(swarm, agent, root))
        assert await finish(swarm)
        assert swarm.cluster.ca_cert == root
        assert swarm.cluster.spec.ca_config.signing_ca_key == ""
        await agent.stop()
        again = await swarm.connect(agent.session.identity)
        assert again.session.state == "ready"
        await rotate(swarm, signing_ca_cert=root)  # as clients send what they read: nothing happens
        assert swarm.cluster.rotation is None


def test_what_the_new_root_signs_is_trusted_by_who_knows_either(tmp_path: Path) -> None:
    now = time.time()
    old, new = Authority.create(now), Authority.create(now)
    both = linked(new, old)
    text = both.sign(make_request().csr, node_id="n", cluster_id="c", role="worker", now=now)
    leaf, link = certificates_in(text)
    assert issuer_id(text) == key_id(new.certificate) == key_id(link)
    assert ca_digest(link) != ca_digest(new.certificate)
    for name, part in (("leaf", leaf), ("link", link), ("old", old.certificate), ("new", new.certificate)):
        (tmp_path / name).write_text(part)
    for root in ("old", "new"):
        verify = ["openssl", "verify", "-x509_strict", "-CAfile", root, "-untrusted", "link", "leaf"]
        done = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-addext", "basicConstraints=critical,CA:FALSE"], "no certificate authority"),
        (["-addext", "basicConstraints=critical,CA:TRUE,pathlen:0"], "pathlen 0"),
        (["-addext", "keyUsage=digitalSignature"], "key usage"),
        (["-newkey", "ed25519"], "neither an ECDSA nor an RSA key"),
        (["-not_before", "20200101000000Z", "-not_after", "20210101000000Z"], "not valid now"),
    ],
)
def test_a_root_that_cannot_serve_is_refused_in_words(tmp_path: Path, arguments: list[str], words: str) -> None:
    kind = [] if "-newkey" in arguments else ["-newkey", "rsa:2048"]
    command = ["openssl", "req", "-x509", *kind, "-nodes", "-subj", "/CN=own", "-keyout", "key", "-out", "root"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode and "-not_before" in arguments:
        pytest.skip("this openssl does not make certificates of the past")
    assert done.returncode == 0, done.stderr
    with pytest.raises(Invalid, match=words):
        given_root((tmp_path / "root").read_text(), (tmp_path / "key").read_text(), time.time())


def test_a_key_alone_another_ones_key_and_no_certificate_are_refused() -> None:
    now = time.time()
    one, two = Authority.create(now), Authority.create(now)
    with pytest.raises(Invalid, match="another one's"):
        given_root(one.certificate, two.key, now)
    with pytest.raises(Invalid, match="found 2"):
        given_root(one.certificate + two.certificate, one.key, now)
    with pytest.raises(Invalid, match="found 0"):
        given_root("", one.key, now)
