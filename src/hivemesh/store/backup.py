"""A store in one file: everything a swarm's managers know, readable by any manager, of whichever engine.

    "hivemesh snapshot 1\\n"   what it is, and the format of the rest
    32 bytes                  SHA-256 of the rest
    the rest                  MessagePack of `Backup`

It holds the swarm's secrets in the clear, the CA's key among them: that is what makes it of use on an empty machine.
"""

import hashlib
from collections.abc import Iterable

import msgspec

import hivemesh
from hivemesh.model.errors import Invalid
from hivemesh.store.api import Entry, Snapshot
from hivemesh.wire import codec

MAGIC = b"hivemesh snapshot 1\n"
DIGEST = 32
LEAP = 1_000_000
"""Revisions a restored store leaves out: its lost successor may have counted on, and agents know it."""


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    version: str = hivemesh.__version__  # of hivemesh
    taken: float  # unix seconds
    revision: int
    entries: tuple[tuple[str, bytes], ...]

    def snapshot(self) -> Snapshot:
        """As a store would say it."""
        return Snapshot(self.revision, tuple(Entry(key, value, self.revision) for key, value in self.entries))


def pack(snapshot: Snapshot, now: float) -> bytes:
    """The file of what a store holds."""
    entries: Iterable[tuple[str, bytes]] = ((entry.key, entry.value) for entry in snapshot.entries)
    rest = codec.pack(Backup(taken=now, revision=snapshot.revision, entries=tuple(entries)))
    return MAGIC + hashlib.sha256(rest).digest() + rest


def unpack(data: bytes) -> Backup:
    """Raises `Invalid` when it is no such file, of another format, or damaged."""
    if not data.startswith(MAGIC):
        if data.startswith(MAGIC.split(b"1")[0]):
            raise Invalid("this snapshot was saved by another version of hivemesh: restore it with that one")
        raise Invalid("this is no snapshot of a swarm: give a file that `hivemesh swarm snapshot save` wrote")
    rest = data[len(MAGIC) + DIGEST :]
    if hashlib.sha256(rest).digest() != data[len(MAGIC) : len(MAGIC) + DIGEST]:
        raise Invalid("this snapshot is damaged: it is incomplete, or was changed after it was saved")
    try:
        return codec.unpack(rest, Backup)
    except msgspec.MsgspecError as error:
        raise Invalid(f"this snapshot cannot be read: {error}") from None
