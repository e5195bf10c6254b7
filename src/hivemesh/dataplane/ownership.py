"""How a process without memory knows what is ours.

| Object | Ours in the host | Ours in a namespace of ours |
|---|---|---|
| namespace | | alias of `lo` starts with `hivemesh/` |
| link | alias starts with `hivemesh/`; name starts with `hm-ve-` | every bridge, VXLAN device, veth and macvlan |
| address, neighbor | on a link of the plan | on a link of the plan |
| route | protocol 117 | protocol 117 |
| rule | protocol 117 | every one the kernel did not make |
| forwarding entry | | every one of a VXLAN device of the plan |
| nftables table | named `hivemesh…` | named `hivemesh…` |

Bridge ports are no bridge's own: a veth belongs to the sandbox that holds its near end, so where a plan has a bridge,
veths are left alone. They go with their sandbox.
"""

from ipaddress import IPv4Network

from hivemesh.kernel.api import HOST, Bridge, NamespacePlan
from hivemesh.wire.rtnetlink import ROUTE_PROTOCOL, AddressSeen, LinkSeen, RuleSeen

MARK = "hivemesh/"
TABLE = "hivemesh"
_PORT_PREFIX = "hm-ve-"
_KINDS = ("bridge", "vxlan", "veth", "macvlan")
_RULE_OF_KERNEL = 2  # RTPROT_KERNEL
_LOOPBACK = IPv4Network("127.0.0.0/8")


def is_our_namespace(mark: str) -> bool:
    return mark.startswith(MARK)


def is_our_link(namespace: str, link: LinkSeen) -> bool:
    """Whether we may remove or remake it."""
    if namespace == HOST:
        return link.alias.startswith(MARK) or (link.kind == "veth" and link.name.startswith(_PORT_PREFIX))
    return link.kind in _KINDS


def is_left_over(plan: NamespacePlan, link: LinkSeen) -> bool:
    """Whether a link is ours and nobody wants it."""
    if any(link.name == wanted.name for wanted in plan.links) or not is_our_link(plan.namespace, link):
        return False
    has_bridge = any(isinstance(wanted, Bridge) for wanted in plan.links)
    return not (link.kind == "veth" and (has_bridge or plan.namespace == HOST))


def is_our_address(plan: NamespacePlan, seen: AddressSeen, link: str) -> bool:
    """Not the kernel's own, not learnt from a router, and on a link of the plan."""
    if not seen.permanent or seen.link_local:
        return False
    if link == "lo":
        address = seen.address.ip
        return plan.namespace != HOST and not (address in _LOOPBACK or address.is_loopback)
    return any(link == wanted.name for wanted in plan.links)


def is_our_table(name: str) -> bool:
    """`hivemesh`, or that with a suffix: `hivemesh-vips`."""
    return name == TABLE or name.startswith(f"{TABLE}-")


def is_our_rule(namespace: str, rule: RuleSeen) -> bool:
    return rule.protocol == ROUTE_PROTOCOL if namespace == HOST else rule.protocol != _RULE_OF_KERNEL
