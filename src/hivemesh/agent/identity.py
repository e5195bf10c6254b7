"""Who this node is in its swarm: a small file of facts, and its certificate with its key.

On disk, under the data directory: `node.json`, `certificates/ca.pem` and `certificates/node.pem`. Certificate and
key share one file, so that renewing replaces both in one rename. A manager also has the store's key: `vault`.
"""

import shutil
import ssl
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from hivemesh.agent.private import write_private
from hivemesh.agent.vault import CERTIFICATES, LOCKED, Vault
from hivemesh.model.addr import Address, host_port, parse_host_port
from hivemesh.model.cluster import DEFAULT_LISTEN_PORT
from hivemesh.model.errors import Invalid, Unavailable
from hivemesh.model.ids import ClusterID, NodeID
from hivemesh.model.node import Role, Trust
from hivemesh.pki import ca_digest, certificates_in, client_context, issuer_id, reencrypted, validity
from hivemesh.wire import codec

FORMAT = 1
"""Of `node.json`; another number means another version of hivemesh wrote it."""
FACTS = "node.json"
ROOTS = "ca.pem"


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
    ca: str  # PEM of the root, or of both while one takes over from the other
    vault: Vault = field(compare=False)

    @property
    def certificate(self) -> Path:
        """PEM file with the node's certificate and its key."""
        return self.data_dir / CERTIFICATES / "node.pem"

    def validity(self) -> tuple[float, float]:
        """Unix seconds between which the certificate holds."""
        return validity(self.certificate.read_text())

    def trust(self) -> Trust:
        """Whom this node trusts, and who signed its certificate."""
        roots = tuple(ca_digest(root) for root in certificates_in(self.ca))
        return Trust(roots=roots, issuer=issuer_id(self.certificate.read_text()))

    def client_context(self) -> ssl.SSLContext:
        """TLS settings to call a manager with, from the certificate as it is on disk now. Raises `Unavailable` while
        the node is locked.
        """
        if self.vault.locked:
            raise Unavailable(LOCKED)
        return client_context(self.ca, self.certificate, self.vault.password)

    def credentials(self) -> bytes:
        """Certificate and key in the clear, as PEM: for a program beside us, never for a disk."""
        return reencrypted(self.certificate.read_text(), self.vault.password, b"").encode()

    def with_roots(self, ca: str) -> "Identity":
        """The identity that trusts these roots (PEM) and no others, on disk too."""
        if not ca or ca == self.ca:
            return self
        write_private(self.data_dir / CERTIFICATES / ROOTS, ca.encode())
        return replace(self, ca=ca)

    def with_managers(self, managers: tuple[str, ...]) -> "Identity":
        """The identity that also remembers these managers, on disk too."""
        if managers == self.facts.managers or not managers:
            return self
        changed = replace(self, facts=msgspec.structs.replace(self.facts, managers=managers))
        write_private(self.data_dir / FACTS, codec.to_json(changed.facts))
        return changed

    def with_role(self, role: Role) -> "Identity":
        """The identity of the same node in another role, on disk too."""
        if role == "worker":
            self.lock("")  # nobody is asked for a key that a worker does not need
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
        text = certificate.rstrip() + "\n" + key
        if self.vault.unlock_key:
            text = reencrypted(text, b"", self.vault.password)
        write_private(self.certificate, text.encode())

    def lock(self, unlock_key: str) -> None:
        """Keep this manager's keys sealed with `unlock_key` from now on; with an empty one, in the clear."""
        if unlock_key == self.vault.unlock_key:
            return
        password = self.vault.password
        text = reencrypted(self.certificate.read_text(), password, password if unlock_key else b"")
        if unlock_key:
            write_private(self.certificate, text.encode())
        self.vault.seal(unlock_key)
        if not unlock_key:
            write_private(self.certificate, text.encode())


def create(data_dir: Path, facts: Facts, *, ca: str, certificate: str, key: str) -> Identity:
    """Write a new identity (all PEM). The facts come last: a node without them is in no swarm."""
    identity = Identity(data_dir, facts, ca, Vault(data_dir))
    directory = data_dir / CERTIFICATES
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(directory / ROOTS, ca.encode())
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
        ca = (data_dir / CERTIFICATES / ROOTS).read_text()
        identity = Identity(data_dir, facts, ca, Vault(data_dir))
        identity.validity()
        if not identity.vault.locked:
            identity.client_context()  # certificate, key and CA are readable and belong together
    except (msgspec.MsgspecError, OSError, ValueError, Invalid) as error:
        raise Invalid(
            f"the identity of this node under {data_dir} is damaged ({error}): leave the swarm with "
            "`swarm leave --force` and join again"
        ) from None
    return identity


def forget(data_dir: Path) -> None:
    """Remove the identity, facts first; what is not there is fine."""
    (data_dir / FACTS).unlink(missing_ok=True)
    shutil.rmtree(data_dir / CERTIFICATES, ignore_errors=True)
