"""Docker Engine API JSON to and from the model. Pure: values in, values out; see the API's own documentation for fields."""

from hivemesh.model.cluster import SwarmSpec
from hivemesh.model.node import Availability
from hivemesh.model.service import Spec


class SwarmInit(Spec, frozen=True, kw_only=True):
    """`POST /swarm/init`. Addresses are still text: an address or an interface, with or without a port."""

    listen_addr: str = "0.0.0.0:2377"
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0  # 0: 4789
    default_addr_pool: tuple[str, ...] = ()
    subnet_size: int = 0  # 0: 24
    force_new_cluster: bool = False
    spec: SwarmSpec = SwarmSpec()
    auto_lock_managers: bool = False
    availability: Availability = "active"


class SwarmJoin(Spec, frozen=True, kw_only=True):
    """`POST /swarm/join`."""

    listen_addr: str = "0.0.0.0:2377"
    advertise_addr: str = ""
    data_path_addr: str = ""
    remote_addrs: tuple[str, ...] = ()
    join_token: str = ""
    availability: Availability = "active"
