"""Everything the layers above ask of Linux, as one object that tests can put another in front of."""

from collections.abc import Mapping, Sequence

from hivemesh.kernel import ipvs, netns, nft, rtnl, sysctl
from hivemesh.kernel.api import SocketVip, VirtualService
from hivemesh.kernel.sockethooks import Own, SocketHooks
from hivemesh.wire.nft import Table


class Linux:
    """The kernel itself. Methods block for a moment; call them off the event loop."""

    _hooks: SocketHooks | None = None
    """Without, sockets are left alone."""

    def __init__(self, hooks: SocketHooks | None = None) -> None:
        self._hooks = hooks

    # --- namespaces

    def exists(self, namespace: str) -> bool:
        return not namespace or netns.exists(namespace)

    def create(self, namespace: str, mark: str) -> None:
        netns.create(namespace, mark)

    def pin_again(self, namespace: str) -> bool:
        return netns.pin_again(namespace)

    def mark_of(self, namespace: str) -> str:
        return netns.mark_of(namespace)

    def identity(self, namespace: str) -> tuple[int, int]:
        """Tells two namespaces apart that had the same name one after the other."""
        return rtnl.identity(namespace)

    def delete(self, namespace: str) -> None:
        netns.delete(namespace)

    # --- links and what hangs on them

    def door(self, namespace: str) -> rtnl.Rtnl:
        """Raises `FileNotFoundError` when there is no such namespace."""
        return rtnl.door(namespace)

    # --- settings

    def differing_settings(self, namespace: str, wanted: Mapping[str, str]) -> dict[str, str | None]:
        return sysctl.differing(namespace, wanted)

    def ensure_settings(
        self, namespace: str, wanted: Mapping[str, str]
    ) -> tuple[dict[str, str | None], dict[str, OSError]]:
        """What was there instead, and what could not be written."""
        return sysctl.ensure(namespace, wanted)

    # --- nftables

    def ensure_table(self, namespace: str, table: Table) -> int:
        return nft.ensure(namespace, table)

    def delete_table(self, namespace: str, family: str, name: str) -> None:
        nft.delete(namespace, family, name)

    def tables(self, namespace: str) -> set[tuple[str, str]]:
        return nft.tables(namespace)

    def table_differences(self, namespace: str, table: Table) -> list[str]:
        return nft.differences(namespace, table)

    def table_loses(self, namespace: str, table: Table) -> bool:
        """Whether the table has anything that `ensure_table` would take away."""
        return nft.loses(namespace, table)

    # --- IPVS

    def ensure_ipvs(
        self, namespace: str, wanted: Sequence[VirtualService], before: Sequence[VirtualService] | None
    ) -> ipvs.Done:
        return ipvs.ensure(namespace, wanted, before)

    def ipvs_differences(self, namespace: str, wanted: Sequence[VirtualService]) -> list[str]:
        return ipvs.differences(namespace, wanted)

    def ipvs_missing(self) -> str:
        """What to do where there is no IPVS; the question loads its module where there is one."""
        return ipvs.missing()

    # --- sockets

    def ensure_sockets(self, namespace: str, wanted: Sequence[SocketVip], own: Own) -> int:
        return self._hooks.ensure(namespace, wanted, own) if self._hooks is not None else 0

    def forget_sockets(self, namespace: str) -> None:
        if self._hooks is not None:
            self._hooks.forget(namespace)

    def socket_differences(self, namespace: str, wanted: Sequence[SocketVip], own: Own) -> list[str]:
        return self._hooks.differences(namespace, wanted, own) if self._hooks is not None else []
