"""Questions leave from the namespace they should, to a real dnsmasq in each. Run by test_forwarding.py."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from hivemesh.dns.forward import Forwarder
from hivemesh.kernel import netns
from hivemesh.model.addr import parse_address
from hivemesh.wire.resolver import Sandbox
from nameserver import forwarded

Ask = Callable[..., Awaitable[dns.message.Message | None]]


def dnsmasq(folder: Path, name: str, *arguments: str, inside: str = "") -> int:
    """Start one; it listens once the command returns. Its process id."""
    pid = folder / f"{name}.pid"
    enter = ["ip", "netns", "exec", inside] if inside else []
    command = [
        *enter, "dnsmasq", "--conf-file=/dev/null", f"--pid-file={pid}", "--user=root", "--bind-interfaces",
        "--no-resolv", "--no-hosts", "--local-ttl=60", *arguments,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return int(pid.read_text())


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Path]:
    """The node's stub at 127.0.0.53 and one at 127.0.0.1 in sandbox `sb`; the node's resolv.conf."""
    netns.create("sb", "hivemesh/test")
    pids = []
    try:
        pids.append(
            dnsmasq(
                tmp_path,
                "node",
                "--listen-address=127.0.0.53",
                "--address=/ext.example/192.0.2.1",
                "--local=/none.example/",
            )
        )
        own = ("--listen-address=127.0.0.1", "--interface=lo", "--address=/ext.example/192.0.2.2")
        pids.append(dnsmasq(tmp_path, "own", *own, inside="sb"))
        conf = tmp_path / "resolv.conf"
        conf.write_text("nameserver 127.0.0.53\n")
        yield conf
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        netns.delete("sb")


@pytest.fixture
async def ask(servers: Path) -> AsyncIterator[Ask]:
    forwarder = Forwarder(host_conf=servers)

    async def work(sandbox: Sandbox, name: str, *, tcp: bool = False) -> dns.message.Message | None:
        query = dns.message.make_query(name, "A")
        answer = await forwarded(forwarder, query.to_wire(), sandbox, tcp=tcp)
        return None if answer is None else dns.message.from_wire(answer)

    yield work
    await forwarder.close()


NODES = Sandbox(id="a", netns=netns.path("sb"), networks=())
OWN = Sandbox(id="b", netns=netns.path("sb"), networks=(), nameservers=(parse_address("127.0.0.1"),))


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize(("sandbox", "address"), [(NODES, "192.0.2.1"), (OWN, "192.0.2.2")])
async def test_servers_are_asked_from_where_they_are_named(ask: Ask, sandbox: Sandbox, address: str, tcp: bool) -> None:
    answer = await ask(sandbox, "a.ext.example", tcp=tcp)
    assert answer is not None
    assert [item.to_text() for item in answer.answer[0]] == [address]


async def test_a_name_unknown_to_the_server_is_refused_or_does_not_exist(ask: Ask) -> None:
    answer = await ask(NODES, "none.example")
    assert answer is not None
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert await ask(NODES, "refused.example") is None


async def test_a_forgotten_sandbox_is_left_without_a_socket(servers: Path) -> None:
    def sockets() -> str:
        command = ["ip", "netns", "exec", "sb", "ss", "-Huanp"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    forwarder = Forwarder(host_conf=servers)
    query = dns.message.make_query("a.ext.example", "A").to_wire()
    assert await forwarded(forwarder, query, OWN, tcp=False) is not None
    assert f"pid={os.getpid()}," in sockets()
    forwarder.forget(OWN.id)
    assert f"pid={os.getpid()}," not in sockets()
    await forwarder.close()
