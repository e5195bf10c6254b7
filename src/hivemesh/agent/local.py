"""Networks of this node alone, kept on disk; what plain containers hold on them is known from their own records.

The default bridge gets its subnet when somebody first asks for it, and its device with its first container: a node
that has no such containers is left as it was.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from hivemesh.agent.facts import GATEWAY_POOL
from hivemesh.agent.private import refused, write_private
from hivemesh.agent.repairs import Repairs
from hivemesh.clock import Clock
from hivemesh.cnm import local
from hivemesh.cnm.local import Around
from hivemesh.dataplane.plan.bridge import LOCAL_MARK
from hivemesh.kernel import machine, rtnl
from hivemesh.kernel.api import HOST
from hivemesh.model.addr import Prefix
from hivemesh.model.errors import Conflict, Forbidden, Invalid, NotFound, Unsupported
from hivemesh.model.ids import NetworkID, TaskID
from hivemesh.model.local import DEFAULT_BRIDGE, PREDEFINED, LocalNetwork, LocalSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire import codec

log = logging.getLogger("hivemesh.local")

Told = Callable[[str, str, dict[str, str]], None]
"""What happened (`create`, `connect`, `disconnect`, `destroy`, `prune`), to which network, and more about it."""


class _File(msgspec.Struct):
    networks: tuple[LocalNetwork, ...] = ()
    used_default: bool = False


class LocalNetworks:
    """This node's, for as long as the daemon lives, in a swarm or not."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.needed = asyncio.Event()
        """Somebody wants something of a network of this node: until then nothing is done to the machine."""
        self._path = directory / "networks.json"
        self._clock = clock
        self._networks: dict[NetworkID, LocalNetwork] = {}
        self._held: dict[TaskID, Task] = {}  # plain containers that are up
        self._used_default = False
        self._cursors: dict[Prefix, int] = {}
        self._listeners: list[Callable[[], None]] = []
        self._told: list[Told] = []
        self.repairs = Repairs()
        self._load()
        self._settled = dict(self._networks)  # as on disk, but for the default bridge

    # --- what there is ----------------------------------------------------------------------------------------------

    @property
    def all(self) -> tuple[LocalNetwork, ...]:
        """By name. The default bridge is among them. Raises `Exhausted` when there is no subnet for it."""
        self.default()
        return self.known_all

    @property
    def known_all(self) -> tuple[LocalNetwork, ...]:
        """As `all`, without the default bridge while nobody has asked for it."""
        return tuple(sorted(self._own, key=lambda network: network.name))

    @property
    def _own(self) -> list[LocalNetwork]:
        """Those of this node and of nobody else."""
        return [network for network in self._networks.values() if not network.lent]

    @property
    def in_kernel(self) -> tuple[LocalNetwork, ...]:
        """Those whose devices should be there, in the order in which they were made."""
        found = [
            n for n in self._networks.values() if not n.spec.config_only and (self._used_default or not n.is_default)
        ]
        return tuple(sorted(found, key=lambda network: (network.created, network.id)))

    @property
    def owners(self) -> frozenset[TaskID]:
        """Plain containers that hold something here: their sandboxes and files are nobody else's to remove."""
        return frozenset(self._held)

    def default(self) -> LocalNetwork:
        found = next((network for network in self._networks.values() if network.is_default), None)
        if found is None:
            found = local.default_bridge(_new_id(), self._clock.now(), self._around())
            self._networks[found.id] = self._settled[found.id] = found
            self._try_to_save()
        return found

    def known(self, identifier: NetworkID) -> LocalNetwork | None:
        """One that is here, lent ones too."""
        return self._networks.get(identifier)

    def find(self, ref: str) -> LocalNetwork:
        """By id, name, or beginning of the id. Raises `NotFound` or `Invalid` (ambiguous)."""
        if ref == DEFAULT_BRIDGE:
            return self.default()
        by_name = [n for n in self._own if ref in (n.id, n.name)]
        found = by_name or [n for n in self._own if ref and n.id.startswith(ref)]
        if not found:
            raise NotFound(f"network {ref} not found")
        if len(found) > 1:
            raise Invalid(f"network {ref} is ambiguous ({len(found)} matches found)")
        return found[0]

    def has(self, ref: str) -> bool:
        try:
            self.find(ref)
            return True
        except (NotFound, Invalid):
            return False

    def members(self, network: NetworkID) -> list[tuple[Task, Attachment]]:
        """Containers that are up on it."""
        return [(task, a) for task in self._held.values() for a in task.attachments if a.network_id == network]

    # --- making and removing ----------------------------------------------------------------------------------------

    def create(self, spec: LocalSpec) -> LocalNetwork:
        """Raises `Conflict`, `Forbidden`, `Invalid`, `Unsupported`, `NotFound` or `Exhausted`; then nothing is made."""
        local.check_name(spec.name)
        if any(network.name == spec.name for network in self._networks.values()):
            raise Conflict(f"network with name {spec.name} already exists")
        network = self._make(spec, _new_id())
        self._tell("create", network)
        return network

    def lend(self, identifier: NetworkID, spec: LocalSpec) -> LocalNetwork:
        """A network of the swarm, as this node has it; made if it is not here yet. Raises as `create`."""
        known = self._networks.get(identifier)
        if known is not None:
            return known
        if any(network.name == spec.name for network in self._networks.values()):
            raise Conflict(
                f"this node has a network of its own with the name {spec.name} of one of the swarm: remove that one"
            )
        return self._make(spec, identifier, lent=True)

    def take_back(self, networks: Iterable[NetworkID]) -> None:
        """Remove lent networks on which nobody is; those that are not here are fine."""
        gone = [i for i in networks if i in self._networks and self._networks[i].lent and not self.members(i)]
        for identifier in gone:
            del self._networks[identifier]
        if gone:
            self._changed()

    @property
    def lent(self) -> frozenset[NetworkID]:
        """Networks of the swarm that are here."""
        return frozenset(network.id for network in self._networks.values() if network.lent)

    def _make(self, spec: LocalSpec, identifier: NetworkID, *, lent: bool = False) -> LocalNetwork:
        if spec.config_from:
            spec = self._from(spec)
        if spec.driver == "macvlan" and not spec.config_only and not spec.options.get(local.PARENT):
            self._check_dummy()
        network = local.grant(spec, identifier, self._clock.now(), self._around())
        self._networks[network.id] = network = msgspec.structs.replace(network, lent=lent)
        self._changed()
        return network

    def remove(self, ref: str) -> None:
        """Raises `NotFound`, `Forbidden` (predefined, or in use in Docker's words) or `Conflict`."""
        if ref in PREDEFINED or (self.has(ref) and self.find(ref).is_default):
            raise Forbidden(f"{ref} is a pre-defined network and cannot be removed")
        network = self.find(ref)
        for task, attachment in self.members(network.id):
            raise Conflict(
                f"error while removing network: network {network.name} has active endpoints "
                f'(name:"{task.container}" id:"{attachment.endpoint_id[:12]}")'
            )
        dependants = [n.name for n in self._networks.values() if n.spec.config_from == network.name]
        if network.spec.config_only and dependants:
            raise Conflict(
                f"configuration network {network.name} is in use by network {dependants[0]}: remove that one first"
            )
        del self._networks[network.id]
        self._changed()
        self._tell("destroy", network)

    def _from(self, spec: LocalSpec) -> LocalSpec:
        """With the settings of the network it names."""
        try:
            source = self.find(spec.config_from)
        except NotFound:
            raise NotFound(f"configuration network {spec.config_from} not found") from None
        if not source.spec.config_only:
            raise Forbidden(f"{source.name} is not a configuration only network: it has to be made with --config-only")
        local.check_dependent(spec)
        return msgspec.structs.replace(
            source.spec, name=spec.name, driver=spec.driver, labels=source.spec.labels | spec.labels, config_only=False,
            config_from=source.name, attachable=spec.attachable,
        )  # fmt: skip

    def _check_dummy(self) -> None:
        if not machine.has_link_kind("dummy"):
            raise Unsupported(
                "a macvlan network without a parent needs dummy devices, which this kernel lacks: name an interface "
                f"with -o {local.PARENT}=, or use the bridge driver with --internal"
            )

    def _around(self) -> Around:
        networks = tuple(self._networks.values())
        links = rtnl.door(HOST).links()
        # a network that was just removed may still be in the kernel: its alias tells
        ours = {name for name, link in links.items() if link.alias.startswith(LOCAL_MARK)}
        taken = [prefix for link, prefix in machine.routes() if link not in ours and prefix.prefixlen]
        taken += [here.address.network for here in machine.addresses() if here.link not in ours]
        return Around(networks=networks, taken=taken, links=links.keys() - ours, pool=GATEWAY_POOL)

    # --- what containers hold ---------------------------------------------------------------------------------------

    def hold(self, task: Task, *, quiet: bool = False) -> None:
        """A container is up, on these networks of this node; it may have been on others before."""
        before = self._ids(task.id)
        self._held[task.id] = task
        self.needed.set()
        for attachment in task.attachments:
            for interface in attachment.addresses:
                if attachment.network_id in self._networks:
                    self._cursors[interface.network] = int(interface)
        now = self._ids(task.id)
        if not self._used_default and any(self._networks[i].is_default for i in now):
            self._used_default = True
            self._try_to_save()
        for identifier in () if quiet else before - now:
            self._tell("disconnect", self._networks[identifier], task.status.container_id)
        for identifier in () if quiet else now - before:
            self._tell("connect", self._networks[identifier], task.status.container_id)
        if before != now:
            self._wake()

    def release(self, task: TaskID) -> None:
        """It is up no more; one that was not is fine."""
        networks, held = self._ids(task), self._held.pop(task, None)
        if held is not None:
            for identifier in networks:
                self._tell("disconnect", self._networks[identifier], held.status.container_id)
            self._wake()

    def held_by(self, task: TaskID) -> Task | None:
        return self._held.get(task)

    @property
    def holders(self) -> Iterable[Task]:
        return self._held.values()

    @property
    def published(self) -> tuple[tuple[str, int], ...]:
        """Protocols and ports of this node that plain containers have."""
        return tuple(sorted({(port.protocol, port.port) for task in self._held.values() for port in task.local.ports}))

    def cursor(self, prefix: Prefix) -> int:
        """The last address of a subnet that was given to anybody."""
        return self._cursors.get(prefix, 0)

    def _ids(self, task: TaskID) -> set[NetworkID]:
        held = self._held.get(task)
        return {a.network_id for a in held.attachments if a.network_id in self._networks} if held else set()

    # --- who wants to know ------------------------------------------------------------------------------------------

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Called whenever networks, or who is on them, change. Returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def on_event(self, told: Told) -> None:
        self._told.append(told)

    def pruned(self, number: int) -> None:
        """So many networks were removed because nobody used them."""
        for told in self._told:
            told("prune", "", {"reclaimed": "0"})

    def _tell(self, action: str, network: LocalNetwork, container: str = "") -> None:
        attributes = {"name": network.name, "type": network.spec.driver}
        if container:
            attributes["container"] = container
        for told in self._told:
            told(action, network.id, attributes)

    def _wake(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    # --- on disk ----------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Raises `Unavailable` when the disk refuses; then everything is as it was."""
        try:
            self._save()
        except OSError as error:
            self._networks = dict(self._settled)
            raise refused(self._path, error) from error
        self._settled = dict(self._networks)
        self.needed.set()
        self._wake()

    def _try_to_save(self) -> None:
        """What the default bridge is need not be remembered: it is made anew."""
        try:
            self._save()
        except OSError as error:
            log.warning("%s", refused(self._path, error))

    def _save(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = _File(networks=tuple(self._networks.values()), used_default=self._used_default)
        write_private(self._path, codec.to_json(state), durable=False)

    def _load(self) -> None:
        try:
            state = codec.from_json(self._path.read_bytes(), _File)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.error("cannot read %s, networks of this node must be made anew: %s", self._path, error)
            self._path.replace(self._path.with_suffix(".broken"))
            return
        self._networks = {network.id: network for network in state.networks}
        self._used_default = state.used_default
        if self.in_kernel:
            self.needed.set()


def _new_id() -> NetworkID:
    """As Docker's: 64 hex digits."""
    return NetworkID(secrets.token_hex(32))
