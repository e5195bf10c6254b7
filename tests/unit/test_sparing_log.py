"""A line per kind and while."""

import logging

import pytest

from hivemesh.clock import ManualClock
from hivemesh.log import MAX_KINDS, SparingLog


def test_many_events_of_a_kind_make_few_lines_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    log = SparingLog(logging.getLogger("test"), every=10, now=clock.now)
    for number in range(5):
        log.warning("late", "%d is late", number)
    log.warning("dead", "gone")
    clock.advance(10)
    log.warning("late", "%d is late", 5)
    assert caplog.messages == ["0 is late", "gone", "5 is late (and 4 more like it)"]


def test_kinds_without_end_are_not_remembered() -> None:
    log = SparingLog(logging.getLogger("test"))
    for number in range(3 * MAX_KINDS):
        log.warning(str(number), "something")
    assert len(log._kinds) <= MAX_KINDS
