"""Make and change links: bridges, VXLAN devices that stay with the host, veths with their ends in two namespaces."""

import os
from collections.abc import Sequence

from hivemesh.dataplane.entries import GONE
from hivemesh.dataplane.links import Outer, Step
from hivemesh.dataplane.ownership import is_our_link
from hivemesh.kernel.api import HOST, Bridge, Dummy, Link, Macvlan, Veth, Vxlan
from hivemesh.kernel.linux import Linux
from hivemesh.kernel.rtnl import Rtnl
from hivemesh.wire.netlink import Message
from hivemesh.wire.rtnetlink import (
    LinkSeen,
    add_bridge,
    add_link,
    add_macvlan,
    add_veth,
    add_vxlan,
    delete_link,
    set_isolated,
    set_link,
)


class Plumber:
    """Takes the steps that `links.compare` asks for. What the kernel refuses comes back in words."""

    def __init__(self, linux: Linux) -> None:
        self._linux = linux

    def outer(self) -> Outer:
        """A look-up of veths' far ends that asks for each bridge once."""
        masters: dict[tuple[str, str], int] = {}

        def look_up(link: Veth | Macvlan) -> tuple[LinkSeen | None, int]:
            if isinstance(link, Macvlan):
                parent = self._linux.door(HOST).link(link.parent)
                return parent, parent.index if parent is not None else 0
            end = link.outer
            try:
                door = self._linux.door(end.namespace)
                where = (end.namespace, end.master)
                if where not in masters:
                    bridge = door.link(end.master)
                    masters[where] = bridge.index if bridge is not None and bridge.kind == "bridge" else 0
                return door.link(end.name), masters[where]
            except FileNotFoundError:
                return None, 0

        return look_up

    def take(self, step: Step, door: Rtnl, outer: Outer) -> list[str]:
        """`door` is that of the plan's namespace."""
        failures: list[str] = []
        try:
            if step.remove is not None:
                refused = door.apply([delete_link(step.remove.index, step.name)])
                failures += [str(failure) for failure in refused if failure.errno not in GONE]
            if step.create and not failures:
                assert step.link is not None
                failures += self._create(door, step.link, outer)
            if step.inside:
                failures += _send(door, step.inside)
            if step.outside:
                assert isinstance(step.link, Veth)
                failures += _send(self._linux.door(step.link.outer.namespace), step.outside)
        except OSError as error:
            failures.append(f"link {step.name}: {os.strerror(error.errno) if error.errno else error}")
        return failures

    def _create(self, door: Rtnl, link: Link, outer: Outer) -> list[str]:
        if isinstance(link, Bridge):
            failures = _send(door, [add_bridge(link.name, link.mac)])
        elif isinstance(link, Vxlan):
            failures = self._create_vxlan(door, link)
        elif isinstance(link, Macvlan):
            failures = self._create_macvlan(door, link, outer)
        elif isinstance(link, Dummy):
            failures = _send(door, [add_link(link.name, "dummy", link.mtu)])
        else:
            failures = self._create_veth(door, link, outer)
        made = None if failures else door.link(link.name)
        if made is None:
            return failures
        finish = [set_link(made.index, link.name, up=True)] if isinstance(link, Veth | Macvlan) else []
        if isinstance(link, Bridge) and made.mtu != link.mtu:
            finish.append(set_link(made.index, link.name, mtu=link.mtu))
        if link.alias:
            finish.append(set_link(made.index, link.name, alias=link.alias))
        return _send(door, finish)

    def _create_vxlan(self, door: Rtnl, link: Vxlan) -> list[str]:
        master = door.link(link.master)
        if master is None:
            return [f"link {link.name}: there is no bridge {link.master}"]
        handle = door.handle()
        try:
            message = add_vxlan(
                link.name,
                vni=link.vni,
                port=link.port,
                local=link.local,
                mtu=link.mtu,
                master=master.index,
                namespace=handle,
            )
            # its socket and its routes stay where the message is sent
            return _send(self._linux.door(HOST), [message])
        finally:
            os.close(handle)

    def _create_macvlan(self, door: Rtnl, link: Macvlan, outer: Outer) -> list[str]:
        _, parent = outer(link)
        if not parent:
            return [f"link {link.name}: there is no interface {link.parent} to be its parent"]
        handle = door.handle()
        try:
            message = add_macvlan(
                link.name, parent=parent, mode=link.mode, mtu=link.mtu, mac=link.mac, namespace=handle
            )
            return _send(self._linux.door(HOST), [message])
        finally:
            os.close(handle)

    def _create_veth(self, door: Rtnl, link: Veth, outer: Outer) -> list[str]:
        end = link.outer
        stale, master = outer(link)
        if not master:
            where = f" in namespace {end.namespace}" if end.namespace else ""
            return [f"link {link.name}: there is no bridge {end.master}{where}"]
        far_door = self._linux.door(end.namespace)
        if stale is not None:
            if not is_our_link(end.namespace, stale):
                return [f"link {link.name}: {end.name} exists and is not ours"]
            failures = _send(far_door, [delete_link(stale.index, end.name)])
            if failures:
                return failures
        handle = door.handle()
        try:
            message = add_veth(end.name, link.name, mtu=link.mtu, mac=link.mac, master=master, namespace=handle)
            failures = _send(far_door, [message])
        finally:
            os.close(handle)
        far = None if failures or not (end.isolated or end.alias) else far_door.link(end.name)
        if far is None:
            return failures
        finish = [set_isolated(far.index, end.name, True)] if end.isolated else []
        if end.alias:
            finish.append(set_link(far.index, end.name, alias=end.alias))
        return _send(far_door, finish)


def _send(door: Rtnl, messages: Sequence[Message]) -> list[str]:
    return [str(failure) for failure in door.apply(messages)] if messages else []
