"""Room in an etcd of our own: each manager looks after the file of the member beside it.

etcd keeps every revision until it is compacted, never gives back to the disk what became free in its file, and once a
file reaches its quota raises an alarm, with which all members refuse every write, deletions included. What is due then
is what its manual asks of an administrator, and loses nothing but history: compact, defragment, disarm.
"""

import asyncio
import logging

from hivemesh.model.errors import HivemeshError
from hivemesh.store.etcdapi import EtcdClient, Status

log = logging.getLogger("hivemesh.store")

QUOTA = 2 << 30
"""Bytes a member's file may have: etcd's own default."""
PERIOD = 5.0
"""Seconds between looks, which cost two questions to the member on this machine."""
LOOSE = 0.5
"""The part of the quota from which on a file that is more than half empty is made smaller before it has to be."""
ENOUGH = 0.9
"""The part of the quota that may be taken for writes to be let in again."""
NO_SPACE = "NOSPACE"


async def keep_room(client: EtcdClient, quota: int = QUOTA, period: float = PERIOD) -> None:
    """Until cancelled. `client` speaks to one member only."""
    said = ""
    while True:
        try:
            said = await make_room(client, quota, said)
        except HivemeshError as error:  # it is down, or the majority is: others see to that
            log.debug("the store's room: %s", error)
        await asyncio.sleep(period)


async def make_room(client: EtcdClient, quota: int, said: str = "") -> str:
    """One look. Returns what cannot be helped, empty when all is well; logs it unless `said` before."""
    alarms = [alarm for alarm in await client.alarms() if alarm.kind == NO_SPACE]
    status = await client.status()
    if not alarms:
        if status.size > LOOSE * quota and status.used < status.size / 2:
            await client.defragment()
        return ""
    await client.compact(status.header.revision)
    await client.defragment()
    members = {member.ID for member in await client.members()}
    after = await client.status()
    problem = _problem(after, quota)
    for alarm in alarms:
        if alarm.member not in members or (alarm.member == after.header.member_id and not problem):
            await client.disarm(alarm)
            log.warning("etcd had no room left: its history is forgotten, and %d bytes remain in its file", after.size)
    if problem and problem != said:
        log.error("%s", problem)
    return problem


def _problem(status: Status, quota: int) -> str:
    if status.size <= ENOUGH * quota:
        return ""
    return (
        f"the store's etcd holds {status.used} bytes, and its quota is {quota}: writes are refused; the swarm has more "
        "to know than a store takes"
    )
