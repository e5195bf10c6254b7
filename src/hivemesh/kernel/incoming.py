"""Other firewalls of this machine and what comes to it: which of our ports they drop. Nothing is changed.

We let our own bridges through the chains of others (`foreign.py`). What comes to the machine itself is for whoever runs
its firewall to open: here it is only looked at, and reading somebody's rules stays a guess. A rule that accepts a port
counts, wherever it stands and whatever else it asks for.
"""

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hivemesh.kernel import nft
from hivemesh.kernel.api import HOST
from hivemesh.kernel.foreign import OURS, Forwarding, ends, legacy_chains, legacy_commands, listed, reader, run

Port = tuple[str, int]
"""A protocol ("tcp", "udp") and a number."""

_FAMILIES = ("ip", "inet")
_OF_IPTABLES = ("ip", "filter")
_ACCEPTS = re.compile(r"-j (ACCEPT|\S*-user-limit-accept)\b")
_PORTS = re.compile(r"--dports? (\S+)")


@dataclass(frozen=True, slots=True)
class Closing:
    """A chain that drops what no rule lets in, and those of the ports asked for that none does."""

    where: str
    ports: tuple[Port, ...]


def closing(ports: Collection[Port]) -> list[Closing]:
    """Chains of others that drop some of `ports`. Raises `Unavailable` when they cannot be read."""
    found = [Closing(where, _without(opened, ports)) for where, opened in (*_by_nft(), *_by_iptables())]
    return [one for one in found if one.ports]


def forwarding() -> list[str]:
    """Chains of others that drop what is forwarded and not let through by a rule. Raises as `closing` does."""
    return [where for where, _ in _by_nft("forward")] + [where for where, _ in _by_iptables("FORWARD")]


def _without(opened: Collection[Port], ports: Iterable[Port]) -> tuple[Port, ...]:
    return tuple(port for port in ports if port not in opened and ("", port[1]) not in opened)


# --- nftables ---------------------------------------------------------------------------------------------------------


def _by_nft(hook: str = "input") -> Iterator[tuple[str, set[Port]]]:
    """Tables of others, but for those that `iptables` shows better: nft leaves out what its matches say."""
    others = {(family, name) for family, name in nft.tables(HOST) if not name.startswith(OURS) and family in _FAMILIES}
    if not others - {_OF_IPTABLES} or shutil.which("nft") is None:
        return
    for entry in listed("chains"):
        chain = entry.get("chain", {})
        family, table, name = (str(chain.get(key, "")) for key in ("family", "table", "name"))
        if chain.get("hook") != hook or chain.get("type") != "filter" or (family, table) not in others:
            continue
        if (family, table) == _OF_IPTABLES and name.isupper() and shutil.which("iptables"):
            continue
        prefix = f"{family} {table}"
        read = reader(prefix)
        theirs = Forwarding(
            where=f"table {prefix}, chain {name}", policy=chain.get("policy", "accept"), rules=read(name), chains=read
        )
        if theirs.policy == "drop" or any(ends(theirs, rule) for rule in theirs.rules):
            rules = [e["rule"] for e in listed("table", family, table) if "rule" in e]
            yield theirs.where, {port for rule in rules for port in accepted(rule["expr"])}


def accepted(expressions: Iterable[Mapping[str, Any]]) -> set[Port]:
    """The ports that a rule, as `nft -j` lists it, lets in; protocol "" where it does not say. Pure."""
    parts = list(expressions)
    if not any("accept" in part for part in parts):
        return set()
    found: set[Port] = set()
    for part in parts:
        left = part.get("match", {}).get("left", {})
        payload = left.get("payload", {}) if isinstance(left, dict) else {}
        if payload.get("field") == "dport":
            protocol = str(payload.get("protocol", ""))
            numbers = _numbers(part["match"]["right"])
            found |= {("" if protocol == "th" else protocol, number) for number in numbers}
    return found


def _numbers(right: Any) -> Iterator[int]:
    if isinstance(right, int):
        yield right
    elif isinstance(right, dict):
        for each in right.get("set", ()):
            yield from _numbers(each)
        if isinstance(span := right.get("range"), list) and all(isinstance(end, int) for end in span):
            yield from range(span[0], span[1] + 1)


# --- iptables ---------------------------------------------------------------------------------------------------------


def _by_iptables(chain: str = "INPUT") -> Iterator[tuple[str, set[Port]]]:
    commands = [command for command in legacy_commands() if not command.startswith("ip6")]
    if _OF_IPTABLES in nft.tables(HOST) and shutil.which("iptables"):
        commands.append("iptables")
    for command in commands:
        lines = run([command, "-w", "2", "-S"]).splitlines()
        _, chains = legacy_chains(lines)
        policy = next((line.split()[2].lower() for line in lines if line.startswith(f"-P {chain} ")), "accept")
        theirs = Forwarding(
            where=f"{command}, chain {chain}",
            policy=policy,
            rules=chains.get(chain, ()),
            chains=lambda name, known=chains: known.get(name, ()),  # type: ignore[misc]
        )
        if theirs.policy == "drop" or any(ends(theirs, rule) for rule in theirs.rules):
            yield theirs.where, opened(lines)


def opened(lines: Iterable[str]) -> set[Port]:
    """The ports that rules in the words of `iptables -S` let in. Pure."""
    found: set[Port] = set()
    for line in lines:
        if not _ACCEPTS.search(line):
            continue
        protocol = re.search(r"-p (\w+)", line)
        for text in _PORTS.findall(line):
            for part in text.split(","):
                first, _, last = part.partition(":")
                if first.isdecimal():
                    numbers = range(int(first), int(last if last.isdecimal() else first) + 1)
                    found |= {(protocol[1] if protocol else "", number) for number in numbers}
    return found
