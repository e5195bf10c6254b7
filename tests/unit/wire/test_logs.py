"""Lines of output as bytes and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemesh.model.ids import TaskID
from hivemesh.wire.framing import framed
from hivemesh.wire.logs import MAX_LINE, Entry, LogLine, LogProblem, nanoseconds, rfc3339, unframer

ENTRIES: list[Entry] = [
    LogLine(TaskID("a"), 1, 1_700_000_000_000_000_001, b"hello\n"),
    LogLine(TaskID("b"), 2, 0, b"\xff\x00 no text"),
    LogProblem(TaskID("b"), "its container is gone"),
]


@given(st.lists(st.integers(1, 60), max_size=20))
def test_entries_come_out_as_they_went_in_however_the_stream_is_cut(cuts: list[int]) -> None:
    stream, pieces = b"".join(framed(entry) for entry in ENTRIES), unframer()
    found = []
    for cut in [*cuts, len(stream)]:
        found += list(pieces.feed(stream[:cut]))
        stream = stream[cut:]
    assert found == ENTRIES


def test_an_entry_longer_than_any_line_is_refused() -> None:
    with pytest.raises(ValueError, match="are the most"):
        list(unframer().feed((2 * MAX_LINE).to_bytes(4, "big")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T20:30:00.123456789+00:00", "2026-11-22T20:30:00.123456789Z"),
        ("2026-11-22T21:30:00.5+01:00", "2026-11-22T20:30:00.500000000Z"),
        ("2026-11-22T20:30:00Z", "2026-11-22T20:30:00.000000000Z"),
    ],
)
def test_times_of_any_zone_and_width_become_utc_with_nine_digits(text: str, expected: str) -> None:
    assert rfc3339(nanoseconds(text)) == expected
