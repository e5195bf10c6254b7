"""The machines of a lab, their names and addresses."""

from pathlib import Path

import pytest

from hivemesh.lab.lab import LabSettings
from hivemesh.lab.topology import Places, Topology
from hivemesh.model.errors import Invalid


def test_first_node_has_the_documented_addresses() -> None:
    first = Topology(lab="lab", nodes=3).node_specs[0]
    assert (first.name, str(first.v4), str(first.v6)) == ("n1", "198.51.100.11/24", "fd00:198:51:100::11/64")


def test_addresses_read_alike_in_both_families_and_never_meet_the_client() -> None:
    machines = Topology(lab="lab", nodes=50).machines
    assert len({machine.v4 for machine in machines}) == len({machine.v6 for machine in machines}) == 51
    for machine in machines:
        assert str(machine.v4.ip).rpartition(".")[2] == str(machine.v6.ip).rpartition(":")[2] == str(machine.number)


def test_two_labs_share_no_name_in_the_kernel() -> None:
    one, other = (Topology(lab=name, nodes=2) for name in ("one", "other"))
    assert not {m.netns for m in one.machines} & {m.netns for m in other.machines}
    assert not {m.mark for m in one.machines} & {m.mark for m in other.machines}


@pytest.mark.parametrize("name", ["", "UP", "a/b", "../x", "_images", "x" * 17, "-a"])
def test_lab_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        Topology(lab=name, nodes=1)


@pytest.mark.parametrize("nodes", [0, -1, 51])
def test_number_of_nodes_out_of_range_is_refused(nodes: int) -> None:
    with pytest.raises(Invalid):
        Topology(lab="lab", nodes=nodes)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(Invalid, match="podman or process"):
        LabSettings(engine="docker")
    with pytest.raises(Invalid, match="managers"):
        LabSettings(nodes=3, managers=4)
    with pytest.raises(Invalid, match="managers"):
        LabSettings(nodes=3, managers=0)


def test_environment_moves_the_disk_and_never_the_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVEMESH_LAB_DIR", "/elsewhere")
    assert Places.of_environment() == Places(disk=Path("/elsewhere"))
