"""Wanted against actual."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemesh.reconcile.delta import Change, Delta

Entry = tuple[str, int]
ENTRIES = st.frozensets(st.tuples(st.sampled_from("abcdef"), st.integers(0, 2)))


def by_name() -> Delta[Entry]:
    return Delta(lambda entry: entry[0])


def one_each(entries: frozenset[Entry]) -> frozenset[Entry]:
    return frozenset(dict(sorted(entries)).items())


def test_nothing_is_done_before_a_readback() -> None:
    delta = by_name()
    assert delta.needs_readback
    with pytest.raises(AssertionError, match="read back first"):
        delta.change(frozenset())
    delta.believe([])
    assert not delta.needs_readback
    delta.forget()
    assert delta.needs_readback


def test_replaced_entry_is_put_and_not_removed() -> None:
    delta = by_name()
    delta.believe([("a", 1), ("b", 1)])
    change = delta.change(frozenset({("a", 2)}))
    assert change == Change(put=frozenset({("a", 2)}), remove=frozenset({("b", 1)}))


@given(ENTRIES.map(one_each), ENTRIES.map(one_each))
def test_change_leads_from_actual_to_wanted(actual: frozenset[Entry], wanted: frozenset[Entry]) -> None:
    delta = by_name()
    delta.believe(actual)
    change = delta.change(wanted)
    kernel = dict(actual)
    for name, _ in change.remove:
        del kernel[name]
    kernel.update(change.put)
    assert kernel == dict(wanted)
    assert not change.put & actual
