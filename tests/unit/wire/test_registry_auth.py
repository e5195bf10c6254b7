"""What clients let registries be shown."""

import base64

import pytest

from hivemesh.model.errors import Invalid
from hivemesh.wire.registryauth import LONGEST, RegistryAuth, decode, encode


def test_what_says_nothing_is_nothing() -> None:
    for text in ("", "e30=", "e30", base64.urlsafe_b64encode(b"null").decode(), encode(RegistryAuth())):
        assert decode(text) == RegistryAuth()
    assert encode(RegistryAuth()) == ""


def test_credentials_survive_and_are_not_shown() -> None:
    auth = RegistryAuth(username="me", password="über/secret?", serveraddress="r.example:5000")
    assert decode(encode(auth)) == auth
    assert "secret" not in repr(auth)


@pytest.mark.parametrize(
    "text", ["!", "bm8=", base64.b64encode(b"[1]").decode(), "eyJ1c2VybmFtZSI6MX0=", "a" * LONGEST * 2]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="invalid X-Registry-Auth"):
        decode(text)
