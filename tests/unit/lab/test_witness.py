"""The judge of storms: what it lets pass, what it does not, and what a slow machine changes about that."""

import pytest
from chaos_clients import Asked
from witness import GRACE, Witness

from pace import NEEDED, USUAL, Pace


def paced(tmp_path: object, slowness: float = 1.0) -> Pace:
    """A pace that was the same all the time."""
    pace = Pace(tmp_path / "pace")  # type: ignore[operator]
    pace.log.touch()
    pace.began = [float(second) for second in range(100)]
    pace.took = [slowness * USUAL * NEEDED] * 100
    return pace


def names(at: float, *found: str, error: str = "") -> Asked:
    return Asked("n1", "names", at, at + 0.01, found, error)


@pytest.mark.parametrize(
    ("late", "slowness", "fault"), [(0.9, 1, False), (1.5, 1, True), (1.5, 3, False), (3.5, 3, True)]
)
def test_an_answer_that_is_gone_for_too_long_is_a_fault(
    tmp_path: object, late: float, slowness: float, fault: bool
) -> None:
    witness = Witness(("n1",), paced(tmp_path, slowness))
    witness.saw_gone(["10.0.0.5"], ["10.0.0.6"], 49.9, 50.0)
    counts = witness.judge([names(50 + late, "10.0.0.5", "10.0.0.6")])
    assert bool(witness.faults) is fault
    assert counts.total() == 1
    assert (counts["names right, late on a slow machine"] == 1) is (not fault and late > GRACE)


def test_an_address_that_lives_again_is_right(tmp_path: object) -> None:
    witness = Witness(("n1",), paced(tmp_path))
    witness.saw_gone(["10.0.0.5"], [], 49.9, 50.0)
    witness.saw_gone(["10.0.0.5"], [], 54.9, 55.0)
    witness.saw_gone([], ["10.0.0.5"], 55.1, 55.2)
    witness.judge([names(60, "10.0.0.5"), names(55.05, "10.0.0.5")])  # the second before anybody looked
    assert witness.faults == []
    witness.judge([names(54, "10.0.0.5")])
    assert len(witness.faults) == 1


def test_a_failure_is_excused_by_what_was_done_there_and_by_nothing_else(tmp_path: object) -> None:
    witness = Witness(("n1", "n2"), paced(tmp_path))
    for node, begin, end in (("n2", 10.0, 90.0), ("n1", 10.0, 20.0)):
        span = witness.excuse("damage", node)
        span.begin, span.end = begin, end
    counts = witness.judge([names(15, error="refused"), names(25, error="refused")])
    assert counts == {"names excused by damage": 1, "names FAILED": 1}
    assert len(witness.faults) == 1


def test_a_node_on_its_own_may_lead_to_what_it_cannot_know_of(tmp_path: object) -> None:
    witness = Witness(("n1",), paced(tmp_path))
    apart = witness.part("n1", "a cut")
    apart.begin, apart.end = 40.0, 60.0
    witness.saw_gone(["10.0.0.5"], [], 49.9, 50.0)
    witness.judge([names(55, "10.0.0.5")])
    assert witness.faults == []
    witness.judge([names(60.5, "10.0.0.5")])
    assert witness.faults == []
    witness.judge([names(61.5, "10.0.0.5")])
    assert len(witness.faults) == 1
