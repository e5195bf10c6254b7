"""The node's /etc/resolv.conf, and the files a container gets for its own /etc/resolv.conf and /etc/hosts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hivemesh.model.addr import Address, parse_address
from hivemesh.model.errors import Invalid
from hivemesh.model.service import DNSConfig
from hivemesh.wire.resolver import RESOLVER_ADDRESS

RESOLV_CONF = Path("/etc/resolv.conf")
MAX_SIZE = 64 * 1024
"""Bytes of the node's file that are read; real ones have some hundred."""
NO_SEARCH = "."
"""As the only search domain: none at all (Docker, systemd)."""

HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
"""What Docker's containers have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConf:
    """What resolv.conf(5) says: addresses may carry a scope (`fe80::1%eth0`), options are as written."""

    nameservers: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def parse_host_conf(text: str) -> HostConf:
    """Read the text of a resolv.conf, leniently as the C library does: what it does not know is passed over.

    The last `search` or `domain` counts, `options` add up, a comment begins a line with `#` or `;`.
    """
    nameservers: list[Address] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in text.split("\n"):
        if line.startswith(("#", ";")):
            continue
        match line.split():
            case ["nameserver", address, *_]:
                try:
                    nameservers.append(parse_address(address))
                except Invalid:
                    continue
            case ["search", *domains]:
                search = tuple(domains)
            case ["domain", domain, *_]:
                search = (domain,)
            case ["options", *more]:
                options += more
    return HostConf(
        nameservers=tuple(dict.fromkeys(nameservers)), search=_search(search), options=tuple(dict.fromkeys(options))
    )


def read_host_conf(path: Path = RESOLV_CONF) -> HostConf:
    """The node's own. A file that is not there or cannot be read says nothing."""
    try:
        with path.open("rb") as file:
            return parse_host_conf(file.read(MAX_SIZE).decode(errors="replace"))
    except OSError:
        return HostConf()


def container_resolv_conf(host: HostConf, dns: DNSConfig | None) -> str:
    """The text of a container's /etc/resolv.conf: it asks our resolver, whoever that one asks.

    Search domains and options are the container's own where it has any, else the node's; `ndots:0` is added where none
    is given (Docker), so that a bare name is asked as it is before it is tried in a search domain.
    """
    search, options = _settings(host, dns)
    lines = [
        "# The resolver of this node answers here; a change to this file is not kept.",
        f"nameserver {RESOLVER_ADDRESS}",
    ]
    if search:
        lines.append("search " + " ".join(search))
    if not any(_ndots(option) is not None for option in options):
        options = (*options, "ndots:0")
    lines.append("options " + " ".join(options))
    return "\n".join(lines) + "\n"


def wants_dots(host: HostConf, dns: DNSConfig | None) -> bool:
    """Whether `ndots` is above 0 for such a container: unknown names of one label then stay in the swarm (Docker)."""
    _, options = _settings(host, dns)
    given = [n for option in options if (n := _ndots(option)) is not None]
    return bool(given) and given[-1] > 0


def container_hosts(hostname: str, addresses: Iterable[Address], extra: Iterable[str] = ()) -> str:
    """The text of a container's /etc/hosts.

    `addresses` are the container's on the networks of the user: those on the ingress network and on the gateway bridge
    are not its name's. `extra` are lines of the Docker Engine API's `Hosts`: an address and its names.
    """
    names = hostname.split()[:1]
    if names and "." in names[0]:
        names.append(names[0].partition(".")[0])
    lines = [f"{address}\t{' '.join(names)}" for address in dict.fromkeys(addresses)] if names else []
    for entry in extra:
        address, *of_address = entry.split() or [""]
        if of_address:
            lines.append(f"{address}\t{' '.join(of_address)}")
    return HOSTS + "".join(f"{line}\n" for line in lines)


def _settings(host: HostConf, dns: DNSConfig | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Search domains and options, each word by word: nothing a user wrote begins a line of its own."""
    search, options = host.search, host.options
    if dns is not None and dns.search:
        search = _search(word for entry in dns.search for word in entry.split())
    if dns is not None and dns.options:
        options = tuple(word for entry in dns.options for word in entry.split())
    return search, tuple(o for o in options if not o.startswith("ndots:") or _ndots(o) is not None)


def _search(domains: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(d for d in domains if d != NO_SEARCH))


def _ndots(option: str) -> int | None:
    """The number of `ndots:N`; None for any other option."""
    number = option.removeprefix("ndots:")
    plain = number != option and number.isascii() and number.isdigit() and len(number) < 4
    return int(number) if plain else None
