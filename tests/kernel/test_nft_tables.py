"""Tables of ours in a real kernel, with `nft` as the witness."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hivemesh.kernel import nft
from hivemesh.wire.nft import (
    ACCEPT,
    DROP,
    IPV4,
    Chain,
    Goto,
    Hook,
    Map,
    Rule,
    Table,
    dnat,
    host_u32,
    load_protocol_port,
    lookup,
    match_iifname,
    match_nfproto,
    meta,
    meta_set,
    numgen,
    protocol_port,
    verdict,
    vmap,
)

pytestmark = pytest.mark.kernel


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"nft-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        nft.forget(name)
        subprocess.run(["ip", "netns", "del", name], check=True)


def witness(namespace: str, *argv: str) -> str:
    done = subprocess.run(["ip", "netns", "exec", namespace, "nft", *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def balancer(backends: int = 2, ports: int = 1) -> Table:
    spread = Rule(
        exprs=(
            *match_nfproto(IPV4),
            numgen(backends),
            meta_set("mark"),
            *load_protocol_port(),
            meta("mark", 2),
            lookup("backends", 0, 0),
            dnat(IPV4, 0),
        ),
        comment="web",
    )
    keys = [protocol_port("tcp", 8000 + n) for n in range(ports)]
    chains = [
        Chain(
            name="pre",
            hook=Hook(type="nat", hook="prerouting", priority=-100),
            rules=(Rule(exprs=(*match_iifname("eth1"), *load_protocol_port(), vmap("ports"))),),
        ),
        *(Chain(name=f"tcp-{8000 + n}", rules=(spread,)) for n in range(ports)),
    ]
    return Table(
        family="inet",
        name="hivemesh",
        chains=tuple(chains),
        maps=(
            Map(
                name="ports",
                key=("inet_proto", "inet_service"),
                value=("verdict",),
                elements={key: Goto(f"tcp-{8000 + n}") for n, key in enumerate(keys)},
            ),
            Map(
                name="backends",
                key=("inet_proto", "inet_service", "mark"),
                value=("ipv4_addr",),
                elements={key + host_u32(s): bytes([10, 0, 0, s + 2]) for key in keys for s in range(backends)},
            ),
        ),
    )


def test_new_table_is_listed_by_nft_as_it_was_meant(namespace: str) -> None:
    assert nft.ensure(namespace, balancer()) > 0
    listing = witness(namespace, "list", "table", "inet", "hivemesh")
    assert 'iifname "eth1" meta l4proto . th dport vmap @ports' in listing
    assert "tcp . 8000 : goto tcp-8000" in listing
    assert "tcp . 8000 . 0x00000001 : 10.0.0.3" in listing
    assert "numgen inc mod 2 dnat ip to meta l4proto . th dport . meta mark map @backends" in listing
    assert nft.differences(namespace, balancer()) == []


def test_table_that_is_right_is_left_alone_also_without_memory(namespace: str) -> None:
    nft.ensure(namespace, balancer())
    handles = json.loads(witness(namespace, "-j", "-a", "list", "ruleset"))
    assert nft.ensure(namespace, balancer()) == 0
    nft.forget(namespace)
    assert nft.ensure(namespace, balancer()) == 0
    assert json.loads(witness(namespace, "-j", "-a", "list", "ruleset")) == handles


def test_backend_that_changes_touches_only_its_element(namespace: str) -> None:
    table = balancer(3, ports=50)
    nft.ensure(namespace, table)
    backends = dict(table.maps[1].elements)
    backends[protocol_port("tcp", 8007) + host_u32(1)] = bytes([10, 0, 0, 99])
    changed = replace(table, maps=(table.maps[0], replace(table.maps[1], elements=backends)))
    before = witness(namespace, "-a", "list", "chain", "inet", "hivemesh", "tcp-8007")
    assert nft.ensure(namespace, changed) == 2  # one element out, one in
    assert witness(namespace, "-a", "list", "chain", "inet", "hivemesh", "tcp-8007") == before
    assert "tcp . 8007 . 0x00000001 : 10.0.0.99" in witness(namespace, "list", "map", "inet", "hivemesh", "backends")


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "flush chain inet hivemesh tcp-8000",
        "flush chain inet hivemesh pre",
        "delete element inet hivemesh ports { tcp . 8000 }",
        "add element inet hivemesh backends { udp . 1 . 0x1 : 1.2.3.4 }",
        "add rule inet hivemesh pre ip saddr { 1.2.3.4, 5.6.7.8 } drop",
        "add chain inet hivemesh foreign; add rule inet hivemesh foreign jump tcp-8000",
        "add set inet hivemesh foreign { type ipv4_addr; elements = { 1.2.3.4 }; }",
        "insert rule inet hivemesh tcp-8000 accept",
    ],
)
def test_damage_by_others_is_found_and_repaired(namespace: str, damage: str) -> None:
    nft.ensure(namespace, balancer())
    right = witness(namespace, "list", "ruleset")
    witness(namespace, damage)
    assert nft.differences(namespace, balancer()) != []
    assert nft.ensure(namespace, balancer()) > 0
    assert nft.differences(namespace, balancer()) == []
    assert sorted(witness(namespace, "list", "ruleset").split()) == sorted(right.split())


def test_other_tables_are_never_touched(namespace: str) -> None:
    witness(namespace, "add table ip docker; add chain ip docker x; add table inet other { set s { type mark; }; }")
    others = witness(namespace, "list", "ruleset")
    nft.ensure(namespace, balancer())
    assert nft.tables(namespace) == {("inet", "hivemesh"), ("ip", "docker"), ("inet", "other")}
    nft.delete(namespace, "inet", "hivemesh")
    nft.delete(namespace, "inet", "hivemesh")  # gone already
    assert witness(namespace, "list", "ruleset") == others
    assert nft.ensure(namespace, balancer()) > 0


def test_map_whose_types_change_and_chain_whose_hook_changes_are_made_anew(namespace: str) -> None:
    nft.ensure(namespace, balancer())
    other = balancer()
    pre = replace(other.chains[0], hook=Hook(type="nat", hook="prerouting", priority=-90))
    other = replace(other, chains=(pre, *other.chains[1:]))
    assert nft.ensure(namespace, other) > 0
    assert "priority dstnat + 10" in witness(namespace, "list", "chain", "inet", "hivemesh", "pre")
    plain = Table(family="inet", name="hivemesh", maps=(Map(name="ports", key=("ipv6_addr",)),))
    assert nft.ensure(namespace, plain) > 0
    assert nft.differences(namespace, plain) == []


def test_transaction_the_kernel_refuses_changes_nothing(namespace: str) -> None:
    nft.ensure(namespace, balancer())
    before = witness(namespace, "list", "ruleset")
    broken = balancer(3)
    lost = Rule(exprs=(*load_protocol_port(), lookup("nowhere"), verdict(DROP)))
    broken = replace(broken, chains=(*broken.chains, Chain(name="broken", rules=(lost,))))
    with pytest.raises(OSError, match="add rule to chain broken") as refused:
        nft.ensure(namespace, broken)
    assert refused.value.errno is not None
    assert witness(namespace, "list", "ruleset") == before
    assert nft.ensure(namespace, balancer()) == 0


def test_two_writers_at_once_end_with_both_tables_right(namespace: str) -> None:
    def churn() -> None:
        for number in range(20):
            witness(namespace, f"add table ip other{number}; delete table ip other{number}")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for number in range(200):
            nft.ensure(namespace, balancer(2 + number % 3))
    finally:
        thread.join()
    nft.ensure(namespace, balancer(4))
    assert nft.differences(namespace, balancer(4)) == []


def test_namespace_that_is_made_anew_under_its_name_is_seen_as_new(namespace: str) -> None:
    nft.ensure(namespace, balancer())
    subprocess.run(["ip", "netns", "del", namespace], check=True)
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    assert nft.ensure(namespace, balancer()) > 0
    assert nft.differences(namespace, balancer()) == []


def test_thousands_of_ports_load_and_change_quickly(namespace: str) -> None:
    nft.ensure(namespace, balancer(3, ports=2000))  # more elements than one message can hold
    assert nft.differences(namespace, balancer(3, ports=2000)) == []
    nft.ensure(namespace, balancer(3, ports=1))
    listing = witness(namespace, "list", "table", "inet", "hivemesh")
    assert "8000" in listing
    assert "8001" not in listing


def test_netdev_chain_on_a_device_that_was_replaced_is_made_again(namespace: str) -> None:
    def device() -> None:
        subprocess.run(["ip", "-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", "x0"], check=True)

    hook = Hook(type="filter", hook="egress", priority=0, device="eth0")
    table = Table(
        family="netdev",
        name="hivemesh",
        chains=(Chain(name="egress", hook=hook, rules=(Rule(exprs=(verdict(ACCEPT),)),)),),
    )
    device()
    nft.ensure(namespace, table)
    subprocess.run(["ip", "-n", namespace, "link", "del", "eth0"], check=True)
    device()
    nft.ensure(namespace, table)
    assert nft.differences(namespace, table) == []
    assert 'device "eth0"' in witness(namespace, "list", "table", "netdev", "hivemesh")


def test_namespace_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        nft.ensure("nft-nowhere", balancer())
