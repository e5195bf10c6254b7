"""Every fault of the table, made in a real lab: a trace names hop and cause, the doctor names check, node and cause."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults_made import Placed, Told, hold_repairs, told

from faults import FAULTS, Fault
from hivemesh.lab.lab import Lab, LabSettings

pytestmark = [pytest.mark.scenario, pytest.mark.soak]

MOST_SECONDS = 5.0
"""That a trace, and the doctor, may take on a quiet machine."""


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Placed]:
    lab = Lab(f"t{os.getpid()}-faults", LabSettings(engine="process"))
    lab.up()
    try:
        yield Placed.make(lab, hold_repairs(lab, Path(tmp_path_factory.mktemp("faults"))))
    finally:
        lab.down()


def assert_nothing_is_raised(placed: Placed) -> None:
    trace, doctor = placed.trace(), told(placed.lab.nodes[0], "doctor", "--json")
    assert (trace.code, doctor.code) == (0, 0), (trace.document, doctor.document["findings"])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_named_by_trace_and_by_doctor(placed: Placed, fault: Fault) -> None:
    with placed.broken(fault):
        trace: Told = placed.trace(*(() if fault.probe else ("--no-probe",)))
        doctor = told(placed.lab.nodes[0], "doctor", "--json")
    print(f"{fault.name}: trace {trace.seconds:.1f} s, doctor {doctor.seconds:.1f} s")
    placed.assert_traced(fault, trace)
    placed.assert_diagnosed(fault, doctor)
    assert max(trace.seconds, doctor.seconds) < MOST_SECONDS


def test_lab_without_a_fault_raises_nothing(placed: Placed) -> None:
    assert_nothing_is_raised(placed)
