"""Addresses, MACs and ports as values: parse at the edge, never check again inside."""

import ipaddress
import zlib
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, NewType

from hivemesh.model.errors import Invalid

if TYPE_CHECKING:
    Address = IPv4Address | IPv6Address
    Interface = IPv4Interface | IPv6Interface
    Prefix = IPv4Network | IPv6Network
else:  # msgspec allows one custom type in a field: the common base of both families
    Address = ipaddress._BaseAddress
    Interface = ipaddress._BaseAddress
    Prefix = ipaddress._BaseNetwork

MAC = NewType("MAC", str)
"""Lower case, colon separated: `02:42:0a:00:00:05`."""

VNI = NewType("VNI", int)
"""VXLAN network identifier, 24 bits (RFC 7348)."""

FIRST_VNI = VNI(4096)
"""Docker's first automatic VNI; ingress normally has it."""


def parse_address(text: str, what: str = "address") -> Address:
    """Raises `Invalid` naming `what` when `text` is no IPv4 or IPv6 address."""
    try:
        return ipaddress.ip_address(text.strip())
    except ValueError:
        raise Invalid(f"invalid {what} {text!r}: expected an IPv4 or IPv6 address") from None


def parse_prefix(text: str, what: str = "subnet") -> Prefix:
    """Raises `Invalid` when `text` is no prefix such as `10.0.0.0/24` or has host bits set."""
    try:
        return ipaddress.ip_network(text.strip())
    except ValueError:
        raise Invalid(f"invalid {what} {text!r}: expected a prefix such as 10.0.0.0/24 or fd00:1::/64") from None


def parse_host_port(text: str, default: int, what: str = "address") -> tuple[str, int]:
    """`10.0.0.1`, `10.0.0.1:2377`, `fd00::1`, `[fd00::1]:2377` or a name, to host and port (1-65535).

    The host comes without brackets. Raises `Invalid` naming `what`.
    """
    host, port = text.strip(), ""
    if host.startswith("["):
        host, bracket, rest = host[1:].partition("]")
        port = rest.removeprefix(":")
        broken = not bracket or (bool(rest) and not rest.startswith(":"))
    else:
        if host.count(":") == 1:
            host, _, port = host.partition(":")
        broken = False
    if broken or not host or (port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536)):
        raise Invalid(
            f"invalid {what} {text!r}: expected host:port such as 192.0.2.1:{default} or [2001:db8::1]:{default}"
        )
    return host, int(port) if port else default


def host_port(host: str, port: int) -> str:
    """The inverse: `10.0.0.1:2377`, `[fd00::1]:2377`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def mac_of(address: IPv4Address) -> MAC:
    """02:42 and the four bytes of the address, as Docker does: the same address always has the same MAC."""
    return MAC("02:42:" + address.packed.hex(":"))


def mac_from(text: str) -> MAC:
    """02:42 and four bytes derived from `text`, for endpoints without an IPv4 address."""
    return MAC("02:42:" + zlib.crc32(text.encode()).to_bytes(4, "big").hex(":"))


def endpoint_mac(interfaces: tuple[Interface, ...], fallback: str) -> MAC:
    """The MAC of an endpoint that owns `interfaces`: from its first IPv4 address, else derived from `fallback`."""
    for interface in interfaces:
        if isinstance(interface, IPv4Address):
            return mac_of(IPv4Address(int(interface)))
    return mac_from(fallback)


def address_of(interface: Interface) -> Address:
    """The bare address of `10.0.0.5/24`."""
    return interface.ip


def first_v4(interfaces: tuple[Interface, ...]) -> IPv4Address | None:
    """The first IPv4 address among `interfaces`."""
    return next((i.ip for i in interfaces if isinstance(i, IPv4Interface)), None)


def first_v6(interfaces: tuple[Interface, ...]) -> IPv6Address | None:
    """The first IPv6 address among `interfaces`."""
    return next((i.ip for i in interfaces if isinstance(i, IPv6Interface)), None)
