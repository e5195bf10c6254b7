"""Facts read from a picture of another machine, and what is put right there."""

import os
from pathlib import Path

import pytest

from hivemesh.doctor import fixes, limits
from hivemesh.doctor.before import Judge, settings
from hivemesh.doctor.machine import cgroups, gather, holders, missing_controllers
from hivemesh.kernel.incoming import accepted, opened
from hivemesh.wire.doctor import Finding, Holder, Machine

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def socket_line(port: int, state: str, inode: int) -> str:
    return f"  0: 00000000:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_ports_are_told_with_who_has_them(tmp_path: Path) -> None:
    net = tmp_path / "proc/thread-self/net"
    write(net / "tcp", HEAD + socket_line(2377, "0A", 71) + socket_line(8080, "0A", 72) + socket_line(12377, "01", 73))
    write(net / "udp", HEAD + socket_line(4789, "07", 0))
    write(tmp_path / "proc/812/comm", "dockerd\n")
    (tmp_path / "proc/812/fd").mkdir()
    os.symlink("socket:[71]", tmp_path / "proc/812/fd/9")
    assert list(holders(tmp_path)) == [
        Holder(protocol="tcp", port=2377, program="dockerd", pid=812),
        Holder(protocol="udp", port=4789),
    ]


@pytest.mark.parametrize(
    ("there", "kind"),
    [
        (("cgroup.controllers",), "v2"),
        (("unified/cgroup.procs", "memory/tasks"), "hybrid"),
        (("memory/tasks",), "v1"),
        ((), "none"),
    ],
)
def test_kinds_of_cgroups_are_told_apart(tmp_path: Path, there: tuple[str, ...], kind: str) -> None:
    for name in there:
        write(tmp_path / "sys/fs/cgroup" / name, "")
    assert cgroups(tmp_path) == kind


def test_missing_controllers_are_found_in_both_kinds_of_cgroups(tmp_path: Path) -> None:
    write(tmp_path / "v2/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n")
    assert missing_controllers(tmp_path / "v2") == ["memory"]
    write(tmp_path / "v1/sys/fs/cgroup/memory/tasks", "")
    assert missing_controllers(tmp_path / "v1") == ["cpu", "pids"]


def test_gathering_fails_at_nothing_that_is_not_there(tmp_path: Path) -> None:
    machine = gather("n1", data_dir=tmp_path / "no/such/place", member=True, engine="process", root=tmp_path)
    assert machine.cgroups == "none"
    assert machine.settings["fs/inotify/max_user_instances"] is None
    assert machine.nameservers == ()
    assert not machine.docker_swarm
    assert machine.disks


@pytest.mark.parametrize(
    ("line", "ports"),
    [
        ("-A INPUT -p tcp -m tcp --dport 2377 -j ACCEPT", {("tcp", 2377)}),
        ("-A INPUT -p udp -m multiport --dports 53,4789 -j ACCEPT", {("udp", 53), ("udp", 4789)}),
        ("-A INPUT -p tcp -m tcp --dport 2376:2378 -j ACCEPT", {("tcp", 2376), ("tcp", 2377), ("tcp", 2378)}),
        ("-A ufw-user-input -p udp -m udp --dport 4789 -j ACCEPT", {("udp", 4789)}),
        ("-A INPUT -p tcp -m tcp --dport 2377 -j DROP", set()),
        ("-A INPUT -p tcp -m tcp --sport 2377 -j ACCEPT", set()),
    ],
)
def test_ports_that_iptables_lets_in_are_read(line: str, ports: set[tuple[str, int]]) -> None:
    assert opened([line]) == ports


def test_ports_that_nftables_lets_in_are_read() -> None:
    def rule(right: object, protocol: str = "tcp", verdict: str = "accept") -> list[dict[str, object]]:
        left = {"payload": {"protocol": protocol, "field": "dport"}}
        return [{"match": {"op": "==", "left": left, "right": right}}, {verdict: None}]

    assert accepted(rule(2377)) == {("tcp", 2377)}
    assert accepted(rule({"set": [53, {"range": [4788, 4790]}]}, "udp")) >= {("udp", 53), ("udp", 4789)}
    assert accepted(rule(2377, "th")) == {("", 2377)}
    assert accepted(rule(2377, verdict="drop")) == set()
    assert accepted([{"match": {"left": {"meta": {"key": "iif"}}, "right": "lo"}}, {"accept": None}]) == set()


def found(machine: Machine) -> list[Finding]:
    return list(settings(machine, Judge("settings", "n1")))


def test_low_settings_are_raised_and_kept_for_the_next_boot(tmp_path: Path) -> None:
    key = "fs/inotify/max_user_instances"
    machine = Machine(name="n1", settings={key: "128", "user/max_net_namespaces": "60000"})
    write(tmp_path / "proc/sys" / key, "128\n")
    done = fixes.apply(machine, found(machine), tmp_path)
    assert done == ["fs.inotify.max_user_instances is 512 now; it was 128"]
    assert (tmp_path / "proc/sys" / key).read_text() == f"{limits.LEAST[key]}\n"
    kept = (tmp_path / fixes.SETTINGS_FILE).read_text().splitlines()
    assert kept[1:] == ["fs.inotify.max_user_instances = 512"]


def test_fixing_twice_writes_each_setting_once_and_keeps_other_lines(tmp_path: Path) -> None:
    key = "fs/inotify/max_user_instances"
    write(tmp_path / fixes.SETTINGS_FILE, "# mine\nvm.swappiness = 1\nfs.inotify.max_user_instances = 300\n")
    write(tmp_path / "proc/sys" / key, "128\n")
    machine = Machine(name="n1", settings={key: "128"})
    for _ in range(2):
        fixes.apply(machine, found(machine), tmp_path)
    kept = (tmp_path / fixes.SETTINGS_FILE).read_text().splitlines()
    assert kept == ["# mine", "vm.swappiness = 1", "fs.inotify.max_user_instances = 512"]


def test_setting_that_cannot_be_written_is_told_and_not_kept(tmp_path: Path) -> None:
    machine = Machine(name="n1", settings={"fs/inotify/max_user_instances": "128"})
    assert fixes.apply(machine, found(machine), tmp_path) == [
        "fs.inotify.max_user_instances stays 128: No such file or directory"
    ]
    assert not (tmp_path / fixes.SETTINGS_FILE).exists()


def test_machine_that_needs_nothing_is_left_alone(tmp_path: Path) -> None:
    assert fixes.apply(Machine(name="n1"), [], tmp_path) == []
    assert list(tmp_path.iterdir()) == []
