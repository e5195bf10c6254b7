"""Which of this machine's addresses the other nodes should use: what the user said, or the only one there is."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface

from hivemesh.model.addr import Address, Interface
from hivemesh.model.cluster import DEFAULT_LISTEN_PORT
from hivemesh.model.errors import Invalid

VIRTUAL = ("hm_", "hm-", "docker", "br-", "veth", "podman", "cni", "virbr", "lo")
"""Links that other machines cannot reach us through: bridges and cables of container engines and of our own."""


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of this machine and the link that has it."""

    link: str
    address: Interface


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where something listens or can be reached; `host` is an address, a link's name, or empty."""

    host: str
    port: int


def split_port(text: str, what: str, default: int = DEFAULT_LISTEN_PORT) -> HostPort:
    """`eth0`, `eth0:2377`, `192.0.2.1:2377`, `fd00::1` or `[fd00::1]:2377`. Raises `Invalid`."""
    text = text.strip()
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise Invalid(f"invalid {what} {text!r}: expected [ADDRESS]:PORT")
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not port:
        return HostPort(host, default)
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise Invalid(f"invalid {what} {text!r}: the port must be a number from 1 to 65535")
    return HostPort(host, int(port))


def choose_address(asked: str, what: str, local: Iterable[LocalAddress]) -> Address:
    """The address `asked` for (an address, a link, or nothing), with or without a port.

    Raises `Invalid` when it is not ours, or when nothing was asked and the choice is not obvious. The words
    `could not choose an IP address to advertise` are what Docker's CLI looks for to add its hint.
    """
    here = list(local)
    host = split_port(asked, what).host
    if not host:
        return _only_one([a for a in here if not a.link.startswith(VIRTUAL)])
    on_link = [a for a in here if a.link == host]
    if on_link:
        return _only_one(on_link)
    for candidate in here:
        if str(candidate.address.ip) == host.lower():
            return candidate.address.ip
    known = ", ".join(f"{a.address.ip} ({a.link})" for a in here if a.link != "lo") or "none"
    raise Invalid(
        f"{what} {host} is neither an address nor an interface of this machine: use one of {known}",
    )


def _only_one(candidates: list[LocalAddress]) -> Address:
    """IPv4 goes first, as in Docker; a machine with one address of that family leaves no doubt."""
    usable = [a for a in candidates if not a.address.ip.is_link_local and not a.address.ip.is_loopback]
    if not usable:
        raise Invalid("could not find the system's IP address: this machine has no address other machines can reach")
    preferred = [a for a in usable if isinstance(a.address, IPv4Interface)] or usable
    if len(preferred) == 1:
        return preferred[0].address.ip
    links = sorted({a.link for a in preferred})
    if len(links) == 1:
        which = f"on interface {links[0]} ({_and(str(a.address.ip) for a in preferred)})"
    else:
        which = f"on different interfaces ({_and(f'{a.address.ip} on {a.link}' for a in preferred)})"
    raise Invalid(f"could not choose an IP address to advertise since this system has multiple addresses {which}")


def _and(words: Iterable[str]) -> str:
    *rest, last = words
    return f"{', '.join(rest)} and {last}" if rest else last
