"""What this node remembers of plain containers on networks of ours, in one small file.

The engine keeps the container; it knows nothing of the networks, names and ports that the user asked for.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import msgspec

from hivemesh.agent.private import write_private
from hivemesh.model.addr import Address
from hivemesh.model.ids import NetworkID, TaskID
from hivemesh.model.local import PublishedPort
from hivemesh.model.service import ContainerSpec
from hivemesh.model.task import Task
from hivemesh.wire import codec
from hivemesh.wire.control import AttachReply, AttachRequest, Joining
from hivemesh.wire.engine.containers import RestartRule

log = logging.getLogger("hivemesh.attached")


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A network the container is on whenever it runs."""

    id: NetworkID
    name: str
    aliases: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()  # that the user insists on
    mac: str = ""  # likewise
    priority: int = 0  # of the network as the way out


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One container. `owner` is the id of its task whenever it has one, and names its sandbox for all its life."""

    owner: TaskID
    container: str = ""  # the engine's id; empty while the engine makes it
    name: str = ""
    mode: str = ""  # the network mode as the user wrote it
    members: tuple[Member, ...] = ()
    spec: ContainerSpec = ContainerSpec()  # hostname, extra hosts, DNS settings
    ports: tuple[PublishedPort, ...] = ()
    links: dict[str, TaskID] = {}  # other names for other containers, which only this one knows
    shown_links: tuple[str, ...] = ()  # as the user wrote them: container:alias
    restart: RestartRule = RestartRule()
    remove: bool = False  # the engine removes it when it has ended (`--rm`)
    files: dict[str, str] = {}  # path inside, to the file of ours that stands there
    restarts: int = 0
    stopped: bool = False  # by the user: it does not begin again by itself
    granted: Task | None = None  # what the managers gave, while it runs


class LocalRequest(AttachRequest, frozen=True, kw_only=True):
    """What is asked for a container, with what is no manager's business."""

    published: tuple[PublishedPort, ...] = ()
    links: dict[str, TaskID] = {}


def joinings_of(record: Record) -> tuple[Joining, ...]:
    """By name: a network that was removed and made again is the same to its users."""
    return tuple(
        Joining(network=m.name, aliases=m.aliases, addresses=m.addresses, mac=m.mac, priority=m.priority)
        for m in record.members
    )


def members_of(reply: AttachReply, joinings: tuple[Joining, ...]) -> tuple[Member, ...]:
    """What managers made of `joinings`."""
    return tuple(
        Member(
            id=NetworkID(config.target), name=name, aliases=config.aliases, addresses=joining.addresses,
            mac=joining.mac, priority=joining.priority,
        )
        for config, name, joining in zip(reply.task.spec.networks, reply.names, joinings, strict=True)
    )  # fmt: skip


def load(path: Path) -> dict[TaskID, Record]:
    """Nothing on a fresh node. A file nobody can read is put aside: its containers must be made anew."""
    try:
        return {record.owner: record for record in codec.from_json(path.read_bytes(), tuple[Record, ...])}
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        log.error("cannot read %s, containers on swarm networks cannot be started again: %s", path, error)
        path.replace(path.with_suffix(".broken"))
        return {}


def save(path: Path, records: Iterable[Record]) -> None:
    """Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, codec.to_json(tuple(records)), durable=False)
