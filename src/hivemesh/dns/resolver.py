"""What the resolver was told, in force: tables of networks, and a listener in each sandbox that uses them."""

import contextlib
from collections.abc import Callable

from hivemesh.dns.answer import Answers
from hivemesh.dns.server import Listener, Shared, Sockets, identity, open_sockets
from hivemesh.dns.tables import Scope, renamed
from hivemesh.model.ids import NetworkID
from hivemesh.wire.resolver import Forget, Names, Renames, Sandbox

_ScopeKey = tuple[tuple[NetworkID, ...], bool, bool]


class Resolver:
    """Each call is in force for every question read after it.

    Sandboxes that see the same share their ready answers. `on_gone` hears of sandboxes that were closed.
    """

    def __init__(self, shared: Shared, on_gone: Callable[[str], None] = lambda sandbox: None) -> None:
        self.tables: dict[NetworkID, Names] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        self.listeners: dict[str, Listener] = {}
        self.failed: dict[str, str] = {}  # sandboxes that cannot ask, and why
        self._identities: dict[str, tuple[int, int]] = {}
        self._answers: dict[_ScopeKey, Answers] = {}
        self._shared = shared
        self._on_gone = on_gone

    def know(self, names: Names) -> None:
        """A network's table, new or changed."""
        if self.tables.get(names.network) != names:
            self.tables[names.network] = names
            self._renew(names.network)

    def rename(self, what: Renames) -> None:
        """Changes of a table that is known. Raises `ValueError` when it is not."""
        known = self.tables.get(what.network)
        if known is None:
            raise ValueError(f"changes of the names of network {what.network}, which is not known")
        self.know(renamed(known, what))

    def admit(self, sandbox: Sandbox) -> None:
        """A sandbox, new or changed. That it cannot be listened in is told by `failed`."""
        listener = self.listeners.get(sandbox.id)
        if listener is not None and not self._is_same_namespace(sandbox):
            self._close(sandbox.id)
            listener = None
        self.sandboxes[sandbox.id] = sandbox
        if listener is None:
            self._open(sandbox)
        elif listener.sandbox != sandbox:
            listener.sandbox, listener.answers = sandbox, self._answers_of(sandbox)

    def adopt(self, sandbox: Sandbox, sockets: Sockets) -> Listener:
        """A sandbox with sockets that another process opened; it still has to be started."""
        self.sandboxes[sandbox.id] = sandbox
        listener = Listener(sandbox, self._answers_of(sandbox), sockets, self._shared)
        self.listeners[sandbox.id] = listener
        with contextlib.suppress(OSError):  # gone meanwhile: whatever comes to this path is another one
            self._identities[sandbox.id] = identity(sandbox.netns)
        return listener

    def forget(self, what: Forget) -> None:
        """Networks and sandboxes that are gone, if they were known."""
        for sandbox in what.sandboxes:
            self._close(sandbox)
            self.sandboxes.pop(sandbox, None)
            self.failed.pop(sandbox, None)
        for network in what.networks:
            if self.tables.pop(network, None) is not None:
                self._renew(network)
        self._drop_unused()

    def keep_only(self, networks: set[NetworkID], sandboxes: set[str]) -> None:
        """Forget all others."""
        gone = Forget(networks=tuple(self.tables.keys() - networks), sandboxes=tuple(self.sandboxes.keys() - sandboxes))
        self.forget(gone)

    def retry(self) -> None:
        """Try again to listen where that failed."""
        for sandbox in list(self.failed):
            self._open(self.sandboxes[sandbox])

    def close(self) -> None:
        """Everywhere."""
        for sandbox in list(self.listeners):
            self._close(sandbox)

    def _open(self, sandbox: Sandbox) -> None:
        try:
            at = identity(sandbox.netns)
            sockets = open_sockets(sandbox.netns)
        except OSError as error:
            self.failed[sandbox.id] = f"cannot listen in {sandbox.netns}: {error.strerror or error}"
            return
        self.failed.pop(sandbox.id, None)
        self._identities[sandbox.id] = at
        self.listeners[sandbox.id] = listener = Listener(sandbox, self._answers_of(sandbox), sockets, self._shared)
        listener.start()

    def _close(self, sandbox: str) -> None:
        self._identities.pop(sandbox, None)
        if (listener := self.listeners.pop(sandbox, None)) is not None:
            listener.close()
            self._on_gone(sandbox)

    def _is_same_namespace(self, sandbox: Sandbox) -> bool:
        try:
            return identity(sandbox.netns) == self._identities.get(sandbox.id)
        except OSError:
            return True  # it lost its name, and may get it back: our sockets hold it

    def _answers_of(self, sandbox: Sandbox) -> Answers:
        key = (sandbox.networks, sandbox.forward, sandbox.ndots)
        if (known := self._answers.get(key)) is None:
            tables = tuple(self.tables[network] for network in sandbox.networks if network in self.tables)
            known = self._answers[key] = Answers(Scope(tables, sandbox.forward, sandbox.ndots))
        return known

    def _renew(self, network: NetworkID) -> None:
        for key in [key for key in self._answers if network in key[0]]:
            del self._answers[key]
        for listener in self.listeners.values():
            if network in listener.sandbox.networks:
                listener.answers = self._answers_of(listener.sandbox)

    def _drop_unused(self) -> None:
        used = {id(listener.answers) for listener in self.listeners.values()}
        self._answers = {key: answers for key, answers in self._answers.items() if id(answers) in used}
