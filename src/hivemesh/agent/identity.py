"""Who this node is in its swarm: a small file of facts, and its certificate with its key.

On disk, under the data directory: `node.json`, `certificates/ca.pem` and `certificates/node.pem`. Certificate and
key share one file, so that renewing replaces both in one rename. A manager also has `certificates/store.key`, which
opens what is confidential in its store.
"""

import os
import shutil
import ssl
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from hivemesh.model.addr import Address, host_port, parse_host_port
from hivemesh.model.cluster import DEFAULT_LISTEN_PORT
from hivemesh.model.errors import Invalid
from hivemesh.model.ids import ClusterID, NodeID
from hivemesh.model.node import Role
from hivemesh.pki import client_context, validity
from hivemesh.pki.seal import new_seal_key
from hivemesh.wire import codec

FORMAT = 1
"""Of `node.json`; another number means another version of hivemesh wrote it."""
FACTS = "node.json"
CERTIFICATES = "certificates"
STORE_KEY = "store.key"


class Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`node.json`."""

    node_id: NodeID
    cluster_id: ClusterID
    role: Role
    addr: Address  # advertised to the other nodes
    vtep: Address  # data path address
    listen: str  # host:port of the cluster port, used by managers
    managers: tuple[str, ...]  # host:port of those we know
    format: int = FORMAT


class _Format(msgspec.Struct):
    format: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """A node's place in its swarm, as kept under `data_dir`."""

    data_dir: Path
    facts: Facts
    ca: str  # PEM

    @property
    def certificate(self) -> Path:
        """PEM file with the node's certificate and its key."""
        return self.data_dir / CERTIFICATES / "node.pem"

    def validity(self) -> tuple[float, float]:
        """Unix seconds between which the certificate holds."""
        return validity(self.certificate.read_text())

    def client_context(self) -> ssl.SSLContext:
        """TLS settings to call a manager with, from the certificate as it is on disk now."""
        return client_context(self.ca, self.certificate)

    def with_managers(self, managers: tuple[str, ...]) -> "Identity":
        """The identity that also remembers these managers, on disk too."""
        if managers == self.facts.managers or not managers:
            return self
        changed = replace(self, facts=msgspec.structs.replace(self.facts, managers=managers))
        write_private(self.data_dir / FACTS, codec.to_json(changed.facts))
        return changed

    def with_role(self, role: Role) -> "Identity":
        """The identity of the same node in another role, on disk too."""
        changed = replace(self, facts=msgspec.structs.replace(self.facts, role=role))
        write_private(self.data_dir / FACTS, codec.to_json(changed.facts))
        return changed

    @property
    def manager_addr(self) -> str:
        """host:port of this node's cluster port, as the other nodes reach it."""
        port = parse_host_port(self.facts.listen, DEFAULT_LISTEN_PORT, "listen address")[1]
        return host_port(str(self.facts.addr), port)

    def renew(self, certificate: str, key: str) -> None:
        """Replace certificate and key (PEM) on disk; connections made from now on use them."""
        write_private(self.certificate, (certificate.rstrip() + "\n" + key).encode())


def create(data_dir: Path, facts: Facts, *, ca: str, certificate: str, key: str) -> Identity:
    """Write a new identity (all PEM). The facts come last: a node without them is in no swarm."""
    identity = Identity(data_dir, facts, ca)
    directory = data_dir / CERTIFICATES
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(directory / "ca.pem", ca.encode())
    identity.renew(certificate, key)
    write_private(data_dir / FACTS, codec.to_json(facts))
    return identity


def load(data_dir: Path) -> Identity | None:
    """The identity under `data_dir`; None when the node is in no swarm.

    Raises `Invalid` when it was written by another version or is damaged.
    """
    path = data_dir / FACTS
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = codec.from_json(data, _Format).format
    except msgspec.MsgspecError as error:
        raise Invalid(
            f"{path} is damaged ({error}): leave the swarm with `swarm leave --force` and join again"
        ) from None
    if found != FORMAT:
        raise Invalid(
            f"the data directory {data_dir} was written by another version of hivemesh (format {found}, this version "
            f"reads {FORMAT}): run that version, or start with an empty data directory"
        )
    try:
        facts = codec.from_json(data, Facts)
        ca = (data_dir / CERTIFICATES / "ca.pem").read_text()
        identity = Identity(data_dir, facts, ca)
        identity.validity()
        identity.client_context()  # certificate, key and CA are readable and belong together
    except (msgspec.MsgspecError, OSError, ValueError, Invalid) as error:
        raise Invalid(
            f"the identity of this node under {data_dir} is damaged ({error}): leave the swarm with "
            "`swarm leave --force` and join again"
        ) from None
    return identity


def store_key(data_dir: Path) -> bytes:
    """The key that opens a manager's store. Raises `Invalid` when it is not there."""
    path = data_dir / CERTIFICATES / STORE_KEY
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(
            f"the key of the store, {path}, cannot be read ({error.strerror}): restore it from a backup, or leave the "
            "swarm with `swarm leave --force` and begin a new one"
        ) from None


def create_store_key(data_dir: Path) -> bytes:
    """A new key for a new store, on disk when this returns."""
    directory = data_dir / CERTIFICATES
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = new_seal_key()
    write_private(directory / STORE_KEY, key)
    return key


def has_store_key(data_dir: Path) -> bool:
    return (data_dir / CERTIFICATES / STORE_KEY).exists()


def keep_store_key(data_dir: Path, key: bytes) -> None:
    """The key of a store that other managers have, on disk when this returns."""
    write_private(data_dir / CERTIFICATES / STORE_KEY, key)


def forget_store_key(data_dir: Path) -> None:
    """This node is no manager any more."""
    (data_dir / CERTIFICATES / STORE_KEY).unlink(missing_ok=True)


def forget(data_dir: Path) -> None:
    """Remove the identity, facts first; what is not there is fine."""
    (data_dir / FACTS).unlink(missing_ok=True)
    shutil.rmtree(data_dir / CERTIFICATES, ignore_errors=True)


def write_private(path: Path, data: bytes) -> None:
    """Replace a file in one step, readable by its owner only, and on disk when this returns."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
