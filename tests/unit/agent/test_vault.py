"""A manager's keys at rest: nobody gets at them without the unlock key, and no step in between loses them."""

from pathlib import Path

import pytest
from test_identity import make

from hivemesh.agent import identity as identities
from hivemesh.agent import private
from hivemesh.agent.identity import Identity, load
from hivemesh.agent.vault import LOCKED, NOT_LOCKED, WRONG_KEY, Vault
from hivemesh.model.errors import Conflict, Invalid, Unavailable
from hivemesh.pki import make_request, new_unlock_key, unlock_bytes


def manager(directory: Path) -> tuple[Identity, bytes]:
    made = make(directory)
    return made.with_role("manager"), made.vault.create()


def read(directory: Path) -> Identity:
    found = load(directory)
    assert found is not None
    return found


def on_disk(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (directory / "certificates").iterdir())


def test_locked_keys_open_with_the_unlock_key_only(tmp_path: Path) -> None:
    made, key = manager(tmp_path)
    unlock = new_unlock_key()
    made.lock(unlock)
    made.client_context()  # it goes on working itself
    assert key not in on_disk(tmp_path)
    assert b"BEGIN PRIVATE KEY" not in on_disk(tmp_path)
    found = read(tmp_path)
    assert found.vault.locked
    with pytest.raises(Unavailable, match="Swarm is encrypted"):
        found.client_context()
    with pytest.raises(Unavailable, match="Swarm is encrypted"):
        assert found.vault.key
    for wrong in ("", "x", new_unlock_key(), unlock[:-1]):
        with pytest.raises(Invalid, match=WRONG_KEY):
            found.vault.unlock(wrong)
    found.vault.unlock(f" {unlock}\n")
    assert found.vault.key == key
    found.client_context()
    assert b"BEGIN PRIVATE KEY" in found.credentials()
    with pytest.raises(Conflict, match=NOT_LOCKED):
        found.vault.unlock(unlock)
    assert LOCKED.startswith("Swarm is encrypted and needs to be unlocked before it can be used.")


def test_another_unlock_key_replaces_the_old_one(tmp_path: Path) -> None:
    made, key = manager(tmp_path)
    first, second = new_unlock_key(), new_unlock_key()
    made.lock(first)
    made.lock(second)
    found = read(tmp_path)
    with pytest.raises(Invalid):
        found.vault.unlock(first)
    found.vault.unlock(second)
    assert found.vault.key == key


def test_keys_are_in_the_clear_again_without_autolock_and_on_a_worker(tmp_path: Path) -> None:
    made, key = manager(tmp_path)
    made.lock(new_unlock_key())
    made.lock("")
    assert not read(tmp_path).vault.locked
    assert read(tmp_path).vault.key == key
    made.lock(new_unlock_key())
    made.with_role("worker")
    found = read(tmp_path)
    assert not found.vault.locked
    assert b"BEGIN PRIVATE KEY" in found.certificate.read_bytes()
    found.vault.forget()
    assert not read(tmp_path).vault.has_key


def test_a_renewed_certificate_is_locked_too(tmp_path: Path) -> None:
    made, _ = manager(tmp_path)
    made.lock(new_unlock_key())
    certificate = made.certificate.read_text().partition("-----BEGIN ENCRYPTED")[0]
    made.renew(certificate, make_request().key)
    assert b"BEGIN PRIVATE KEY" not in on_disk(tmp_path)


@pytest.mark.parametrize("unlock", ["", new_unlock_key()])
def test_a_crash_between_the_two_files_loses_nothing(
    tmp_path: Path, unlock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, key = manager(tmp_path)
    if not unlock:
        made.lock(new_unlock_key())
    written = []
    real = private.write_private

    def crash(path: Path, data: bytes) -> None:
        if unlock:
            real(path, data)
        written.append(path)
        raise OSError("crash")

    monkeypatch.setattr(identities, "write_private", crash)
    with pytest.raises(OSError, match="crash"):
        made.lock(unlock)
    assert written == [made.certificate]
    found = read(tmp_path)  # certificate locked, the store's key in the clear: either way round
    assert not found.vault.locked
    assert found.vault.key == key
    found.client_context()


def test_a_manager_without_its_stores_key_says_so(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    assert not vault.locked
    with pytest.raises(Invalid, match="restore it from a backup"):
        assert vault.key


def test_an_unlock_key_has_dockers_form() -> None:
    key = new_unlock_key()
    assert key.startswith("SWMKEY-1-")
    assert len(key) == 9 + 43
    assert len(unlock_bytes(key)) == 32
