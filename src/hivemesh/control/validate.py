"""Refusing bad input before anything is written: pure checks that raise `Invalid`, `Conflict` or `Unsupported`.

Names, limits and texts follow Docker's, since tools match on them; `api/` adds the control plane's prefixes.
"""

import re
from collections.abc import Iterable

import msgspec

from hivemesh.control import addresses, balance, constraints, containerspec, ports, secrets
from hivemesh.engine import logdriver
from hivemesh.model.errors import Conflict, Invalid, NotFound, Unsupported
from hivemesh.model.generic import MAX_COUNT, GenericResource
from hivemesh.model.network import Network
from hivemesh.model.service import (
    NetworkAttachmentConfig,
    Reservations,
    ResourceLimits,
    Resources,
    Service,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from hivemesh.store.tables import View

NAME = re.compile(r"[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*")
NAME_LENGTH = 63
MAX_REPLICAS = 10_000
"""Of one service. An overlay subnet has fewer addresses; a slip of the finger should not fill the store."""
MIN_NANO_CPUS = 1_000_000
MIN_MEMORY = 4 << 20
PREDEFINED = ("bridge", "host", "none", "default")


def name(text: str, what: str) -> None:
    """The rule for names of services, networks and the cluster."""
    if not text:
        raise Invalid(f"{what} name must be provided")
    if len(text) > NAME_LENGTH or not NAME.fullmatch(text):
        raise Invalid(
            f"invalid {what} name {text!r}: use letters, digits, - and _, at most {NAME_LENGTH} characters, beginning "
            "and ending with a letter or digit"
        )


def service_spec(view: View, spec: ServiceSpec, current: Service | None = None) -> ServiceSpec:
    """`spec` with its networks as ids. `current` is the service being updated."""
    name(spec.name, "service")
    for other in view.all(Service):
        if other.spec.name == spec.name and (current is None or other.id != current.id):
            raise Conflict(f"name conflicts with an existing object: service {spec.name} already exists")
    _mode(spec)
    balance.check_labels(spec.labels, balance.OF_SERVICES)
    balance.balance_of(spec.labels)
    _template(spec.task_template)
    secrets.check_references(view, spec.task_template.container_spec)
    _update(spec.update_config, "UpdateConfig")
    _update(spec.rollback_config, "RollbackConfig")
    if spec.rollback_config is not None and spec.rollback_config.failure_action == "rollback":
        raise Invalid("RollbackConfig: a rollback that fails is not rolled back: use pause or continue")
    ports.check(view, spec, current)
    networks = tuple(_networks(view, spec.task_template.networks))
    spec = msgspec.structs.replace(spec, task_template=msgspec.structs.replace(spec.task_template, networks=networks))
    addresses.check(view, spec, current)
    _published(view, spec)
    return spec


def _mode(spec: ServiceSpec) -> None:
    counts = [("Replicas", spec.replicas)]
    if spec.mode.replicated_job is not None:
        counts = list(zip(("MaxConcurrent", "TotalCompletions"), spec.completions, strict=True))
    for field, count in counts:
        if not 0 <= count <= MAX_REPLICAS:
            raise Invalid(f"{field}: {count} is out of range: use 0 to {MAX_REPLICAS}")
    if spec.is_job and (spec.update_config or spec.rollback_config):
        raise Invalid("Jobs may not have an update config")
    if spec.mode.name != "replicated" and spec.task_template.placement.max_replicas:
        raise Invalid("Placement: MaxReplicas is for replicated services")


def _template(template: TaskSpec) -> None:
    containerspec.check(template.container_spec)
    for limits, what in (
        (template.resources.limits, "Resources.Limits"),
        (template.resources.reservations, "Resources.Reservations"),
    ):
        if limits is not None:
            _resources(limits, what)
    _swap(template.resources)
    if template.log_driver is not None:
        logdriver.configuration(template.log_driver)
    policy = template.restart_policy
    for value, field in ((policy.delay, "Delay"), (policy.window, "Window"), (policy.max_attempts, "MaxAttempts")):
        if value < 0:
            raise Invalid(f"TaskSpec: restart-{field.lower()} cannot be negative")
    if template.placement.max_replicas < 0:
        raise Invalid("Placement: MaxReplicas cannot be negative")
    for text in template.placement.constraints:
        constraints.parse(text)
    for preference in template.placement.preferences:
        over = preference.spread.spread_descriptor if preference.spread is not None else ""
        if not constraints.is_known(over):
            known = ", ".join(constraints.ATTRIBUTES)
            raise Invalid(
                f"Placement: cannot spread over {over!r}: use node.labels.NAME, engine.labels.NAME or one of {known}"
            )


def _generic(resources: Iterable[GenericResource]) -> None:
    """A task asks for a number of each kind; which ones it gets is the scheduler's choice."""
    for resource in resources:
        asked = resource.discrete_resource_spec
        if asked is None:
            kind = resource.named_resource_spec.kind if resource.named_resource_spec is not None else ""
            raise Invalid(f"invalid argument for resource {kind}: ask for a number of them, such as {kind or 'GPU'}=1")
        if not asked.kind or not 0 <= asked.value <= MAX_COUNT:
            raise Invalid(f"invalid argument for resource {asked.kind}: expected a name and a count, not {asked.value}")


def _published(view: View, spec: ServiceSpec) -> None:
    """The host has no way to a container on a macvlan network, and its replies none to the host."""
    if not any(port.publish_mode == "host" for port in spec.endpoint_spec.ports):
        return
    for attachment in spec.task_template.networks:
        network = view.get(Network, attachment.target)
        if network is not None and network.spec.driver == "macvlan":
            raise Unsupported(
                f"EndpointSpec.Ports: mode host is not supported on network {network.spec.name} of driver macvlan: "
                "its containers are reached at their own addresses: leave the port out, or use mode ingress"
            )


def _resources(limits: ResourceLimits | Reservations, what: str) -> None:
    if limits.nano_cpus and limits.nano_cpus < MIN_NANO_CPUS:
        raise Invalid(f"{what}: invalid cpu value {limits.nano_cpus / 1e9:g}: Must be at least {MIN_NANO_CPUS / 1e9:g}")
    if limits.memory_bytes and limits.memory_bytes < MIN_MEMORY:
        raise Invalid(f"{what}: invalid memory value {limits.memory_bytes}: Must be at least 4MiB")
    if isinstance(limits, Reservations):
        _generic(limits.generic_resources)
    elif limits.pids < 0:
        raise Invalid(f"{what}: invalid pids value {limits.pids}: must not be negative")


def _swap(resources: Resources) -> None:
    swap, swappiness = resources.swap_bytes, resources.memory_swappiness
    if swap is not None and (resources.limits is None or not resources.limits.memory_bytes):
        raise Invalid("Resources: SwapBytes needs a limit of memory: set Limits.MemoryBytes")
    if swap is not None and swap < -1:
        raise Invalid(f"Resources: invalid SwapBytes {swap}: use bytes, or -1 for no limit")
    if swappiness is not None and not -1 <= swappiness <= 100:
        raise Invalid(f"Resources: invalid MemorySwappiness {swappiness}: valid range is 0-100, and -1 for the default")


def _update(config: UpdateConfig | None, what: str) -> None:
    if config is None:
        return
    for value, field in ((config.parallelism, "parallelism"), (config.delay, "delay"), (config.monitor, "monitor")):
        if value < 0:
            raise Invalid(f"{what}: {field} cannot be negative")
    if not 0 <= config.max_failure_ratio <= 1:
        raise Invalid(f"{what}: update-maxfailureratio cannot be less than 0 or bigger than 1")


def _networks(view: View, attachments: Iterable[NetworkAttachmentConfig]) -> Iterable[NetworkAttachmentConfig]:
    seen = set()
    for attachment in attachments:
        found = view.get(Network, attachment.target) or next(
            (network for network in view.all(Network) if network.spec.name == attachment.target), None
        )
        if found is None and attachment.target in PREDEFINED:
            raise Unsupported(f"network {attachment.target} is not supported for services: use an overlay network")
        if found is None:
            raise NotFound(f"network {attachment.target} not found")
        if found.spec.ingress:
            raise Invalid(f"Service cannot be explicitly attached to the ingress network {found.spec.name!r}")
        if found.id in seen:
            raise Invalid(f"network {found.spec.name} is given twice")
        seen.add(found.id)
        for alias in attachment.aliases:
            containerspec.check_name(alias, f"alias of network {found.spec.name}")
        yield msgspec.structs.replace(attachment, target=found.id, aliases=tuple(dict.fromkeys(attachment.aliases)))
