"""A manager's keys at rest: in the clear, or locked with a key that only its administrators have.

`certificates/store.key` opens what is confidential in the store. In a swarm that locks its managers that file is sealed
with the unlock key, and the key of the node's certificate is encrypted with a password made from the one in the file:
a copied disk gives away neither. Another unlock key replaces one file: no crash comes between two halves of a change.
"""

import asyncio
import hashlib
import hmac
from pathlib import Path

from hivemesh.agent.private import write_private
from hivemesh.model.errors import Conflict, Invalid, Unavailable
from hivemesh.pki.seal import KEY_LENGTH, Seal, new_seal_key
from hivemesh.pki.unlock import unlock_bytes

CERTIFICATES = "certificates"
STORE_KEY = "store.key"
MARK = b"hivemesh locked\n"
"""What a sealed file begins with; another one is the key itself."""
PLACE = "the store's key"

LOCKED = (
    'Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.'
)
NOT_LOCKED = "swarm is not locked"
WRONG_KEY = "swarm could not be unlocked: invalid key provided"


class Vault:
    """The store's key of one node, which has one only as a manager; and whether this process may use it."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / CERTIFICATES / STORE_KEY
        self._opened = asyncio.Event()
        self._key = b""
        self._sealed = b""
        self._unlock = ""  # what the file is sealed with; empty: nothing
        try:
            found = self._path.read_bytes()
        except OSError:  # who needs it is told by `key`
            found = b""
        if found.startswith(MARK):
            self._sealed = found.removeprefix(MARK)
        else:
            self._key = found
            self._opened.set()

    @property
    def locked(self) -> bool:
        """Somebody has to `unlock` it first."""
        return not self._opened.is_set()

    async def opened(self) -> None:
        """Until it is not locked."""
        await self._opened.wait()

    def unlock(self, unlock_key: str) -> None:
        """Raises `Conflict` when it is not locked, `Invalid` for another key than it was locked with."""
        if not self.locked:
            raise Conflict(NOT_LOCKED)
        try:
            self._key = Seal(unlock_bytes(unlock_key)).open(self._sealed, PLACE)
        except Invalid:
            raise Invalid(WRONG_KEY) from None
        self._unlock, self._sealed = unlock_key.strip(), b""
        self._opened.set()

    @property
    def has_key(self) -> bool:
        return bool(self._key or self._sealed)

    @property
    def key(self) -> bytes:
        """What opens the store. Raises `Unavailable` while it is locked, `Invalid` when it is not there."""
        if self.locked:
            raise Unavailable(LOCKED)
        if len(self._key) != KEY_LENGTH:
            raise Invalid(
                f"the key of the store, {self._path}, cannot be read: restore it from a backup, or leave the "
                "swarm with `swarm leave --force` and begin a new one"
            )
        return self._key

    @property
    def unlock_key(self) -> str:
        """What the file is sealed with now; empty: nothing."""
        return self._unlock

    @property
    def password(self) -> bytes:
        """What the key of the certificate is encrypted with, if it is; empty on a node that has no store's key."""
        if not self._key:
            return b""
        return hmac.digest(self._key, b"key of the node's certificate", hashlib.sha256).hex().encode()

    def create(self) -> bytes:
        """A new key for a new store, on disk when this returns."""
        self.keep(new_seal_key())
        return self._key

    def keep(self, key: bytes) -> None:
        """The key of a store that other managers have, on disk when this returns."""
        self._key = key
        self._write(self._unlock)

    def seal(self, unlock_key: str) -> None:
        """Have the file sealed with that key from now on; with an empty one, not at all."""
        if unlock_key != self._unlock and self.key:
            self._write(unlock_key)

    def forget(self) -> None:
        """This node is no manager (any more)."""
        self._path.unlink(missing_ok=True)
        self._key, self._sealed, self._unlock = b"", b"", ""
        self._opened.set()

    def _write(self, unlock_key: str) -> None:
        data = MARK + Seal(unlock_bytes(unlock_key)).close(self._key, PLACE) if unlock_key else self._key
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(self._path, data)
        self._unlock = unlock_key
