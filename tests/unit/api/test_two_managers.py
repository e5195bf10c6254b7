"""Two managers lose the swarm when they lose one: whoever makes them is told."""

import sys

from api_harness import manager_api

from hivemesh.model.ids import NodeID
from hivemesh.model.node import Node, NodeSpec

WORDS = "WARNING: Running Swarm in a two-manager configuration. This configuration provides no fault tolerance"


async def test_whoever_makes_two_managers_is_warned_and_again_in_info() -> None:
    async with manager_api() as api:
        assert api.machine.manager is not None
        tables = api.machine.manager.tables

        async def cli(*words: str) -> str:
            done = await api.run(sys.executable, "-m", "hivemesh.cli", *words)
            assert done.code == 0, done
            return done.err

        await tables.update(lambda tx: tx.put(Node(id=NodeID("second"), spec=NodeSpec())))
        assert WORDS in await cli("node", "promote", "second")
        assert WORDS in (await api.run("docker", "info")).err
        assert WORDS not in await cli("node", "demote", "second")
