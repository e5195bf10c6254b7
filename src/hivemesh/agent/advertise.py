"""Which of this machine's addresses the other nodes should use: what the user said, or the only one there is."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface

from hivemesh.model.addr import Address, Interface, host_port, parse_host_port
from hivemesh.model.cluster import DEFAULT_LISTEN_PORT
from hivemesh.model.errors import Invalid

VIRTUAL = ("hm_", "hm-", "docker", "br-", "veth", "podman", "cni", "virbr", "lo")
"""Links that other machines cannot reach us through: bridges and cables of container engines and of our own."""

WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address of this machine and the link that has it."""

    link: str
    address: Interface


def choose_address(asked: str, what: str, local: Iterable[LocalAddress]) -> Address:
    """The address `asked` for (an address, a link, or nothing), with or without a port.

    Raises `Invalid` when it is not ours, or when nothing was asked and the choice is not obvious. The words
    `could not choose an IP address to advertise` are what Docker's CLI looks for to add its hint.
    """
    here = list(local)
    host = parse_host_port(asked, DEFAULT_LISTEN_PORT, what)[0] if asked.strip() else ""
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


def listen_address(asked: str, local: Iterable[LocalAddress]) -> str:
    """`asked` as host:port with an address for the host: links are looked up, wildcards stay. Raises `Invalid`."""
    host, port = parse_host_port(asked, DEFAULT_LISTEN_PORT, "listen address")
    if host not in WILDCARDS:
        host = str(choose_address(host, "listen address", local))
    return host_port(host, port)


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
