"""Connections to backends that left end at once: the kernel forgets them, after its rules name nobody who is gone.

Whom they may lead to is known in `departures.py`. What is forgotten: entries of conntrack, of IPVS, and sockets that
were led to a backend when they were connected.
"""

import logging
from collections.abc import Callable, Collection
from typing import ParamSpec

from hivemesh.agent.departures import Departures
from hivemesh.agent.threads import KernelThreads
from hivemesh.cnm.node import Sandbox, ViewParts
from hivemesh.kernel import conntrack, ipvs, sockdiag
from hivemesh.kernel.api import HOST
from hivemesh.model.addr import Address

log = logging.getLogger("hivemesh.network")

P = ParamSpec("P")


class Connections:
    """`by_socket` says whether sockets are led to backends on this machine."""

    def __init__(self, threads: KernelThreads, by_socket: Callable[[], bool]) -> None:
        self._departures = Departures()
        self._threads = threads
        self._by_socket = by_socket

    async def follow(self, view: ViewParts, sandboxes: Collection[Sandbox]) -> None:
        """Nobody goes on talking to a backend that left: after the rules say so, for the next packet asks them."""
        for departed in self._departures.since_last(view, sandboxes):
            await self.forget(departed.namespace, udp=departed.udp, every=departed.every)

    async def forget_strangers(self, view: ViewParts, sandboxes: Collection[Sandbox]) -> None:
        """Of what an earlier daemon left: whoever departed since then."""
        for left in self._departures.strangers(view, sandboxes):
            try:
                count = await self._threads.run(
                    conntrack.forget_strangers, left.namespace, left.within, known=left.known, backends=left.backends
                )
            except FileNotFoundError:  # the namespace is gone again
                continue
            except OSError as error:
                log.warning("cannot forget connections of %s to whoever left before: %s", left.namespace, error)
                continue
            if count:
                log.info("%s: forgot %d connections to tasks that left before we looked", left.namespace, count)
            await self._end(sockdiag.end_strangers, left.namespace, left.within, known=left.known)

    async def forget(self, namespace: str, *, udp: Collection[Address], every: Collection[Address] = ()) -> None:
        """Those of `namespace` that lead to `udp` by UDP, and to `every` by any protocol."""
        try:
            await self._threads.run(conntrack.forget, namespace, udp=udp, every=every)
            await self._threads.run(ipvs.forget, namespace, every)
        except FileNotFoundError:  # the namespace is gone
            return
        except OSError as error:
            log.warning("cannot forget connections of %s to backends that left: %s", namespace or "the host", error)
        if every and namespace != HOST:
            await self._end(sockdiag.end, namespace, every)

    async def _end(self, how: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> None:
        """Of sockets that were led to a backend: there is nothing to forget, but nobody would answer them."""
        if not self._by_socket():
            return
        try:
            await self._threads.run(how, *args, **kwargs)
        except FileNotFoundError:  # the namespace
            pass
        except OSError as error:
            log.warning("cannot end connections to backends that left: %s", error)
