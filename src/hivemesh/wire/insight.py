"""What there is to know of a network, for whoever inspects it on any node: managers tell it, nodes ask for it."""

import msgspec

from hivemesh.model.addr import MAC, Address, Interface
from hivemesh.model.ids import EndpointID, NodeID, ServiceID
from hivemesh.model.network import Network
from hivemesh.model.service import PortConfig
from hivemesh.model.task import Attachment


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A node that takes part in the network."""

    id: NodeID
    name: str = ""  # host name, which only managers know
    vtep: Address
    own: Attachment | None = None  # its own address on the network


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A task or plain container that holds addresses on the network."""

    name: str
    endpoint: EndpointID
    addresses: tuple[Interface, ...]
    mac: MAC
    service: ServiceID = ServiceID("")  # none of a plain container
    node: NodeID | None = None
    host: str = ""  # the node's address
    container: str = ""  # id of the container
    running: bool = False
    serving: bool = False  # named, and given new connections


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A service on the network; without VIPs its names lead to its members."""

    service: ServiceID
    name: str
    vips: tuple[Address, ...] = ()
    ports: tuple[PortConfig, ...] = ()


MOST = 2**64 - 1
"""The largest number of addresses told: Docker's clients keep it in 64 bits."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses of one subnet; those that nobody may have (gateway, network, broadcast) are in use."""

    subnet: str
    in_use: int
    free: int  # that can be granted without being asked for; `MOST` at most


class Insight(msgspec.Struct, frozen=True, kw_only=True):
    """One network. In a list of all networks `members` and `usage` are left out."""

    network: Network
    hosts: tuple[Host, ...] = ()
    services: tuple[Offer, ...] = ()
    members: tuple[Member, ...] = ()
    usage: tuple[Usage, ...] = ()


class Insights(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /v1/networks` on the cluster port: all networks, the oldest first."""

    networks: tuple[Insight, ...]
