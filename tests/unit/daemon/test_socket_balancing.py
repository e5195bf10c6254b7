"""What a node says about balancing sockets."""

from pathlib import Path
from typing import Literal

import pytest

from hivemesh.clock import SystemClock
from hivemesh.config import DaemonConfig
from hivemesh.daemon import Daemon
from hivemesh.kernel import bpf


def daemon(tmp_path: Path, *, on: bool = True, balancer: Literal["nftables", "ipvs"] = "nftables") -> Daemon:
    config = DaemonConfig(data_dir=tmp_path, run_dir=tmp_path / "run", balancer=balancer, socket_balancing=on)
    return Daemon(config, SystemClock())


def test_node_says_why_sockets_are_not_balanced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert daemon(tmp_path, on=False).socket_balancing == "off: started with --socket-balancing=off"
    assert daemon(tmp_path, balancer="ipvs").socket_balancing == "off: started with --balancer ipvs"
    here = daemon(tmp_path)
    assert here.socket_balancing == "off: in no swarm"
    monkeypatch.setattr(bpf, "cgroup_root", lambda: "")
    here._hooks.lack()
    assert here.socket_balancing.startswith("off: cgroup v2 is not mounted")
