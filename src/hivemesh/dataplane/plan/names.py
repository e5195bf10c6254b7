"""The names of our objects in the kernel. Each has 15 bytes at most if it is a link."""

import re

from hivemesh.model.ids import EndpointID, NetworkID, TaskID, short

GATEWAY_BRIDGE = "hm_gwbridge"
INGRESS_SANDBOX = "ingress_sbox"
INGRESS_MARK = "hivemesh/ingress"
GATEWAY_ALIAS = "hivemesh/gateway"
BRIDGE = "br0"
VXLAN = "vxlan0"
TABLE = "hivemesh"
INGRESS_PORT = "hm-ve-ingress"
"""The host end of `ingress_sbox`'s gateway veth."""


def overlay_namespace(network: NetworkID) -> str:
    return f"1-{network[:10]}"


def overlay_mark(network: NetworkID) -> str:
    return f"hivemesh/network/{network}"


def sandbox_namespace(task: TaskID) -> str:
    return short(task)


def sandbox_mark(task: TaskID) -> str:
    return f"hivemesh/sandbox/{task}"


def fits_namespace(name: str) -> bool:
    """Whether a namespace of ours may be called so: all that tells whose a name is that stands for nothing."""
    return name == INGRESS_SANDBOX or re.fullmatch(r"1-[0-9a-z]{10}|[0-9a-z]{12}", name) is not None


def endpoint_port(endpoint: EndpointID) -> str:
    """The overlay end of an endpoint's veth."""
    return f"veth{endpoint[:8]}"


def local_port(endpoint: EndpointID) -> str:
    """The host end of an endpoint's veth on a bridge of this node."""
    return f"hm-ve-{endpoint[:8]}"


def gateway_port(task: TaskID) -> str:
    """The host end of a sandbox's gateway veth."""
    return f"hm-ve-{task[:8]}"
