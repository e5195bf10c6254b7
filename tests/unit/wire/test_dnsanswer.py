"""Foreign messages: equal questions, lifetimes, TTLs counted down. dnspython is the witness."""

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemesh.wire.dnsanswer import (
    Asked,
    aged,
    answers,
    fitted,
    kept_form,
    lifetime,
    question_end,
    read_query,
    read_records,
    truncated,
)
from nameserver import code, record


def asked(query: dns.message.Message) -> Asked:
    read = read_query(query.to_wire())
    assert read is not None
    return read


def question(name: str = "Example.com", kind: str = "A", **options: object) -> dns.message.QueryMessage:
    return dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]


def holds(answer: dns.message.Message) -> int:
    wire = answer.to_wire(max_size=65535)
    records = read_records(wire, question_end(wire))
    assert records is not None
    return lifetime(wire, records, most=86_400, most_negative=10_800)


def test_questions_are_equal_whatever_their_id_case_and_cookie() -> None:
    plain = asked(question())
    assert plain.key == asked(question("eXAMPLE.cOM")).key
    assert plain.common
    assert plain.bare
    cookie = question(
        options=[dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"12345678")], use_edns=0, payload=1400
    )
    assert asked(cookie).key == asked(question(use_edns=0, payload=4096)).key
    assert asked(cookie).common
    assert not asked(cookie).bare
    assert asked(cookie).limit == 1400


def test_questions_differ_by_type_flags_edns_and_do() -> None:
    checking_disabled, not_recursive = question(), question()
    checking_disabled.flags |= dns.flags.CD
    not_recursive.flags &= ~dns.flags.RD
    several = [
        question(),
        question(kind="AAAA"),
        question("example.org"),
        question(use_edns=0),
        question(want_dnssec=True),
        checking_disabled,
        not_recursive,
    ]
    assert len({asked(q).key for q in several}) == len(several)
    assert not asked(not_recursive).common


def test_types_are_no_letters() -> None:
    """65 (HTTPS) is `A`, 97 is `a`."""
    assert asked(question(kind="TYPE65")).key != asked(question(kind="TYPE97")).key


def test_a_question_with_a_client_subnet_or_a_signature_is_nobody_elses() -> None:
    subnet = question(options=[dns.edns.ECSOption("192.0.2.0", 24)], use_edns=0)
    assert not asked(subnet).common
    assert not asked(question(use_edns=1)).common


def test_what_is_no_single_question_is_not_passed_on() -> None:
    wire = question().to_wire()
    answer = bytearray(wire)
    answer[2] |= 0x80
    update = bytearray(wire)
    update[2] |= 5 << 3
    two = bytearray(wire)
    two[5] = 2
    for broken in (b"", wire[:-1], wire + b"\0", answer, update, two, wire + b"\0" * 5000):
        assert read_query(bytes(broken)) is None
    assert read_query(question(kind="AXFR").to_wire()) is None


def test_an_answer_holds_as_long_as_its_shortest_record() -> None:
    answer = record(question(), ttl=60)
    assert holds(answer) == 60
    answer.additional.append(dns.rrset.from_text("x.example.com.", 7, "IN", "A", "192.0.2.2"))
    assert holds(answer) == 7
    assert holds(record(question(), ttl=10**6)) == 86_400
    assert holds(record(question(), ttl=0)) == 0
    assert holds(record(question(want_dnssec=True), ttl=60)) == 60


@pytest.mark.parametrize("rcode", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
def test_a_negative_answer_holds_by_the_minimum_of_its_zone(rcode: dns.rcode.Rcode) -> None:
    def negative(ttl: int, minimum: int) -> dns.message.Message:
        answer = code(question(), rcode)
        soa = f"ns.example.com. root.example.com. 1 2 3 4 {minimum}"
        answer.authority.append(dns.rrset.from_text("example.com.", ttl, "IN", "SOA", soa))
        return answer

    assert holds(negative(900, 30)) == 30
    assert holds(negative(20, 30)) == 20
    assert holds(negative(10**6, 10**6)) == 10_800
    assert holds(code(question(), rcode)) == 0
    wire = negative(900, 30).to_wire()
    kept, ttls = kept_form(wire, read_records(wire, question_end(wire)) or [])
    assert dns.message.from_wire(aged(kept, ttls, 10)).authority[0].ttl == 20


def test_an_alias_without_its_target_is_not_kept() -> None:
    assert holds(record(question(), "other.example.", kind="CNAME")) == 0
    assert holds(record(question(kind="CNAME"), "other.example.", kind="CNAME")) == 60


def test_failures_and_truncated_answers_are_not_kept() -> None:
    short = record(question())
    short.flags |= dns.flags.TC
    assert holds(short) == 0
    assert holds(code(question(), dns.rcode.SERVFAIL)) == 0


records_of_many_kinds = st.lists(
    st.tuples(
        st.sampled_from(["answer", "authority", "additional"]),
        st.integers(0, 2**31 - 1),
        st.sampled_from(
            [("A", "192.0.2.1"), ("AAAA", "2001:db8::1"), ("CNAME", "a.b.example.com."), ("MX", "10 m.example.com."),
             ("TXT", '"text"'), ("SRV", "1 2 3 s.example.com."), ("NS", "ns.example.com.")]
        ),
        st.sampled_from(["example.com.", "www.example.com.", "other.test."]),
    ),
    max_size=8,
)  # fmt: skip


@given(records_of_many_kinds, st.integers(0, 2**31), st.booleans())
def test_ttls_counted_down_are_those_dnspython_reads(
    rows: list[tuple[str, int, tuple[str, str], str]], age: int, edns: bool
) -> None:
    answer = dns.message.make_response(question(use_edns=0 if edns else False))
    for section, ttl, (kind, text), name in rows:
        getattr(answer, section).append(dns.rrset.from_text(name, ttl, "IN", kind, text))
    wire = answer.to_wire(max_size=65535)
    kept, ttls = kept_form(wire, read_records(wire, question_end(wire)) or [])
    older = dns.message.from_wire(aged(kept, ttls, age), one_rr_per_rrset=True)
    before = dns.message.from_wire(wire, one_rr_per_rrset=True)
    for section in ("answer", "authority", "additional"):
        then, now = getattr(before, section), getattr(older, section)
        assert [max(r.ttl - age, 0) for r in then] == [r.ttl for r in now]
        assert [(r.name, r.to_rdataset()) for r in then] == [(r.name, r.to_rdataset()) for r in now]
    assert older.edns == before.edns


@given(st.binary(max_size=200), st.integers(0, 60))
def test_junk_is_never_more_than_broken(junk: bytes, at: int) -> None:
    good = record(question(want_dnssec=True)).to_wire()
    query = question(want_dnssec=True).to_wire()
    end = question_end(query)
    for message in (
        junk,
        good[:at] + junk,
        good[:at] + junk + good[at + len(junk) :],
        good[:12] + junk,
        good[: at + 12],
    ):
        read_query(message)
        answers(message, query, end)
        if len(message) < 12:
            continue
        records = read_records(message, question_end(message) or 12)
        if records is not None:
            lifetime(message, records, most=86_400, most_negative=10_800)
            kept, ttls = kept_form(message, records)
            assert len(aged(kept, ttls, 5)) == len(kept)
            fitted(message, query, asked(question(want_dnssec=True)), tcp=False)


def test_an_answer_is_told_by_its_question() -> None:
    query = question()
    wire = query.to_wire()
    end = question_end(wire)
    assert answers(record(query).to_wire(), wire, end)
    assert answers(record(question("EXAMPLE.com")).to_wire(), wire, end)
    assert not answers(record(question("example.org")).to_wire(), wire, end)
    assert not answers(record(question(kind="AAAA"), "::1", kind="AAAA").to_wire(), wire, end)
    assert not answers(wire, wire, end)
    assert answers(b"\0\0\x80\x05" + bytes(8), wire, end)
    assert not answers(b"\0\0\x80\x00" + bytes(8), wire, end)


def test_an_answer_is_fitted_to_its_asker() -> None:
    many = dns.message.make_response(question(use_edns=0))
    many.answer.append(dns.rrset.from_text_list("example.com.", 60, "IN", "A", [f"192.0.2.{n}" for n in range(90)]))
    wire = many.to_wire(max_size=65535)
    asking = question("eXaMpLe.CoM", use_edns=0, payload=1232)
    query = asking.to_wire()
    by_udp = fitted(wire, query, asked(asking), tcp=False)
    short = dns.message.from_wire(by_udp)
    assert truncated(by_udp)
    assert (short.id, str(short.question[0].name), short.answer, short.edns) == (asking.id, "eXaMpLe.CoM.", [], 0)
    whole = dns.message.from_wire(fitted(wire, query, asked(asking), tcp=True))
    assert (whole.id, str(whole.question[0].name), len(whole.answer[0])) == (asking.id, "eXaMpLe.CoM.", 90)
    assert str(whole.answer[0].name) == "eXaMpLe.CoM."
