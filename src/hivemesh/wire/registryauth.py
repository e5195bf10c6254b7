"""`X-Registry-Auth`: what clients let a registry be shown, JSON in URL-safe base 64."""

import base64
import binascii

import msgspec

from hivemesh.model.errors import Invalid

LONGEST = 16 << 10
"""Bytes; tokens of registries have one or two thousand."""


class RegistryAuth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Names are Docker's. A name and its password, or a token of one kind or the other."""

    username: str = ""
    password: str = ""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""  # is exchanged for others (OAuth 2 refresh token)
    registrytoken: str = ""  # is shown as it is

    def __repr__(self) -> str:
        """Without what is confidential: this may end up in a log."""
        return f"RegistryAuth(username={self.username!r}, serveraddress={self.serveraddress!r})"


def decode(text: str) -> RegistryAuth:
    """Raises `Invalid`. No text says nothing, and so do `{}` and `null`."""
    if not text:
        return RegistryAuth()
    if len(text) > LONGEST:
        raise Invalid(f"invalid X-Registry-Auth: it has more than {LONGEST} bytes")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_")
        said = {key: value for key, value in (msgspec.json.decode(data) or {}).items() if value is not None}
        return msgspec.convert(said, RegistryAuth)
    except (binascii.Error, msgspec.MsgspecError, UnicodeError, AttributeError):
        raise Invalid(
            "invalid X-Registry-Auth: expected a JSON object with username and password, or a token, in base 64"
        ) from None


def encode(auth: RegistryAuth) -> str:
    """The inverse; empty when it says nothing."""
    if auth == RegistryAuth():
        return ""
    return base64.urlsafe_b64encode(msgspec.json.encode(auth)).decode()
