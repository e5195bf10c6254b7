"""Run by test_worker_on_a_machine.py inside namespaces of its own: other firewalls beside us, with their real rules.

`foreign/` holds what Docker 20.10 and ufw 0.36 load; firewalld's table is cut down to what every packet meets.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_cases import Machine, a_task, machine, running, sh, underlay

__all__ = ["machine", "underlay"]  # fixtures

RULES = Path(__file__).parent / "foreign"
FIREWALLD = """
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    iifname "lo" accept
    ct state invalid drop
    jump filter_FORWARD_POLICIES
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_POLICIES { ip saddr 203.0.113.66 drop; }
}
"""
LOADED = {
    "docker": (f"iptables-nft-restore {RULES}/docker", "iptables -F FORWARD; iptables -P FORWARD ACCEPT"),
    "docker, legacy": (
        f"iptables-legacy-restore {RULES}/docker",
        "iptables-legacy -F FORWARD; iptables-legacy -P FORWARD ACCEPT",
    ),
    "ufw": (
        f"iptables-nft-restore {RULES}/ufw4; ip6tables-nft-restore {RULES}/ufw6",
        "iptables-nft -F; iptables-nft -X; ip6tables-nft -F; ip6tables-nft -X; "
        "for c in INPUT FORWARD; do iptables-nft -P $c ACCEPT; ip6tables-nft -P $c ACCEPT; done",
    ),
    "firewalld": (f"nft -f - <<'END'{FIREWALLD}END\n", "nft delete table inet firewalld"),
}


@pytest.fixture
def client() -> Iterator[None]:
    """A machine at the other end of the wire, with a server of its own."""
    sh("ip netns add client; ip link set eth8 netns client")
    sh("ip -n client addr add 198.51.100.99/24 dev eth8; ip -n client link set eth8 up; ip -n client link set lo up")
    sh("ip -n client addr add fd00:99::99/64 dev eth8 nodad")
    sh("setsid ip netns exec client busybox httpd -p 198.51.100.99:8099 -h /proc/sys/kernel")
    try:
        yield
    finally:
        sh("ip netns pids client | xargs -r kill; ip -n client link set eth8 netns $PPID; ip netns del client")


async def passes(task: str) -> None:
    """From outside to a published port, and from a task to the outside: within 5 s."""
    for command in (
        "ip netns exec client curl -sfm 0.3 http://198.51.100.11:8090/",
        "ip netns exec client curl -sfm 0.3 http://[fd00:99::11]:8090/",
        f"ip netns exec {task} curl -sfm 0.3 http://198.51.100.99:8099/hostname",
    ):
        await asyncio.to_thread(sh, f"for i in $(seq 20); do {command} && exit; sleep 0.2; done; exit 1")


@pytest.mark.parametrize("firewall", LOADED)
async def test_our_traffic_passes_other_firewalls_and_their_rules_stay(
    machine: Machine, client: None, firewall: str
) -> None:
    load, unload = LOADED[firewall]
    task = a_task(1)
    try:
        async with machine.worker() as worker:
            await running(machine, worker, task)
            await passes(task.id[:12])
            sh(load)
            theirs = ruleset()
            await passes(task.id[:12])
            assert [line for line in ruleset() if "hivemesh" not in line] == theirs
            assert worker.drift == {}
            sh(load)  # as when it is reloaded: it writes its chains anew
            await passes(task.id[:12])
            before = ruleset()
            await asyncio.sleep(1.2)
            assert ruleset() == before  # nothing more is added, ever
            assert sum("hivemesh" in line for line in before) <= 4
        await machine.clean()
        assert [line for line in ruleset() if "hivemesh" in line] == []
    finally:
        sh(unload)
        for command in ("iptables-nft", "ip6tables-nft"):
            sh(f"{command} -F; {command} -X")
        sh("for t in $(nft list tables | grep filter | cut -d' ' -f2); do nft delete table $t filter; done")


def ruleset() -> list[str]:
    """What is forwarded, by others' rules, without the counters."""
    text = sh(
        "iptables-nft -S; ip6tables-nft -S; nft list table inet firewalld 2>/dev/null | sed 's/counter packets [0-9]* "
        "bytes [0-9]* //'; grep -q filter /proc/net/ip_tables_names 2>/dev/null && iptables-legacy -S || true"
    )
    return text.splitlines()
