"""Drift: what somebody else changes in namespaces of ours is found, put right, counted, logged, and told.

Netlink's events say where to look. Settings under /proc/sys have no events: those are read every second. And since
events can be lost, everything is looked at each minute.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from hivemesh.agent.namespaces import Namespaces
from hivemesh.agent.repairs import Repairs, told
from hivemesh.agent.threads import KernelThreads
from hivemesh.clock import Clock
from hivemesh.dataplane.suspicion import SYSCTL
from hivemesh.kernel import sysctl
from hivemesh.kernel.api import HOST

log = logging.getLogger("hivemesh.network")

CHECK_PERIOD = 60.0
"""Seconds between looks at everything."""
SETTINGS_PERIOD = 1.0
"""Seconds between looks at the settings of all namespaces: other programs of the host like to set those back
(`sysctl --system`), and the whole mesh depends on them. A look reads some 15 files per namespace, in 0.3 ms."""
SETTINGS_SHARE = 0.05
"""The part of one processor that these looks may take: beyond 150 sandboxes they come less often."""
SETTLE = 0.02
"""Seconds between an event and the look it causes: whoever changes one thing often changes more."""

SETTINGS = frozenset({SYSCTL})


class Drift:
    """`host_changed` looks at the machine's own links and addresses; `failed` hears that something could not be put
    right; `rebuilt` hears of a namespace that was gone as a whole, and whoever was in it is cut off."""

    def __init__(
        self,
        namespaces: Namespaces,
        threads: KernelThreads,
        clock: Clock,
        repairs: Repairs,
        *,
        host_changed: Callable[[], Awaitable[None]],
        failed: Callable[[], None],
        rebuilt: Callable[[str], None],
    ) -> None:
        self._namespaces = namespaces
        self._threads = threads
        self._clock = clock
        self._repairs = repairs
        self._host_changed = host_changed
        self._failed = failed
        self._on_rebuilt = rebuilt
        self._touched: set[str] = set()
        self._touch = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="kernel events")
            tasks.create_task(self._check_touched(), name="drift")
            tasks.create_task(self._check_regularly(), name="slow look")
            tasks.create_task(self._check_settings(), name="settings")

    async def _listen(self) -> None:
        async for namespace in self._namespaces.monitor:
            self._doubt({namespace})

    def _doubt(self, namespaces: set[str]) -> None:
        self._touched |= namespaces
        self._touch.set()

    async def _check_touched(self) -> None:
        while True:
            await self._touch.wait()
            await asyncio.sleep(SETTLE)
            self._touch.clear()
            touched, self._touched = self._touched, set()
            if HOST in touched:
                await self._host_changed()
            for namespace in sorted(touched):
                await self._check(namespace)

    async def _check_regularly(self) -> None:
        while True:
            await self._clock.sleep(CHECK_PERIOD)
            await self._host_changed()
            for namespace in list(self._namespaces.applied):
                self._namespaces.kernel.forget(namespace)
                await self._check(namespace)

    async def _check_settings(self) -> None:
        spent = 0.0
        while True:
            await self._clock.sleep(max(SETTINGS_PERIOD, spent / SETTINGS_SHARE))
            wanted = {name: plan.sysctls for name, plan in self._namespaces.applied.items()}
            changed, spent = await self._threads.run(sysctl.changed, wanted)
            for namespace in changed:
                self._namespaces.kernel.forget(namespace, SETTINGS)
                self._doubt({namespace})

    async def _check(self, namespace: str) -> None:
        done = await self._namespaces.repair(namespace)
        if done is None:
            return
        if done.words:
            self._repairs.note(done.plan.mark.split("/")[1] if namespace else "host", namespace, done.words)
            log.warning("drift in %s, repaired: %s", namespace or "the host", told(done.words, len(done.words)))
        if done.failed:
            self._failed()
        if done.created:
            self._rebuilt(namespace)

    def _rebuilt(self, namespace: str) -> None:
        """A whole namespace had been removed: its neighbours' links went with it."""
        monitor = self._namespaces.monitor
        monitor.remove(namespace)
        with contextlib.suppress(FileNotFoundError):  # gone again
            monitor.add(namespace)
        self._on_rebuilt(namespace)
        self._doubt(set(self._namespaces.kernel.affected(namespace)) - {namespace})
