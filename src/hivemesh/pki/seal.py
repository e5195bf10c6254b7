"""Data at rest, sealed: nobody reads or changes it without the key, nor puts one value in the place of another."""

import os

from hivemesh.model.errors import Invalid

KEY_LENGTH = 32
"""Bytes: AES-256."""
NONCE_LENGTH = 12
"""Bytes, random for each value. Up to 2**32 of them one key is good for (NIST SP 800-38D, 8.3)."""


def new_seal_key() -> bytes:
    return os.urandom(KEY_LENGTH)


class Seal:
    """AES-256-GCM with one key."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if len(key) != KEY_LENGTH:
            raise Invalid(f"the key has {len(key)} bytes instead of {KEY_LENGTH}")
        self._cipher = AESGCM(key)

    def close(self, data: bytes, place: str) -> bytes:
        """`data` sealed for `place`: it opens nowhere else."""
        nonce = os.urandom(NONCE_LENGTH)
        return nonce + self._cipher.encrypt(nonce, data, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """The inverse. Raises `Invalid` when it was sealed with another key or for another place, or was changed."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(sealed[:NONCE_LENGTH], sealed[NONCE_LENGTH:], place.encode())
        except (InvalidTag, ValueError):
            raise Invalid(
                f"{place} cannot be read: it was sealed with another key than this manager's, or is damaged"
            ) from None
