"""A machine in no swarm: plain containers on networks of its own, and nothing else.

Nothing is done to the machine until somebody wants such a network, or did so before.
"""

import asyncio
from pathlib import Path

from hivemesh.agent.attached import AttachedContainers
from hivemesh.agent.files import SandboxFiles
from hivemesh.agent.grants import Grants
from hivemesh.agent.leases import Leases
from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.names import NodeNames, Resolver
from hivemesh.agent.namespaces import Kernel
from hivemesh.agent.network import NodeNetwork
from hivemesh.clock import Clock
from hivemesh.cnm.node import parts_of
from hivemesh.engine.api import Engine


class PlainNode:
    """What a worker is to a machine in a swarm."""

    def __init__(
        self,
        *,
        engine: Engine,
        applier: Kernel,
        resolver: Resolver,
        directory: Path,
        clock: Clock,
        local: LocalNetworks,
    ) -> None:
        """`directory` holds what is known of networks and containers of this node."""
        files = SandboxFiles(directory / "files")
        self._local = local
        self.network = NodeNetwork(
            applier,
            NodeNames(resolver, files, lambda revision, pending: None),
            vtep=None,
            leases=Leases(directory / "leases.json"),
            clock=clock,
            lost=lambda task: None,
            local=local,
        )
        self.attached = AttachedContainers(
            sandboxes=self.network,
            files=files,
            managers=Grants(local, None),
            engine=engine,
            directory=directory,
            clock=clock,
            local=local,
        )

    async def adopted(self) -> None:
        """Until the containers that run here have what is theirs, on a machine that has any."""
        if self._local.needed.is_set():
            await self.attached.adopted()

    async def run(self) -> None:
        """Cancelling leaves network and containers as they are, for the next one to adopt."""
        await self._local.needed.wait()
        self.network.want(parts_of({}), 0, sweep=True)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.network.run(), name="network")
            tasks.create_task(self.attached.run(), name="plain containers")
