"""Join tokens: `SWMTKN-1-<digest of the CA, 50>-<secret, 25>`, all base 36, as Docker writes them.

The digest pins the CA before the first secret byte is sent; the secret decides the role.
"""

import hashlib
import hmac
import re
import secrets
import ssl
from dataclasses import dataclass, field

from hivemesh.model.errors import Invalid
from hivemesh.model.ids import base36

DIGEST_LENGTH = 50
"""256 bits in base 36."""
SECRET_LENGTH = 25
"""128 bits in base 36."""
PREFIX = "SWMTKN-1"
_FORM = re.compile(rf"{PREFIX}-([0-9a-z]{{{DIGEST_LENGTH}}})-([0-9a-z]{{{SECRET_LENGTH}}})")
_FULL_LENGTH = len(PREFIX) + 1 + DIGEST_LENGTH + 1 + SECRET_LENGTH
_HINT = "print it again with `swarm join-token worker` on a manager"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A parsed token; `str()` gives its text back."""

    digest: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        return f"{PREFIX}-{self.digest}-{self.secret}"

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Raises `Invalid` that says whether the token is truncated or of another form."""
        text = text.strip()
        match = _FORM.fullmatch(text)
        if match:
            return cls(match[1], match[2])
        if not text:
            raise Invalid(f"a join token is needed; {_HINT}")
        if text.startswith("SWMTKN-2-"):
            raise Invalid("invalid join token: this is a token of a FIPS swarm, which hivemesh does not have")
        if not text.startswith(f"{PREFIX}-"):
            raise Invalid(
                f"invalid join token: expected {PREFIX}-<{DIGEST_LENGTH} characters>-<25 characters>; {_HINT}"
            )
        if len(text) < _FULL_LENGTH:
            raise Invalid(
                f"invalid join token: it is truncated ({len(text)} of {_FULL_LENGTH} characters); copy the whole token"
            )
        raise Invalid(f"invalid join token: it is not of the form {PREFIX}-<50 of 0-9a-z>-<25 of 0-9a-z>; {_HINT}")


def ca_digest(ca: str) -> str:
    """SHA-256 over the DER form of a CA certificate given as PEM: white space in a PEM file does not change it."""
    der = ssl.PEM_cert_to_DER_cert(ca.strip() + "\n")
    return base36(int.from_bytes(hashlib.sha256(der).digest(), "big"), DIGEST_LENGTH)


def new_token(ca: str) -> str:
    """A fresh token of the swarm with CA certificate `ca` (PEM)."""
    return str(JoinToken(ca_digest(ca), base36(secrets.randbits(128), SECRET_LENGTH)))


def same_secret(given: str, known: str) -> bool:
    """Compare two tokens in a time that says nothing about where they differ."""
    return bool(known) and hmac.compare_digest(given.encode(), known.encode())
