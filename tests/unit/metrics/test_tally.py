"""Counters that begin anew with each object of the kernel, as sums that never count down."""

import pytest

from hivemesh.metrics.tally import KEEP, OTHER, Tally

WEB = ("web", "10.0.0.5")


@pytest.fixture
def tally() -> Tally:
    return Tally()


def test_an_object_made_anew_goes_on_counting_up(tally: Tally) -> None:
    for at, shown in enumerate((5, 9, 2, 2)):
        tally.add([("f", WEB, "rule", shown)], float(at))
    assert tally.of("f") == {WEB: 11}


def test_objects_of_one_sum_are_kept_apart(tally: Tally) -> None:
    tally.add([("f", WEB, "sandbox1", 5), ("f", WEB, "sandbox2", 7)], 0.0)
    tally.add([("f", WEB, "sandbox1", 6), ("f", WEB, "sandbox2", 7)], 1.0)
    assert tally.of("f") == {WEB: 13}


def test_one_that_could_not_be_read_for_once_is_not_counted_twice(tally: Tally) -> None:
    tally.add([("f", WEB, "rule", 5)], 0.0)
    tally.add([], 1.0)
    tally.add([("f", WEB, "rule", 6)], 2.0)
    assert tally.of("f") == {WEB: 6}


def test_more_sums_than_there_is_room_for_are_added_up(tally: Tally) -> None:
    tally.most = 2
    tally.add([("f", (name, "b"), "rule", 1) for name in ("one", "two", "three", "four")], 0.0)
    assert tally.of("f") == {("one", "b"): 1, ("two", "b"): 1, (OTHER, OTHER): 2}


def test_what_was_gone_for_long_makes_room(tally: Tally) -> None:
    tally.add([("f", WEB, "rule", 5)], 0.0)
    tally.add([("f", ("db", "b"), "rule", 5)], KEEP)
    assert tally.of("f").keys() == {WEB, ("db", "b")}
    tally.add([], KEEP + 1)
    assert tally.of("f").keys() == {("db", "b")}
