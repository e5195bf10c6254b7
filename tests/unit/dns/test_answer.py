"""What a sandbox is told: each row of what Docker's resolver does, with dnspython on the other side."""

import ipaddress

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemesh.dns.answer import FORWARD, READY_BYTES, TTL, Answers, answer, failure
from hivemesh.dns.tables import Scope
from hivemesh.model.addr import Address
from hivemesh.model.ids import NetworkID
from hivemesh.wire.resolver import Names


def ips(*texts: str) -> tuple[Address, ...]:
    return tuple(ipaddress.ip_address(text) for text in texts)


def table(name: str, *, reverse: dict[str, str] | None = None, **names: tuple[Address, ...]) -> Names:
    return Names(
        network=NetworkID(f"id-{name}"),
        name=name,
        addresses={key.replace("__", "."): addresses for key, addresses in names.items()},
        reverse={ips(address)[0]: primary for address, primary in (reverse or {}).items()},
    )


FRONT = table(
    "front",
    web=ips("10.0.1.2", "fd00::2"),
    tasks__web=ips("10.0.1.3", "10.0.1.4", "10.0.1.5", "fd00::3"),
    web__1__abc=ips("10.0.1.3"),
    six=ips("fd00::6"),
    both=ips("10.0.1.7"),
    reverse={"10.0.1.3": "web.1.Abc", "fd00::3": "web.1.Abc", "10.0.1.8": "x" * 64},
)
BACK = table("back.net", db=ips("10.0.2.2"), both=ips("10.0.2.7", "fd01::7"), reverse={"10.0.2.2": "db.1.x"})
SCOPE = Scope((FRONT, BACK))


def say(asked: dns.message.Message, scope: Scope = SCOPE, *, tcp: bool = False, luck: float = 0.0) -> bytes | None:
    """The whole reply; None: forwarded."""
    wire = asked.to_wire()
    prepared = answer(wire, scope, tcp=tcp)
    assert prepared is not None
    tail = prepared if isinstance(prepared, bytes) else prepared.tail(luck)
    return None if tail == FORWARD else wire[:2] + tail


def read(asked: dns.message.Message, wire: bytes | None) -> dns.message.Message:
    assert wire is not None, "forwarded"
    said = dns.message.from_wire(wire)
    assert asked.is_response(said)
    return said


def told(name: str, kind: str = "A", scope: Scope = SCOPE, luck: float = 0.0) -> list[str] | str | None:
    """The addresses or names in the answer, the word for a failure, or None: forwarded."""
    asked = dns.message.make_query(name, kind)
    wire = say(asked, scope, luck=luck)
    if wire is None:
        return None
    said = read(asked, wire)
    if said.rcode() != dns.rcode.NOERROR:
        return dns.rcode.to_text(said.rcode())
    return [item.to_text() for records in said.answer for item in records]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("web", "A", ["10.0.1.2"]),
        ("WEB.", "A", ["10.0.1.2"]),
        ("web", "AAAA", ["fd00::2"]),
        ("tasks.web", "A", ["10.0.1.3", "10.0.1.4", "10.0.1.5"]),
        ("tasks.web", "AAAA", ["fd00::3"]),
        ("web.1.abc", "A", ["10.0.1.3"]),
        ("web.1.ABC.front", "A", ["10.0.1.3"]),
        ("db", "A", ["10.0.2.2"]),
        ("db.back.net", "A", ["10.0.2.2"]),
        # known only in the other family, or asked for something else: empty, and never forwarded
        ("six", "A", []),
        ("db", "AAAA", []),
        ("web", "MX", []),
        ("web", "SRV", []),
        ("web", "TXT", []),
        ("web", "HTTPS", []),
        ("web", "PTR", []),
        ("web", "ANY", ["10.0.1.2"]),
        ("six", "ANY", ["fd00::6"]),
        # the first network that knows a name answers for both families; a network's name restricts
        ("both", "A", ["10.0.1.7"]),
        ("both", "AAAA", []),
        ("both.back.net", "A", ["10.0.2.7"]),
        ("both.back.net", "AAAA", ["fd01::7"]),
        ("db.front", "A", None),
        ("web.back.net", "A", None),
        # everything else is asked on
        ("nobody", "A", None),
        ("front", "A", None),
        ("example.com", "A", None),
        ("example.com", "MX", None),
        (".", "NS", None),
        (r"tasks\.web", "A", None),
    ],
)
def test_question_is_answered_from_the_tables_or_asked_on(name: str, kind: str, expected: list[str] | None) -> None:
    assert told(name, kind) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.1.3", ["web.1.Abc.front."]),
        ("fd00::3", ["web.1.Abc.front."]),
        ("10.0.2.2", ["db.1.x.back.net."]),
        ("10.0.1.2", None),  # a VIP has none
        ("10.0.1.8", None),  # a name that is none in DNS
        ("192.0.2.1", None),
    ],
)
def test_address_of_a_task_has_its_name_and_network(address: str, expected: list[str] | None) -> None:
    assert told(dns.reversename.from_address(address).to_text(), "PTR") == expected


@pytest.mark.parametrize(
    ("name", "kind", "ndots", "forward", "expected"),
    [
        ("nobody", "A", True, True, []),
        ("nobody", "AAAA", True, False, []),
        ("nobody", "MX", True, True, None),
        ("no.body", "A", True, True, None),
        (".", "A", True, True, None),
        ("nobody", "A", False, False, "SERVFAIL"),
        ("example.com", "A", True, False, "SERVFAIL"),
        ("1.2.0.192.in-addr.arpa", "PTR", False, False, "SERVFAIL"),
        ("web", "A", True, False, ["10.0.1.2"]),
    ],
)
def test_unknown_name_stays_here_where_it_must(
    name: str, kind: str, ndots: bool, forward: bool, expected: list[str] | str | None
) -> None:
    assert told(name, kind, Scope(SCOPE.tables, forward, ndots)) == expected


def test_question_of_another_class_or_for_a_transfer_is_refused() -> None:
    for kind, klass in (("TXT", "CH"), ("A", "ANY"), ("AXFR", "IN"), ("TKEY", "IN")):
        asked = dns.message.make_query("web", kind, klass)
        assert read(asked, say(asked)).rcode() == dns.rcode.REFUSED


def test_newer_edns_is_told_our_version() -> None:
    asked = dns.message.make_query("web", "A", use_edns=3)
    assert read(asked, say(asked)).rcode() == dns.rcode.BADVERS


def test_records_carry_the_name_as_asked_and_a_short_life() -> None:
    asked = dns.message.make_query("TASKS.Web", "A", use_edns=0)
    said = read(asked, say(asked))
    (records,) = said.answer
    assert (records.name.to_text(), records.ttl, records.rdclass) == ("TASKS.Web.", TTL, dns.rdataclass.IN)
    assert said.flags == dns.flags.QR | dns.flags.RD | dns.flags.RA
    assert said.edns == 0


def test_each_of_several_addresses_comes_first_as_often() -> None:
    firsts = [told("tasks.web", luck=part / 3 + 0.01) for part in range(3)]
    assert [answers[0] for answers in firsts if answers] == ["10.0.1.3", "10.0.1.4", "10.0.1.5"]
    assert {len(answers) for answers in firsts if answers} == {3}


MANY = Scope((table("big", all=tuple(ipaddress.ip_address(f"10.1.{n // 250}.{n % 250}") for n in range(2000))),))


@pytest.mark.parametrize("payload", [None, 512, 1232, 65535])
@pytest.mark.parametrize("luck", [0.0, 0.9999])
def test_answer_too_long_for_udp_is_cut_at_a_record_and_says_so(payload: int | None, luck: float) -> None:
    asked = dns.message.make_query("all", "A", use_edns=None if payload is None else 0, payload=payload or 0)
    wire = say(asked, MANY, luck=luck)
    assert wire is not None
    limit = min(payload or 512, 4096)
    assert limit - 16 < len(wire) <= limit
    said = read(asked, wire)
    assert said.flags & dns.flags.TC
    assert len({item.to_text() for item in said.answer[0]}) == (len(wire) - len(asked.to_wire())) // 16
    whole = read(asked, say(asked, MANY, tcp=True, luck=luck))
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == 2000


def test_question_nobody_answers_fails_with_its_question() -> None:
    asked = dns.message.make_query("example.com", "A", use_edns=0)
    wire = asked.to_wire()
    assert read(asked, wire[:2] + failure(wire)).rcode() == dns.rcode.SERVFAIL


def test_answer_is_ready_for_the_same_question_with_another_id() -> None:
    answers = Answers(SCOPE)
    asked = dns.message.make_query("web", "A").to_wire()
    prepared = answers.prepare(asked)
    assert answers.ready == {asked[2:]: prepared}
    for unknown in (b"", b"\0" * 11):
        assert answers.prepare(unknown) is None
    assert len(answers.ready) == 1


def test_ready_answers_stay_within_their_memory() -> None:
    answers = Answers(SCOPE)
    most = 0
    for number in range(3000):
        answers.prepare(dns.message.make_query(f"nobody{number}", "A").to_wire())
        most = max(most, len(answers.ready))
    assert 100 < most < READY_BYTES / 200
    odd = dns.message.make_query("web", "A", use_edns=0, options=[dns.edns.GenericOption("65001", bytes(400))])
    answers.ready.clear()
    assert answers.prepare(odd.to_wire())
    assert answers.ready == {}


@given(
    st.binary(max_size=300)
    | st.builds(lambda name, rest: b"\0\1\1\0\0\1\0\0\0\0\0\0" + name + rest,
                st.lists(st.binary(min_size=1, max_size=63), max_size=5).map(
                    lambda labels: b"".join(bytes([len(x)]) + x for x in labels) + b"\0"),
                st.sampled_from([b"\0\1\0\1", b"\0\x1c\0\1", b"\0\x0c\0\1", b"\0\xff\0\xff"]))
)  # fmt: skip
def test_whatever_comes_is_answered_forwarded_or_dropped(message: bytes) -> None:
    for tcp in (False, True):
        prepared = answer(message, SCOPE, tcp=tcp)
        if prepared is None:
            assert len(message) < 12 or message[2] & 0x80
        elif prepared == FORWARD:
            failure(message)
        else:
            tail = prepared if isinstance(prepared, bytes) else prepared.tail(0.5)
            dns.message.from_wire(message[:2] + tail)
