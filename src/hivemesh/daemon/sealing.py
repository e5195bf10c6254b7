"""A manager's keys at rest follow the settings of the swarm: sealed with its unlock key, or in the clear."""

import logging
from collections.abc import Callable

from hivemesh.agent.identity import Identity
from hivemesh.clock import Clock
from hivemesh.store.tables import Tables

log = logging.getLogger("hivemesh.managers")

RETRY = 1.0
"""Seconds until the files are written again after the disk refused."""


async def keep_sealed(tables: Tables, identity: Callable[[], Identity], clock: Clock) -> None:
    """Until cancelled. Each manager does this with its own files."""
    while True:
        revision = tables.view.revision
        current, wanted = identity(), tables.view.cluster.unlock_key
        if current.facts.role == "manager" and current.vault.unlock_key != wanted:
            try:
                current.lock(wanted)
            except OSError as error:
                log.error("cannot write this manager's keys: %s; trying again", error)
                await clock.sleep(RETRY)
                continue
            log.info("this manager's keys are %s", "sealed: it starts locked from now on" if wanted else "in the clear")
        await tables.changed(revision)
