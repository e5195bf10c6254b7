"""Faults that happen to a mesh, one by one: how each is made with ordinary commands, and who must be blamed.

The way is from outside to port 8080 of node 1, to the task `web` on node 2, and back.
"""

from dataclasses import dataclass

OVERLAY, SANDBOX, INGRESS, HOST = "1-ingress000", "web000000000", "ingress_sbox", ""
MAC, BACK_MAC, STRANGER = "02:42:0a:00:00:16", "02:42:0a:00:00:0b", "02:42:0a:00:00:63"


@dataclass(frozen=True)
class Fault:
    """`commands` break something at `place` of `node`; `undo` is what a repairing agent would not do by itself.
    `probe`: plan and kernel agree everywhere, and only a probe sees it.

    A trace's first finding is at `blamed` (node, namespace), about `what`, with `cause` in its words. The doctor's
    first is of `check`, at `doctor_at` (else that node), with `doctor_says` (else `what` and `cause`) in its words.
    """

    name: str
    node: int
    place: str
    commands: tuple[str, ...]
    what: str
    cause: str
    undo: tuple[str, ...] = ()
    blamed: tuple[int, str] | None = None
    probe: bool = False
    check: str = "drift"
    doctor_at: str = ""
    doctor_says: str = ""

    @property
    def where(self) -> tuple[int, str]:
        return self.blamed or (self.node, self.place)


def _drop(hook: str, what: str) -> tuple[str, ...]:
    """A table of somebody else's that drops that."""
    return (
        "nft add table inet theirs",
        f"nft add chain inet theirs {hook} {{ type filter hook {hook} priority 5 ; }}",
        f"nft add rule inet theirs {hook} {what} drop",
    )


_UNDROP = ("nft delete table inet theirs",)


def lost(what: str) -> tuple[str, ...]:
    """The switch between the machines loses that."""
    return (
        "nft add table bridge theirs",
        "nft add chain bridge theirs forward { type filter hook forward priority 0 ; }",
        f"nft add rule bridge theirs forward {what} drop",
    )


FOUND = ("nft delete table bridge theirs",)
BETWEEN = -1
"""In place of a node's number: the network between the machines."""


FAULTS = (
    Fault("missing forwarding entry", 1, OVERLAY, (f"bridge fdb del {MAC} dev vxlan0 dst 198.51.100.12 self",),
          f"forwarding entry {MAC}", "was removed"),
    Fault("forwarding entry to another node", 1, OVERLAY,
          (f"bridge fdb replace {MAC} dev vxlan0 dst 198.51.100.13 self permanent",),
          f"forwarding entry {MAC}", "wrong node"),
    Fault("missing neighbor", 1, OVERLAY, ("ip neigh del 10.0.0.22 dev vxlan0",), "neighbor 10.0.0.22", "ARP"),
    Fault("wrong neighbor", 1, OVERLAY, (f"ip neigh replace 10.0.0.22 lladdr {STRANGER} dev vxlan0 nud permanent",),
          "neighbor 10.0.0.22", "not the task's"),
    Fault("neighbor told by hand", 1, INGRESS,
          (f"ip neigh replace 10.0.0.22 lladdr {STRANGER} dev eth0 nud permanent",),
          "neighbor 10.0.0.22", "another MAC", undo=("ip neigh del 10.0.0.22 dev eth0",)),
    Fault("flushed map of ports", 1, INGRESS, ("nft flush map inet hivemesh ports",), "nft inet hivemesh", "flushed"),
    Fault("flushed backends", 1, INGRESS, ("nft flush map inet hivemesh backends4",), "nft inet hivemesh", "flushed"),
    Fault("flushed ruleset of the host", 1, HOST, ("nft flush ruleset",), "nft inet hivemesh", "flushed"),
    Fault("port not published by the host", 1, HOST, ("nft flush set inet hivemesh published",),
          "nft inet hivemesh", "flushed"),
    Fault("VXLAN of members refused", 2, HOST, ("nft flush set inet hivemesh vteps4",), "nft inet hivemesh", "tunnel"),
    Fault("tunnel down", 1, OVERLAY, ("ip link set vxlan0 down",), "link vxlan0", "down"),
    Fault("tunnel down at the other end", 2, OVERLAY, ("ip link set vxlan0 down",), "link vxlan0", "down"),
    Fault("bridge down", 2, OVERLAY, ("ip link set br0 down",), "link br0", "down"),
    Fault("tunnel out of its bridge", 1, OVERLAY, ("ip link set vxlan0 nomaster",), "link vxlan0", "out of its bridge"),
    Fault("wrong VNI", 1, OVERLAY,
          ("ip link del vxlan0", "ip link add vxlan0 type vxlan id 5000 dstport 4789 nolearning proxy",
           "ip link set vxlan0 master br0 up"), "link vxlan0", "made the tunnel anew"),
    Fault("low MTU of the underlay", 1, HOST, ("ip link set eth0 mtu 1400",), "the kernel's way to 198.51.100.12",
          "smaller MTU", undo=("ip link set eth0 mtu 1500",), check="underlay",
          doctor_says="eth0 takes 1400 bytes"),
    Fault("low MTU of the tunnel", 2, OVERLAY, ("ip link set vxlan0 mtu 1300",), "link vxlan0", "MTU"),
    Fault("clashing route", 1, HOST, ("ip route add 198.51.100.12/32 dev hm_gwbridge",),
          "the kernel's way to 198.51.100.12", "clashes", undo=("ip route del 198.51.100.12/32 dev hm_gwbridge",), 
          check="ways", doctor_at="n1 -> n2", doctor_says="clashes"),
    Fault("route that refuses", 1, HOST, ("ip route add blackhole 198.51.100.12/32",),
          "the kernel's way to 198.51.100.12", "refuses", undo=("ip route del blackhole 198.51.100.12/32",), 
          check="send", doctor_at="n1 -> n2", doctor_says="ip route get 198.51.100.12"),
    Fault("missing veth", 2, SANDBOX, ("ip link del eth0",), "link eth0", "removed"),
    Fault("link of the task down", 2, SANDBOX, ("ip link set eth0 down",), "link eth0", "down"),
    Fault("far end of the task's link down", 2, OVERLAY, ("ip link set vethweb00000 down",), "link eth0", "down",
          blamed=(2, SANDBOX)),
    Fault("wrong MAC of the task", 2, SANDBOX, (f"ip link set eth0 address {STRANGER}",), "link eth0", "MAC"),
    Fault("missing address", 2, SANDBOX, ("ip addr del 10.0.0.22/24 dev eth0",), "address of eth0", "removed"),
    Fault("host does not forward", 1, HOST, ("sysctl -qw net.ipv4.ip_forward=0",), "setting net/ipv4/ip_forward",
          "nothing is forwarded"),
    Fault("ingress_sbox does not forward", 1, INGRESS, ("sysctl -qw net.ipv4.ip_forward=0",),
          "setting net/ipv4/ip_forward", "nothing is forwarded"),
    Fault("gateway bridge down", 1, HOST, ("ip link set hm_gwbridge down",), "link hm_gwbridge", "down"),
    Fault("gateway bridge without its neighbor", 1, HOST, ("ip neigh del 172.18.0.2 dev hm_gwbridge",),
          "neighbor 172.18.0.2", "removed"),
    Fault("ingress_sbox without a way back out", 1, INGRESS, ("ip route del default",), "route to 0.0.0.0/0",
          "removed"),
    Fault("port translation missing", 2, SANDBOX, ("nft flush map inet hivemesh tcp_ports",), "nft inet hivemesh",
          "translation"),
    Fault("flushed rules of the task", 2, SANDBOX, ("nft flush chain inet hivemesh prerouting",),
          "nft inet hivemesh", "flushed"),
    Fault("replies go to the wrong MAC", 2, SANDBOX, ("nft delete table netdev hivemesh",), "nft netdev hivemesh",
          "flushed"),
    Fault("missing rule for replies", 2, SANDBOX, ("ip rule del table 4900",), "routing rule", "default route"),
    Fault("missing routes for replies", 2, SANDBOX, ("ip route flush table 4900",), "table 4900", "removed"),
    Fault("reverse path filter", 2, SANDBOX, ("sysctl -qw net.ipv4.conf.all.src_valid_mark=0",),
          "setting net/ipv4/conf/all/src_valid_mark", "lose their way"),
    Fault("loss on the way back", 2, OVERLAY, (f"bridge fdb del {BACK_MAC} dev vxlan0 dst 198.51.100.11 self",),
          f"forwarding entry {BACK_MAC}", "was removed"),
    Fault("UDP 4789 blocked between the machines", BETWEEN, HOST, lost("ip daddr 198.51.100.12 udp dport 4789"),
          "the probe", "UDP 4789 is blocked between n1 and n2", undo=FOUND, blamed=(2, HOST), probe=True,
          check="tunnels", doctor_at="* -> n2", doctor_says="drops UDP port 4789"),
    Fault("answers blocked between the machines", BETWEEN, HOST, lost("ip daddr 198.51.100.11 udp dport 4789"),
          "the probe", "UDP 4789 is blocked between n2 and n1", undo=FOUND, blamed=(1, HOST), probe=True,
          check="tunnels", doctor_at="* -> n1", doctor_says="drops UDP port 4789"),
    Fault("large packets lost between the machines", BETWEEN, HOST, lost("ip daddr 198.51.100.12 ip length > 1400"),
          "the probe", "large packets are lost between n1 and n2", undo=FOUND, blamed=(2, HOST), probe=True,
          check="path-mtu", doctor_at="* -> n2", doctor_says="1400 bytes"),
    Fault("large answers lost between the machines", BETWEEN, HOST, lost("ip daddr 198.51.100.11 ip length > 1400"),
          "the probe", "large packets are lost between", undo=FOUND, blamed=(1, HOST), probe=True,
          check="path-mtu", doctor_at="* -> n1", doctor_says="1400 bytes"),
    Fault("another firewall drops tunnels out", 1, HOST, _drop("output", "udp dport 4789"),
          "the probe", "drops UDP 4789 on its way out", undo=_UNDROP, probe=True,
          check="send", doctor_at="n1 -> *", doctor_says="a rule that drops what goes out"),
    Fault("another firewall drops tunnels in", 2, HOST, _drop("input", "udp dport 4789"),
          "the probe", "a firewall there drops UDP 4789", undo=_UNDROP, blamed=(2, OVERLAY), probe=True,
          check="overlay", doctor_at="* -> n2", doctor_says="lost behind it"),
    Fault("strict reverse path filter, and another way back", 2, HOST,
          ("sysctl -qw net.ipv4.conf.eth0.rp_filter=1",
           "ip route add 198.51.100.11/32 dev hm_gwbridge src 198.51.100.12"),
          "the probe", "reverse path filter",
          undo=("ip route del 198.51.100.11/32 dev hm_gwbridge", "sysctl -qw net.ipv4.conf.eth0.rp_filter=0"),
          blamed=(2, OVERLAY), probe=True,
          check="ways", doctor_at="n2 -> n1", doctor_says="clashes"),
    Fault("firewall inside the task drops the port", 2, SANDBOX, _drop("input", "tcp dport 80"),
          "the probe", "arrived and got no answer", undo=_UNDROP, probe=True,
          check="strangers", doctor_says="table inet theirs"),
    Fault("firewall inside the task rejects the port", 2, SANDBOX,
          (*_drop("input", "tcp dport 80")[:2], "nft add rule inet theirs input tcp dport 80 reject"),
          "the probe", "a firewall inside rejects it", undo=_UNDROP, probe=True,
          check="strangers", doctor_says="table inet theirs"),
    Fault("balancer's sandbox forwards nothing", 1, INGRESS, _drop("forward", "tcp dport 8080"),
          "the probe", "led to no backend", undo=_UNDROP, probe=True,
          check="strangers", doctor_says="table inet theirs"),
    Fault("answers dropped in the balancer's sandbox", 1, INGRESS, _drop("forward", "tcp sport 8080"),
          "the probe", "dropped in ingress_sbox", undo=_UNDROP, probe=True,
          check="strangers", doctor_says="table inet theirs"),
)  # fmt: skip
