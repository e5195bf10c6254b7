"""Options about nodes, as changes to what is there."""

from typing import Any

import pytest
from test_namespec import given

from hivemesh.cli import placementspec
from hivemesh.model.errors import Invalid, NotFound


def created(*arguments: str) -> dict[str, Any]:
    template: dict[str, Any] = {}
    placementspec.apply_created(template, given(placementspec.create_options, *arguments))
    return template


def updated(template: dict[str, Any], *arguments: str) -> dict[str, Any]:
    placementspec.apply_updated(template, given(placementspec.update_options, *arguments))
    return template


def preferences(template: dict[str, Any]) -> list[str]:
    return [one["Spread"]["SpreadDescriptor"] for one in template["Placement"]["Preferences"]]


def generic(template: dict[str, Any]) -> dict[str, int]:
    asked = template["Resources"]["Reservations"]["GenericResources"]
    return {one["DiscreteResourceSpec"]["Kind"]: one["DiscreteResourceSpec"]["Value"] for one in asked}


def test_nothing_given_says_nothing() -> None:
    assert created() == {"Resources": {}, "Placement": {"Preferences": []}}
    there = {"Resources": {"Limits": {"Pids": 3}}, "Placement": {"Constraints": ["node.role==worker"]}}
    assert updated(there) == {
        "Resources": {"Limits": {"Pids": 3}},
        "Placement": {"Constraints": ["node.role==worker"], "Preferences": []},
    }


def test_new_service_says_what_it_needs() -> None:
    template = created(
        "--placement-pref=spread=node.labels.zone", "--placement-pref=spread=node.labels.rack",
        "--generic-resource=GPU=2", "--reserve-cpu=0.5", "--reserve-memory=64m",
    )  # fmt: skip
    assert preferences(template) == ["node.labels.zone", "node.labels.rack"]
    assert generic(template) == {"GPU": 2}
    assert template["Resources"]["Reservations"]["NanoCPUs"] == 500_000_000
    assert template["Resources"]["Reservations"]["MemoryBytes"] == 64 << 20


def test_needs_change_one_by_one() -> None:
    template = created("--placement-pref=spread=a", "--placement-pref=spread=b", "--generic-resource=GPU=2")
    updated(
        template, "--placement-pref-rm=spread=a", "--placement-pref-add=spread=c", "--generic-resource-add=GPU=1",
        "--generic-resource-add=SSD=1",
    )  # fmt: skip
    assert preferences(template) == ["b", "c"]
    assert generic(template) == {"GPU": 3, "SSD": 1}
    updated(template, "--generic-resource-rm=GPU", "--reserve-cpu=1")
    assert generic(template) == {"SSD": 1}
    assert template["Resources"]["Reservations"]["NanoCPUs"] == 1_000_000_000
    with pytest.raises(NotFound, match="asks for no generic resource GPU"):
        updated(template, "--generic-resource-rm=GPU")
    with pytest.raises(NotFound, match="no placement preference a"):
        updated(template, "--placement-pref-rm=spread=a")


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--placement-pref=node.labels.zone", "write spread=KEY"),
        ("--placement-pref=binpack=node.labels.zone", "write spread=KEY"),
        ("--placement-pref=spread=", "write spread=KEY"),
        ("--generic-resource=GPU", "write NAME=COUNT"),
        ("--generic-resource=GPU=id1", "write NAME=COUNT"),
        ("--generic-resource==1", "write NAME=COUNT"),
        ("--reserve-cpu=lots", "invalid number of CPUs"),
    ],
)
def test_slips_are_refused(argument: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        created(argument)
