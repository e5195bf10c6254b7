"""The key that unlocks a manager: `SWMKEY-1-` and 32 random bytes in base 64, as Docker writes it."""

import base64
import binascii
import os

from hivemesh.model.errors import Invalid
from hivemesh.pki.seal import KEY_LENGTH

PREFIX = "SWMKEY-1-"


def new_unlock_key() -> str:
    return PREFIX + base64.b64encode(os.urandom(KEY_LENGTH)).decode().rstrip("=")


def unlock_bytes(text: str) -> bytes:
    """Raises `Invalid` when it is no unlock key."""
    text = text.strip()
    try:
        if not text.startswith(PREFIX):
            raise ValueError("no prefix")
        body = text.removeprefix(PREFIX)
        key = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_LENGTH:
        raise Invalid(f"invalid key: expected {PREFIX} and 43 characters, as `swarm unlock-key` prints it")
    return key


def reencrypted(text: str, before: bytes, after: bytes) -> str:
    """Certificates and one key (PEM) with the key encrypted with another password; an empty one means in the clear.

    `before` is not looked at when the key is in the clear. Raises `ValueError` when it is wrong.
    """
    from cryptography.hazmat.primitives import serialization

    start = text.index("-----BEGIN", text.rindex("-----END CERTIFICATE"))
    encrypted = "ENCRYPTED" in text[start:]
    if not encrypted and not after:
        return text
    key = serialization.load_pem_private_key(text[start:].encode(), before if encrypted else None)
    form = serialization.BestAvailableEncryption(after) if after else serialization.NoEncryption()
    made = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form)
    return text[:start] + made.decode()
