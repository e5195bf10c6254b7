"""A store in one file."""

import pytest

from hivemesh.model.errors import Invalid
from hivemesh.store.api import Entry, Snapshot
from hivemesh.store.backup import DIGEST, MAGIC, pack, unpack

SNAPSHOT = Snapshot(41, (Entry("cluster/c", b"\x00secret", 3), Entry("node/n", b"", 41)))


def test_what_is_saved_comes_back() -> None:
    saved = unpack(pack(SNAPSHOT, 1234.5))
    assert (saved.taken, saved.revision) == (1234.5, 41)
    found = saved.snapshot()
    assert found.revision == 41
    assert [(entry.key, entry.value) for entry in found.entries] == [("cluster/c", b"\x00secret"), ("node/n", b"")]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: b"", "no snapshot"),
        (lambda data: b"PK" + data, "no snapshot"),
        (lambda data: data.replace(b"snapshot 1\n", b"snapshot 9\n", 1), "another version"),
        (lambda data: data[:-1], "damaged"),
        (lambda data: data[: len(MAGIC) + DIGEST], "damaged"),
        (lambda data: data[:-5] + b"x" + data[-4:], "damaged"),
    ],
)
def test_a_file_that_is_none_or_was_changed_is_refused(spoil, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Invalid, match=words):
        unpack(spoil(pack(SNAPSHOT, 0.0)))
