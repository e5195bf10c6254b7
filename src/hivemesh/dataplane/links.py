"""The links of a plan against those of the kernel: what to make, what to put right in place, what to remake."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hivemesh.dataplane.ownership import is_left_over, is_our_link
from hivemesh.kernel.api import HOST, Bridge, Dummy, Link, Macvlan, NamespacePlan, Veth, Vxlan
from hivemesh.wire.netlink import Message
from hivemesh.wire.rtnetlink import MACVLAN_MODES, LinkSeen, set_bridge, set_isolated, set_link

KIND = {Bridge: "bridge", Vxlan: "vxlan", Veth: "veth", Macvlan: "macvlan", Dummy: "dummy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One link to deal with: first `remove`, then, if `create`, make `link`; else send `inside` and `outside`."""

    name: str
    text: str
    link: Link | None = None
    remove: LinkSeen | None = None
    create: bool = False
    inside: tuple[Message, ...] = ()
    outside: tuple[Message, ...] = ()
    refused: bool = False


Outer = Callable[[Veth | Macvlan], tuple[LinkSeen | None, int]]
"""Looks up the far end of a veth by name, and the index of the bridge it should be a port of (0: there is none); of a
macvlan, its parent and the parent's index."""


def compare(plan: NamespacePlan, wanted: Sequence[Link], seen: dict[str, LinkSeen], outer: Outer) -> Iterator[Step]:
    """What is to be done about `wanted`, some of the plan's links. Nothing for a link that is right."""
    for link in wanted:
        found = seen.get(link.name)
        if found is None:
            yield Step(name=link.name, text=f"link {link.name} is missing", link=link, create=True)
            continue
        # asked once: another thread may remove the far end between two questions
        far, holder = outer(link) if isinstance(link, Veth | Macvlan) else (None, 0)
        wrong = _wrong_for_good(link, found, far)
        if wrong:
            ours = is_our_link(plan.namespace, found)
            yield Step(
                name=link.name,
                text=f"link {link.name} {wrong}" + ("" if ours else "; it is not ours to remove"),
                link=link,
                remove=found,
                create=True,
                refused=not ours,
            )
            continue
        step = _in_place(link, found, seen, far, holder)
        if step is not None:
            yield step


def loopback(plan: NamespacePlan, seen: dict[str, LinkSeen]) -> Iterator[Step]:
    """`lo` of a namespace of ours is up and carries the mark."""
    found = seen.get("lo")
    if plan.namespace == HOST or found is None or (found.up and found.alias == plan.mark):
        return
    text = "link lo is down" if not found.up else f"link lo: alias {found.alias!r} instead of {plan.mark!r}"
    yield Step(name="lo", text=text, inside=(set_link(found.index, "lo", up=True, alias=plan.mark),))


def left_over(plan: NamespacePlan, seen: dict[str, LinkSeen]) -> Iterator[Step]:
    """Links of ours that the plan does not have."""
    for found in seen.values():
        if is_left_over(plan, found):
            yield Step(name=found.name, text=f"link {found.name} is too much", remove=found)


def _wrong_for_good(link: Link, found: LinkSeen, far: LinkSeen | None) -> str:
    """What no message can change about a link, "" if all else can be put right."""
    kind = KIND[type(link)]
    if found.kind != kind:
        return f"is a {found.kind or 'device'}, not a {kind}"
    if isinstance(link, Vxlan):
        actual = found.vxlan
        assert actual is not None
        for what, have, want in (
            ("VNI", actual.vni, link.vni),
            ("port", actual.port, link.port),
            ("local address", actual.local, link.local),
            ("learning", actual.learning, False),
            ("proxy", actual.proxy, True),
            ("flooding", actual.flooding, False),
        ):
            if have != want:
                return f"has {what} {have}, not {want}"
        if not found.elsewhere:
            return "was not made in the host"
    if isinstance(link, Veth) and (far is None or far.index != found.peer or far.peer != found.index):
        return f"does not lead to {link.outer.name}"
    if isinstance(link, Macvlan):
        if far is None or found.peer != far.index:
            return f"is not on {link.parent}"
        if found.macvlan_mode != MACVLAN_MODES[link.mode]:
            return f"is not in mode {link.mode}"
    return ""


def _in_place(link: Link, found: LinkSeen, seen: dict[str, LinkSeen], far: LinkSeen | None, holder: int) -> Step | None:
    inside: list[Message] = []
    outside: list[Message] = []
    wrong: list[str] = []

    def check(what: str, have: object, want: object, message: Message, messages: list[Message]) -> None:
        if have != want:
            wrong.append(f"{what} {have!s} instead of {want!s}")
            messages.append(message)

    index, name = found.index, link.name
    if link.mtu:
        check("mtu", found.mtu, link.mtu, set_link(index, name, mtu=link.mtu), inside)
    check("alias", repr(found.alias), repr(link.alias), set_link(index, name, alias=link.alias), inside)
    if isinstance(link, Bridge):
        check("filtering", found.snooping or found.stp, False, set_bridge(index, name), inside)
        if link.mac is not None:
            check("mac", found.mac, link.mac, set_link(index, name, mac=link.mac), inside)
    elif isinstance(link, Vxlan):
        bridge = seen.get(link.master)
        if bridge is None:
            return Step(name=name, text=f"link {name}: there is no bridge {link.master}", link=link, refused=True)
        master = bridge.index
        check("master", found.master, master, set_link(index, name, master=master), inside)
    elif isinstance(link, Macvlan):
        check("mac", found.mac, link.mac, set_link(index, name, mac=link.mac), inside)
    elif isinstance(link, Veth):
        assert far is not None  # else it is wrong for good
        check("mac", found.mac, link.mac, set_link(index, name, mac=link.mac), inside)
        end = link.outer
        if not holder:
            where = f" in namespace {end.namespace}" if end.namespace else ""
            return Step(name=name, text=f"link {name}: there is no bridge {end.master}{where}", link=link, refused=True)
        check(f"{end.name} mtu", far.mtu, link.mtu, set_link(far.index, end.name, mtu=link.mtu), outside)
        check(
            f"{end.name} alias",
            repr(far.alias),
            repr(end.alias),
            set_link(far.index, end.name, alias=end.alias),
            outside,
        )
        check(f"{end.name} master", far.master, holder, set_link(far.index, end.name, master=holder), outside)
        # a port that changes its bridge starts without isolation
        isolated = far.isolated and far.master == holder
        check(f"{end.name} isolated", isolated, end.isolated, set_isolated(far.index, end.name, end.isolated), outside)
        check(f"{end.name} up", far.up, True, set_link(far.index, end.name, up=True), outside)
    check("up", found.up, True, set_link(index, name, up=True), inside)
    if not wrong:
        return None
    return Step(
        name=name,
        text=f"link {name}: {', '.join(wrong)}",
        link=link,
        inside=tuple(inside),
        outside=tuple(outside),
    )
