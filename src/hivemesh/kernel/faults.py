"""The real kernel with failures on request, for tests of what happens when it refuses."""

import os
from collections.abc import Mapping, Sequence
from typing import cast

from hivemesh.kernel.linux import Linux
from hivemesh.kernel.rtnl import Failure, Rtnl
from hivemesh.wire.netlink import Message
from hivemesh.wire.nft import Table


class Faults(Linux):
    """Calls pass through, but for those that `fail_next` names.

    A netlink message is named by its verb (`set_fdb`, `add_link`, ...), other calls by the method (`create`,
    `ensure_table`, `ensure_settings`).
    """

    def __init__(self) -> None:
        self._planned: dict[str, list[int]] = {}

    def fail_next(self, what: str, code: int, times: int = 1) -> None:
        """The next `times` calls of `what` fail with that errno, without reaching the kernel."""
        self._planned.setdefault(what, []).extend([code] * times)

    def take(self, what: str) -> int:
        """errno of the failure due now, 0: none."""
        planned = self._planned.get(what)
        return planned.pop(0) if planned else 0

    def _raise_if_due(self, what: str) -> None:
        if code := self.take(what):
            raise OSError(code, os.strerror(code))

    def create(self, namespace: str, mark: str) -> None:
        self._raise_if_due("create")
        super().create(namespace, mark)

    def door(self, namespace: str) -> Rtnl:
        return cast(Rtnl, _Door(super().door(namespace), self))

    def ensure_settings(
        self, namespace: str, wanted: Mapping[str, str]
    ) -> tuple[dict[str, str | None], dict[str, OSError]]:
        doomed = [(key, code) for key in wanted if (code := self.take("ensure_settings"))]
        refused = {key: OSError(code, os.strerror(code)) for key, code in doomed}
        passed = {key: value for key, value in wanted.items() if key not in refused}
        found, failed = super().ensure_settings(namespace, passed)
        return found | dict.fromkeys(refused), failed | refused

    def ensure_table(self, namespace: str, table: Table) -> int:
        self._raise_if_due("ensure_table")
        return super().ensure_table(namespace, table)


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
        return failures + self._real.apply(passed)
