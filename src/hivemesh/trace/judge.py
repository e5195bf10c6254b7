"""From what was seen to what people read: plan beside kernel, the likely cause of a difference, the proving command.
Pure."""

from hivemesh.kernel.api import (
    Bridge,
    Dummy,
    FdbEntry,
    LinkAddress,
    Macvlan,
    Neighbor,
    Route,
    Rule,
    Veth,
    Vxlan,
)
from hivemesh.trace.way import (
    Answer,
    Balancing,
    Broken,
    Listener,
    NoOther,
    Reach,
    Seen,
    Setting,
    Step,
    TableWanted,
    Want,
)
from hivemesh.wire.trace import Fact, Hop


def hop_of(node: str, step: Step, seen: tuple[Seen, ...]) -> Hop:
    """One hop with its facts."""
    facts = tuple(
        Fact(
            what=named(one.want),
            plan=planned(one.want),
            kernel=one.text,
            agrees=one.right,
            proof=command(step.namespace, one.want),
            cause="" if one.right else cause(step.namespace, one.want, one.text),
        )
        for one in seen
    )
    return Hop(node=node, namespace=step.namespace, title=step.title, facts=facts, passage=step.passage)


def named(want: Want) -> str:
    """What kind of thing it is, and which."""
    match want:
        case Bridge() | Vxlan() | Veth() | Macvlan() | Dummy():
            return f"link {want.name}"
        case LinkAddress():
            return f"address of {want.link}"
        case Route():
            return f"route to {want.destination}" + (f" in table {want.table}" if want.table != 254 else "")
        case Rule():
            return f"routing rule {want.priority}"
        case Neighbor():
            return f"neighbor {want.address}"
        case NoOther(neighbor=neighbor):
            return f"neighbor {neighbor.address}, if told by hand"
        case FdbEntry():
            return f"forwarding entry {want.mac}"
        case Setting():
            return f"setting {want.key}"
        case TableWanted():
            return f"nft {want.family} {want.name}"
        case Reach():
            return f"the kernel's way to {want.address}"
        case Answer():
            return f"answer for {want.name}"
        case Listener():
            return f"server on port {want.port}/{want.protocol}"
        case Balancing():
            return "balancing of sockets and IPVS"
        case Broken():
            return "the plan"


def planned(want: Want) -> str:
    """What it should be."""
    match want:
        case Bridge():
            return f"bridge, mtu {want.mtu}"
        case Vxlan():
            return f"VNI {want.vni}, UDP {want.port}, from {want.local}, in {want.master}"
        case Veth():
            where = want.outer.namespace or "the host"
            return f"{want.mac}, mtu {want.mtu}, to {want.outer.name} in {want.outer.master} of {where}"
        case Macvlan():
            return f"on {want.parent}"
        case Dummy():
            return "dummy"
        case LinkAddress():
            return str(want.address)
        case Route():
            return f"{want.gateway or ''} dev {want.link}".strip()
        case Rule():
            return f"table {want.table}" + (f" for {want.source}" if want.source else f" for mark {want.mark:#x}")
        case Neighbor():
            return str(want.mac)
        case NoOther(neighbor=neighbor):
            return f"{neighbor.mac}, or asked for"
        case FdbEntry():
            return str(want.vtep)
        case Setting():
            return want.value
        case TableWanted():
            return want.what
        case Reach():
            return ("has a route" if want.source is None else f"from {want.source}") + (
                f", MTU {want.mtu} or more" if want.mtu else ""
            )
        case Answer():
            return ", ".join(sorted(map(str, want.addresses))) or "no addresses"
        case Listener():
            return "listens"
        case Balancing():
            return want.what
        case Broken():
            return "leads on"


def cause(namespace: str, want: Want, text: str) -> str:
    """Why it most likely is not as it should be, and so what happens to packets. Only of what is wrong."""
    if text == "the namespace is missing":
        return f"somebody removed the namespace {namespace}, and all that was plugged into it"
    match want:
        case Balancing():
            return "somebody changed IPVS, or the maps that lead sockets to backends"
        case Broken():
            return want.cause
        case Bridge() | Vxlan() | Veth() | Macvlan() | Dummy():
            return _cause_of_link(want, text)
        case LinkAddress():
            return "the address was removed: nobody answers for it"
        case Route():
            return "the route was removed" if text == "missing" else "somebody replaced the route"
        case Rule():
            return "the rule was removed: replies take the default route instead of going back into the mesh"
        case Neighbor():
            if text == "missing":
                return "the neighbor was removed: nobody answers ARP or NDP for that address"
            return "somebody changed the neighbor: frames go to a MAC that is not the task's"
        case NoOther():
            return "somebody told this sandbox another MAC: its frames miss the task"
        case FdbEntry():
            if text == "missing":
                return "the forwarding entry was removed: VXLAN drops frames for that MAC, nothing is flooded"
            return "somebody changed the forwarding entry: frames go to the wrong node"
        case Setting():
            return _cause_of_setting(want)
        case TableWanted():
            return "somebody flushed or changed the table: address translation or tunnel rules are not ours any more"
        case Reach():
            if text.startswith("MTU"):
                return "a link or route on the way has a smaller MTU: large packets are lost or cut"
            if "another way" in text:
                return "another route or rule of this machine clashes with the network's, and wins"
            return "there is no route to it, or one that refuses"
        case Answer():
            if "does not answer" in text:
                return "the resolver's process is gone, or its rules in this sandbox were flushed"
            return "the resolver has old or no news of this name"
        case Listener():
            return "no program listens there on all addresses: not started yet, another port, or bound to 127.0.0.1"


def _cause_of_link(want: Bridge | Vxlan | Veth | Macvlan | Dummy, text: str) -> str:
    if "is missing" in text or "does not lead" in text:
        return "the link, or its other end, was removed"
    if "up False" in text:
        return "somebody set the link down"
    if " mtu " in text:
        return "somebody changed the MTU: large packets are lost"
    if " mac " in text:
        return "somebody changed the MAC: frames for it are not taken"
    if "VNI" in text or "port" in text or "local address" in text:
        return "somebody made the tunnel anew, with other numbers: the other nodes' packets are not for it"
    if "master" in text or "no bridge" in text:
        return "the link was taken out of its bridge, or the bridge was removed"
    return "somebody changed the link"


def _cause_of_setting(want: Setting) -> str:
    if want.key.endswith(("ip_forward", "all/forwarding")):
        return "another program (`sysctl --system`, a firewall) set it back: nothing is forwarded"
    if want.key.endswith("rp_filter"):
        return "another program set it: packets are dropped whose source has its way back through another link"
    return "another program set it: replies lose their way into the mesh"


def command(namespace: str, want: Want) -> str:
    """What a person would type to see it."""
    inside = within(namespace)
    match want:
        case Bridge() | Vxlan() | Veth() | Macvlan() | Dummy():
            return f"{inside}ip -d link show {want.name}"
        case LinkAddress():
            return f"{inside}ip address show dev {want.link}"
        case Route():
            six = "-6 " if want.destination.version == 6 else ""
            return f"{inside}ip {six}route show table {want.table} {want.destination}"
        case Rule():
            return f"{inside}ip {'-6 ' if want.family == 10 else ''}rule show priority {want.priority}"
        case Neighbor() | NoOther():
            neighbor = want.neighbor if isinstance(want, NoOther) else want
            return f"{inside}ip neighbor show to {neighbor.address} dev {neighbor.link} nud all"
        case FdbEntry():
            return f"{inside}bridge fdb get {want.mac} dev {want.link} self"
        case Setting():
            return f"{inside}sysctl {want.key.replace('/', '.')}"
        case TableWanted():
            return f"{inside}nft list table {want.family} {want.name}"
        case Reach():
            return f"{inside}ip route get {want.address}"
        case Answer():
            return f"{inside}nslookup {want.name} 127.0.0.11"
        case Listener():
            return f"{inside}ss -ln{'t' if want.protocol == 'tcp' else 'u'} sport = :{want.port}"
        case Balancing():
            return f"{inside}ipvsadm -ln; bpftool map show"
        case Broken():
            return f"{inside}ip address"


def within(namespace: str) -> str:
    """What comes before a command that is to run there."""
    return f"ip netns exec {namespace} " if namespace else ""
