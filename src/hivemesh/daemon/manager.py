"""The manager's side of a node: the store, the control loops and the cluster port."""

import asyncio
from pathlib import Path

from hivemesh.agent.identity import Identity, store_key
from hivemesh.clock import Clock
from hivemesh.control.dispatcher import Dispatcher
from hivemesh.control.logs import LogDesk
from hivemesh.control.manager import Manager
from hivemesh.control.server import ClusterServer
from hivemesh.pki.seal import Seal
from hivemesh.store.sealed import SealedStore
from hivemesh.store.sqlite import SqliteStore
from hivemesh.store.tables import Tables


def store_directory(data_dir: Path) -> Path:
    """Where a manager keeps the cluster's state."""
    return data_dir / "store"


class ManagerRole:
    """Runs while this node is a manager. `manager` is the facade once the state is loaded."""

    def __init__(self, identity: Identity, clock: Clock) -> None:
        self._identity = identity
        self._clock = clock
        self.manager: Manager | None = None

    async def run(self, ready: asyncio.Event) -> None:
        """Until cancelled. Raises `Unavailable` or `Invalid` when the store or the port cannot be had."""
        seal = Seal(store_key(self._identity.data_dir))
        store = SealedStore(await SqliteStore.open(store_directory(self._identity.data_dir)), seal)
        try:
            tables = Tables(store)
            await tables.load()
            manager = Manager(tables, self._clock)
            dispatcher = Dispatcher(tables, self._clock)
            manager.logs = LogDesk(tables, dispatcher.tell, self._clock)
            server = ClusterServer(
                manager,
                dispatcher,
                certificate=self._identity.certificate,
                listen=self._identity.facts.listen,
                clock=self._clock,
            )
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(tables.run(), name="tables")
                tasks.create_task(manager.run(), name="control loops")
                tasks.create_task(dispatcher.run(), name="dispatcher")
                tasks.create_task(server.run(), name="cluster port")
                await server.ready.wait()
                self.manager = manager
                ready.set()
        finally:
            self.manager = None
            await store.close()
