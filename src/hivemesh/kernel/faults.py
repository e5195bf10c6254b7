"""The real kernel with failures on request, for tests of what happens when it refuses, or when we end."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from hivemesh.kernel import ipvs
from hivemesh.kernel.api import SocketVip, VirtualService
from hivemesh.kernel.linux import Linux
from hivemesh.kernel.rtnl import Failure, Rtnl
from hivemesh.kernel.sockethooks import Own, SocketHooks
from hivemesh.wire.netlink import Message
from hivemesh.wire.nft import Table

Operation = Callable[[str], None]


class Faults(Linux):
    """Calls pass through, but for those that `fail_next` names.

    A netlink message is named by its verb (`set_fdb`, `add_link`, ...), other calls by the method (`create`,
    `ensure_table`, `ensure_settings`). `before` is told each that changes something, just before it does; then netlink
    messages are sent one by one, so that it comes between any two.
    """

    def __init__(self, hooks: SocketHooks | None = None, *, before: Operation | None = None) -> None:
        super().__init__(hooks)
        self._planned: dict[str, list[int]] = {}
        self.before = before

    def fail_next(self, what: str, code: int, times: int = 1) -> None:
        """The next `times` calls of `what` fail with that errno, without reaching the kernel."""
        self._planned.setdefault(what, []).extend([code] * times)

    def take(self, what: str) -> int:
        """errno of the failure due now, 0: none."""
        planned = self._planned.get(what)
        return planned.pop(0) if planned else 0

    def _begin(self, what: str) -> None:
        if code := self.take(what):
            raise OSError(code, os.strerror(code))
        self._tell(what)

    def _tell(self, what: str) -> None:
        if self.before is not None:
            self.before(what)

    def create(self, namespace: str, mark: str) -> None:
        self._begin("create")
        super().create(namespace, mark)

    def pin_again(self, namespace: str) -> bool:
        self._tell("pin_again")
        return super().pin_again(namespace)

    def delete(self, namespace: str) -> None:
        self._begin("delete")
        super().delete(namespace)

    def door(self, namespace: str) -> Rtnl:
        return cast(Rtnl, _Door(super().door(namespace), self))

    def ensure_settings(
        self, namespace: str, wanted: Mapping[str, str]
    ) -> tuple[dict[str, str | None], dict[str, OSError]]:
        doomed = [(key, code) for key in wanted if (code := self.take("ensure_settings"))]
        refused = {key: OSError(code, os.strerror(code)) for key, code in doomed}
        passed = {key: value for key, value in wanted.items() if key not in refused}
        self._tell("ensure_settings")
        found, failed = super().ensure_settings(namespace, passed)
        return found | dict.fromkeys(refused), failed | refused

    def ensure_table(self, namespace: str, table: Table) -> int:
        self._begin("ensure_table")
        return super().ensure_table(namespace, table)

    def delete_table(self, namespace: str, family: str, name: str) -> None:
        self._begin("delete_table")
        super().delete_table(namespace, family, name)

    def ensure_ipvs(
        self, namespace: str, wanted: Sequence[VirtualService], before: Sequence[VirtualService] | None
    ) -> ipvs.Done:
        self._begin("ensure_ipvs")
        return super().ensure_ipvs(namespace, wanted, before)

    def ensure_sockets(self, namespace: str, wanted: Sequence[SocketVip], own: Own) -> int:
        self._begin("ensure_sockets")
        return super().ensure_sockets(namespace, wanted, own)


class _Door:
    """A door that some messages do not pass."""

    def __init__(self, real: Rtnl, faults: Faults) -> None:
        self._real = real
        self._faults = faults

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def apply(self, messages: Sequence[Message]) -> list[Failure]:
        failures, passed = [], []
        for message in messages:
            if code := self._faults.take(message.verb):
                failures.append(Failure(message, code, "on request"))
            else:
                passed.append(message)
        if self._faults.before is None:
            return failures + self._real.apply(passed)
        for message in passed:
            self._faults.before(message.verb)
            failures += self._real.apply([message])
        return failures
