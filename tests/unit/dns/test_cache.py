"""Answers kept: for how long, in how much memory."""

import dns.message

from hivemesh.clock import ManualClock
from hivemesh.dns.cache import FAILED_FOR, MAX_FAILED, Cache
from hivemesh.wire.dnsanswer import question_end, read_records
from nameserver import record


def keep(cache: Cache, key: bytes, ttl: int) -> None:
    wire = record(dns.message.make_query("example.com", "A"), ttl=ttl).to_wire()
    cache.keep(key, wire, read_records(wire, question_end(wire)) or [])


def test_an_answer_grows_old_second_by_second_and_goes() -> None:
    clock = ManualClock()
    cache = Cache(now=clock.now)
    keep(cache, b"k", 3)
    seen = []
    while (found := cache.find(b"k")) is not None:
        seen.append((dns.message.from_wire(found[0]).answer[0].ttl, found[1] - clock.now()))
        clock.advance(0.75)
    assert seen == [(3, 1), (3, 0.25), (2, 0.5), (1, 0.75)]
    assert cache.size == 0


def test_the_least_recently_used_goes_when_memory_is_full() -> None:
    cache = Cache(limit=5000)
    for name in (b"a", b"b", b"c"):
        keep(cache, name, 60)
    for number in range(40):
        assert cache.find(b"a") is not None
        keep(cache, b"%d" % number, 60)
    assert cache.find(b"b") is None
    assert cache.find(b"39") is not None
    assert cache.size <= 5000


def test_finished_messages_are_bounded_too() -> None:
    cache = Cache(limit=20_000)
    for number in range(100):
        cache.prepare(b"%d" % number, bytes(100), 1.0)
        cache.prepare(b"%d" % number, bytes(100), 2.0)
    assert cache.size <= 5000
    assert cache.ready[b"99"] == (bytes(100), 2.0)


def test_a_failure_is_remembered_for_a_moment() -> None:
    clock = ManualClock()
    cache = Cache(now=clock.now)
    cache.fail(b"k")
    assert cache.failed(b"k")
    assert not cache.failed(b"other")
    clock.advance(FAILED_FOR)
    assert not cache.failed(b"k")
    for number in range(2 * MAX_FAILED):
        cache.fail(b"%d" % number)
    assert len(cache._failed) <= MAX_FAILED
