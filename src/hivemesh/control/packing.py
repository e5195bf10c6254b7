"""Frames to bytes, each shared item only once: 50 nodes get the same backends of the same published port."""

from collections.abc import Iterable

import msgspec

from hivemesh.wire import codec
from hivemesh.wire.control import AnyItem, Delta, FromManager, Snapshot, TaskItem


class Packer:
    """Remembers the packed form of the items of one revision. A port with 400 backends takes 4 ms to pack."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[AnyItem, msgspec.Raw]] = {}  # by id(item), which the item kept here makes unique

    def forget(self) -> None:
        """Call with each new revision, so that nothing is kept that is not sent any more."""
        self._packed.clear()

    def pack(self, frame: FromManager) -> bytes:
        """The same bytes as `codec.pack(frame)`."""
        match frame:
            case Snapshot():
                return codec.pack(msgspec.structs.replace(frame, items=self._raw(frame.items)))
            case Delta():
                return codec.pack(msgspec.structs.replace(frame, changed=self._raw(frame.changed)))
            case _:
                return codec.pack(frame)

    def _raw(self, items: Iterable[AnyItem]) -> tuple[AnyItem | msgspec.Raw, ...]:
        return tuple(item if isinstance(item, TaskItem) else self._one(item) for item in items)

    def _one(self, item: AnyItem) -> msgspec.Raw:
        known = self._packed.get(id(item))
        if known is None:
            known = self._packed[id(item)] = (item, msgspec.Raw(codec.pack(item)))
        return known[1]
