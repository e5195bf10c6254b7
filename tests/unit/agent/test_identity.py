"""A node's identity on disk."""

import json
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from hivemesh.agent.identity import Facts, Identity, create, forget, load
from hivemesh.model.errors import Invalid
from hivemesh.model.ids import ClusterID, NodeID
from hivemesh.pki import Authority, make_request


def make(directory: Path) -> Identity:
    authority, request = Authority.create(time.time()), make_request()
    certificate = authority.sign(request.csr, node_id="n", cluster_id="c", role="worker", now=time.time())
    facts = Facts(
        node_id=NodeID("n"),
        cluster_id=ClusterID("c"),
        role="worker",
        addr=ip_address("192.0.2.1"),
        vtep=ip_address("2001:db8::1"),
        listen="0.0.0.0:2377",
        managers=("192.0.2.9:2377",),
    )
    return create(directory, facts, ca=authority.certificate, certificate=certificate, key=request.key)


def test_identity_is_read_back_as_written_and_private(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert load(tmp_path) == made
    made.client_context()  # certificate and key belong together
    for path in (tmp_path / "node.json", made.certificate):
        assert path.stat().st_mode & 0o077 == 0
    assert made.certificate.parent.stat().st_mode & 0o077 == 0


def test_managers_are_remembered(tmp_path: Path) -> None:
    changed = make(tmp_path).with_managers(("192.0.2.1:2377", "[2001:db8::9]:2377"))
    assert load(tmp_path) == changed
    assert changed.with_managers(()) is changed


def test_forgotten_identity_is_gone_and_forgetting_repeats(tmp_path: Path) -> None:
    make(tmp_path)
    forget(tmp_path)
    forget(tmp_path)
    assert load(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_identity_of_another_version_is_refused_in_clear_words(tmp_path: Path) -> None:
    make(tmp_path)
    facts = json.loads((tmp_path / "node.json").read_text())
    (tmp_path / "node.json").write_text(json.dumps(facts | {"format": 2, "novelty": True}))
    with pytest.raises(Invalid, match="another version of hivemesh"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["node.json", "certificates/ca.pem", "certificates/node.pem"])
def test_damaged_identity_says_what_to_do(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(Invalid, match=r"damaged.*swarm leave --force"):
        load(tmp_path)
