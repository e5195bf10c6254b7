"""What was given out last."""

import msgspec

from hivemesh.model.addr import Address


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Where to go on giving out, so that what was freed is not given again at once: somebody may still know, or be, its
    old owner. In the store, because every manager gives out.
    """

    id: str
    """A network's id for its addresses; `vni`, `port`."""
    version: int = 0
    number: int = 0
    addresses: tuple[Address, ...] = ()  # of a network: one per subnet
