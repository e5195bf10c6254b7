"""The namespaces of this node: what each was last made to hold, and what failed there. One at a time touches each."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from weakref import WeakValueDictionary

from hivemesh.agent.repairs import told
from hivemesh.agent.threads import KernelThreads
from hivemesh.dataplane.apply import Outcome
from hivemesh.dataplane.differing import Difference
from hivemesh.dataplane.plan.names import fits_namespace
from hivemesh.kernel import netns
from hivemesh.kernel.api import NamespacePlan
from hivemesh.kernel.monitor import Beliefs, Monitor
from hivemesh.model.errors import HivemeshError

log = logging.getLogger("hivemesh.network")

MARK = "hivemesh/"
REPAIRS = 3


class Kernel(Beliefs, Protocol):
    """`dataplane.apply.Applier`."""

    def ensure(self, plan: NamespacePlan) -> Outcome: ...
    def remove(self, namespace: str, *, unplug: bool = False) -> None: ...
    def differences(self, plan: NamespacePlan) -> list[Difference]: ...
    def losses(self, plan: NamespacePlan) -> list[Difference]: ...
    def forget(self, namespace: str, kinds: frozenset[str] = ...) -> None: ...
    def affected(self, namespace: str) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What was found and put right in a namespace."""

    plan: NamespacePlan
    words: tuple[str, ...]
    created: bool
    """The namespace itself was gone."""
    failed: bool


class Namespaces:
    """The host is the one without a name (`HOST`)."""

    def __init__(self, kernel: Kernel, threads: KernelThreads) -> None:
        self.kernel = kernel
        self.monitor = Monitor(kernel)
        self.applied: dict[str, NamespacePlan] = {}
        """What the kernel was last made to hold; without what failed."""
        self.failures: dict[str, tuple[str, ...]] = {}
        self.waiting: set[str] = set()
        """Those of which a remembered view knows less than the kernel has."""
        self._threads = threads
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # those in use

    async def ensure(
        self, plan: NamespacePlan, *, adding: bool = False, wanted: Callable[[], bool] = lambda: True
    ) -> int:
        """The number of failures; those of an unchanged plan are tried again. `adding`: what would take something away
        counts as failed. `wanted`: asked once it is our turn, for it may have been removed meanwhile, for good."""
        name = plan.namespace
        if self.applied.get(name) is plan:
            return 0
        if adding and await self.loses(plan):
            return 1
        async with self._lock(name):
            if not wanted():
                return 0
            try:
                failed = (await self._threads.run(self.kernel.ensure, plan)).failed
            except (HivemeshError, OSError) as error:
                failed = (str(error),)
            self.note(name, failed)
            if failed:
                self.applied.pop(name, None)
            else:
                self.applied[name] = plan
            with contextlib.suppress(FileNotFoundError):
                self.monitor.add(name)
        return len(failed)

    async def remove(self, namespace: str, *, unplug: bool = False) -> bool:
        """Whether it is gone; already gone is fine. `unplug`: though a process lives inside, nobody reaches it."""
        async with self._lock(namespace):
            self.monitor.remove(namespace)
            self.applied.pop(namespace, None)
            self.failures.pop(namespace, None)
            try:
                await self._threads.run(partial(self.kernel.remove, unplug=unplug), namespace)
            except (HivemeshError, OSError) as error:
                self.note(namespace, (str(error),))
                return False
            return True

    async def repair(self, namespace: str) -> Repaired | None:
        """Look again at what is doubted, and put right what is not as we left it. None: it is not ours to know.

        Removing one thing, the kernel silently removes others that hung on it: after a repair, all is looked at again.
        """
        async with self._lock(namespace):
            plan = self.applied.get(namespace)
            if plan is None:
                return None
            words: tuple[str, ...] = ()
            failed: tuple[str, ...] = ()
            created = False
            for _ in range(REPAIRS):
                try:
                    outcome = await self._threads.run(self.kernel.ensure, plan)
                except (HivemeshError, OSError) as error:
                    failed = (str(error),)
                    break
                created |= outcome.created
                words += outcome.repaired or (("the namespace was removed",) if outcome.created else ())
                failed = outcome.failed
                if not outcome.repaired and not outcome.created:
                    break
                self.kernel.forget(namespace)
            self.note(namespace, failed)
            if failed:
                self.applied.pop(namespace, None)
            return Repaired(plan=plan, words=words, created=created, failed=bool(failed))

    async def loses(self, plan: NamespacePlan) -> bool:
        """Whether the kernel has anything of ours that is not in the plan, or not so."""
        try:
            losses = await self._threads.run(self.kernel.losses, plan)
        except (HivemeshError, OSError):
            return False  # putting it right will say what is wrong
        if losses and plan.namespace not in self.waiting:
            self.waiting.add(plan.namespace)
            words = [str(loss) for loss in losses]
            log.info("a manager has a moment to speak before this goes: %s", told(words, len(words)))
        return bool(losses)

    async def differences(self, plans: list[NamespacePlan], claimed: Callable[[], Set[str]]) -> list[Difference]:
        """What the kernel lacks or has too much; namespaces without a plan are no surplus while they are `claimed`."""
        found: list[Difference] = []
        for plan in plans:
            async with self._lock(plan.namespace):
                try:
                    found += await self._threads.run(self.kernel.differences, plan)
                except (HivemeshError, OSError) as error:
                    found.append(Difference(namespace=plan.namespace, text=str(error)))
        ours = await self.ours()
        expected = claimed() | {plan.namespace for plan in plans}
        extra = [name for name in ours if name not in expected]
        return found + [Difference(namespace=name, text="nobody wants this namespace", extra=True) for name in extra]

    async def ours(self) -> list[str]:
        """Those with our mark, and what is left of such."""
        return await self._threads.run(marked)

    def note(self, namespace: str, failed: tuple[str, ...]) -> None:
        """Remember what failed, and log it once."""
        if failed and self.failures.get(namespace) != failed:
            log.warning("%s is not as it should be: %s", namespace or "the host", "; ".join(failed))
        if failed:
            self.failures[namespace] = failed
        else:
            self.failures.pop(namespace, None)

    def _lock(self, namespace: str) -> asyncio.Lock:
        return self._locks.setdefault(namespace, asyncio.Lock())


def marked() -> list[str]:
    """As `Namespaces.ours`; it blocks."""
    found = [name for name in netns.leftovers() if fits_namespace(name)]
    for name in netns.names():
        with contextlib.suppress(OSError):
            if netns.mark_of(name).startswith(MARK):
                found.append(name)
    return found
