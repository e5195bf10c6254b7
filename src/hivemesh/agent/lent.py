"""Networks of the swarm that each node makes itself, from its own settings (`--scope swarm --config-from`).

Managers say who is on such a network; this node makes it when the first comes, gives the addresses, and removes it
after the last. What it gave is kept on disk: a container that outlives the daemon keeps its address.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from hivemesh.agent.local import LocalNetworks
from hivemesh.agent.private import write_private
from hivemesh.cnm import local
from hivemesh.model.ids import NetworkID, TaskID
from hivemesh.model.local import LocalSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire import codec
from hivemesh.wire.control import LocalNetworkItem

log = logging.getLogger("hivemesh.local")

Places = dict[TaskID, tuple[Attachment, ...]]


class LentNetworks:
    """This node's, while it is in its swarm."""

    def __init__(self, networks: LocalNetworks, path: Path) -> None:
        self._networks = networks
        self._path = path
        self._places = self._load()

    def complete(self, task: Task, items: Mapping[NetworkID, LocalNetworkItem]) -> Task:
        """`task` with addresses on the networks in `items` that it is on, which are made if they are not here.

        Raises what `LocalNetworks.create` and `cnm.local.attachment` raise; then nothing is kept for it.
        """
        before = {attachment.network_id: attachment for attachment in self._places.pop(task.id, ())}
        given: list[Attachment] = []
        try:
            for attachment in task.attachments:
                if attachment.network_id in items:
                    item = items[attachment.network_id]
                    given.append(self._place(task.id, attachment, item, before.get(item.id)))
        except BaseException:
            self._save()
            self._networks.take_back(items)
            raise
        self._places[task.id] = tuple(given)
        self._save()
        by_network = {attachment.network_id: attachment for attachment in given}
        attachments = tuple(by_network.get(one.network_id, one) for one in task.attachments)
        placed = msgspec.structs.replace(task, attachments=attachments)
        self._networks.hold(placed, quiet=True)
        return placed

    def release(self, task: TaskID) -> None:
        """It is on none of them any more; one that was not is fine."""
        gone = self._places.pop(task, None)
        if gone is not None:
            self._networks.release(task)
            self._save()
            self._networks.take_back(one.network_id for one in gone if not self._wanted(one.network_id))

    def keep(self, tasks: Collection[TaskID]) -> None:
        """Forget what was given to any other, who is not there any more."""
        for task in self._places.keys() - set(tasks):
            self.release(task)
        self._networks.take_back(network for network in self._networks.lent if not self._wanted(network))

    def dissolve(self) -> None:
        """The node leaves its swarm."""
        self.keep(())

    def _place(
        self, task: TaskID, attachment: Attachment, item: LocalNetworkItem, before: Attachment | None
    ) -> Attachment:
        network = self._networks.lend(item.id, LocalSpec.of(item.spec))
        if before is not None and {one.network for one in before.addresses} == set(network.prefixes):
            return msgspec.structs.replace(before, endpoint_id=attachment.endpoint_id)
        held = [one for places in self._places.values() for one in places if one.network_id == network.id]
        held += [one for of, one in self._networks.members(network.id) if of.id != task and one not in held]
        cursor = self._networks.cursor
        return local.attachment(network, held, endpoint=attachment.endpoint_id, cursor=cursor)

    def _wanted(self, network: NetworkID) -> bool:
        """Somebody has a place there, though it may not be up."""
        return any(one.network_id == network for places in self._places.values() for one in places)

    def _save(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, codec.to_json(self._places), durable=False)
        except OSError as error:
            log.warning("cannot keep which addresses this node gave to tasks: %s", error)

    def _load(self) -> Places:
        try:
            return codec.from_json(self._path.read_bytes(), Places)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            log.error("cannot read %s, tasks may get other addresses: %s", self._path, error)
            return {}
