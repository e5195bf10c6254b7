"""What clients get: swarm objects of the Docker Engine API, as plain dicts ready for JSON."""

import base64
from collections.abc import Callable, Container, Iterable
from datetime import UTC, datetime
from typing import Any

from hivemesh.model.addr import MAC, Address, Interface, parse_prefix
from hivemesh.model.cluster import Cluster
from hivemesh.model.ids import EndpointID, NetworkID, NodeID
from hivemesh.model.network import VNI_OPTION, Network, NetworkSpec, Subnet
from hivemesh.model.node import Node
from hivemesh.model.secret import Payload, Secret
from hivemesh.model.service import EndpointSpec, Service, ServiceSpec, TaskSpec, UpdateStatus
from hivemesh.model.task import Task, TaskState
from hivemesh.wire import codec
from hivemesh.wire.insight import Host, Insight

Json = dict[str, Any]

ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time, which its clients know as "never"."""


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC; 0 is Go's zero time."""
    if not seconds:
        return ZERO_TIME
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _meta(thing: Cluster | Node | Network | Service | Task | Payload) -> Json:
    return {
        "ID": thing.id,
        "Version": {"Index": thing.version},
        "CreatedAt": timestamp(thing.created),
        "UpdatedAt": timestamp(thing.updated or thing.created),
    }


# --- secrets and configs ----------------------------------------------------------------------------------------


def payload(value: Payload) -> Json:
    """A config; or a secret, without its data."""
    spec: Json = {"Name": value.spec.name, "Labels": value.spec.labels}
    if not isinstance(value, Secret):
        spec["Data"] = base64.b64encode(value.spec.data).decode()
    if value.spec.templating is not None:
        spec["Templating"] = codec.to_builtins(value.spec.templating)
    return _meta(value) | {"Spec": spec}


# --- services and tasks -----------------------------------------------------------------------------------------


def task_spec(spec: TaskSpec) -> Json:
    """`TaskTemplate` and a task's `Spec`: clients follow `ContainerSpec` without asking whether it is there."""
    answer: Json = codec.to_builtins(spec)
    answer.setdefault("ContainerSpec", {}).setdefault("Image", "")
    for name in ("Resources", "Placement", "RestartPolicy"):
        answer.setdefault(name, {})
    answer.setdefault("ForceUpdate", 0)
    answer.setdefault("Runtime", "container")
    return answer


def endpoint_spec(spec: EndpointSpec) -> Json:
    answer: Json = codec.to_builtins(spec)
    return {"Mode": spec.mode, **answer}


def service_spec(spec: ServiceSpec) -> Json:
    answer: Json = codec.to_builtins(spec)
    answer.setdefault("Labels", {})
    answer["TaskTemplate"] = task_spec(spec.task_template)
    answer["Mode"] = _mode(spec)
    answer["EndpointSpec"] = endpoint_spec(spec.endpoint_spec)
    return answer


def _mode(spec: ServiceSpec) -> Json:
    """With every number: clients follow them without asking whether they are there."""
    match spec.mode.name:
        case "global":
            return {"Global": {}}
        case "global-job":
            return {"GlobalJob": {}}
        case "replicated-job":
            at_once, total = spec.completions
            return {"ReplicatedJob": {"MaxConcurrent": at_once, "TotalCompletions": total}}
        case "replicated":
            return {"Replicated": {"Replicas": spec.replicas}}


def service_spec_with_defaults(spec: ServiceSpec) -> Json:
    """As `insertDefaults=true` asks: what was left out is written in."""
    answer = service_spec(spec)
    template, container = spec.task_template, spec.task_template.container_spec
    restart = template.restart_policy
    answer["TaskTemplate"]["ContainerSpec"].setdefault("StopGracePeriod", container.stop_grace_period)
    answer["TaskTemplate"]["RestartPolicy"] = {
        "Condition": restart.condition,
        "Delay": restart.delay,
        "MaxAttempts": restart.max_attempts,
        "Window": restart.window,
    }
    default = {
        "Parallelism": 1,
        "FailureAction": "pause",
        "Monitor": 5_000_000_000,
        "MaxFailureRatio": 0.0,
        "Order": "stop-first",
    }
    if not spec.is_job:
        answer.setdefault("UpdateConfig", dict(default))
        answer.setdefault("RollbackConfig", dict(default))
    return answer


def service(
    value: Service, tasks: Iterable[Task] | None = None, *, down: Container[NodeID | None] = (), defaults: bool = False
) -> Json:
    """A service; with `tasks` (all of its own) also `ServiceStatus`. What runs on nodes that are `down` is lost."""
    spec = service_spec_with_defaults if defaults else service_spec
    answer = _meta(value) | {"Spec": spec(value.spec)}
    if value.previous_spec is not None:
        answer["PreviousSpec"] = spec(value.previous_spec)
    ports = [codec.to_builtins(port) for port in value.ports]
    answer["Endpoint"] = {
        "Spec": endpoint_spec(value.spec.endpoint_spec),
        "Ports": ports,
        "VirtualIPs": [
            {"NetworkID": vip.network_id, "Addr": str(address)} for vip in value.vips for address in vip.addresses
        ],
    }
    if value.update_status is not None:
        answer["UpdateStatus"] = _update_status(value.update_status)
    if value.spec.is_job:
        answer["JobStatus"] = {"JobIteration": {"Index": value.iteration}, "LastExecution": timestamp(value.executed)}
    if tasks is not None:
        answer["ServiceStatus"] = _service_status(value, list(tasks), down)
    return answer


def _update_status(status: UpdateStatus) -> Json:
    return {
        "State": status.state,
        "StartedAt": timestamp(status.started),
        **({"CompletedAt": timestamp(status.completed)} if status.completed else {}),
        "Message": status.message,
    }


def _service_status(value: Service, tasks: list[Task], down: Container[NodeID | None]) -> Json:
    """What `service ls` counts."""
    present = [task for task in tasks if task.iteration == value.iteration]
    wanted = [task for task in present if task.desired <= TaskState.RUNNING]
    completed = sum(task.status.state == TaskState.COMPLETE for task in present)
    desired = {
        "replicated": value.spec.replicas,
        "global": len(wanted),
        "replicated-job": value.spec.completions[0],
        "global-job": len(wanted) - completed,
    }
    return {
        "RunningTasks": sum(task.status.state == TaskState.RUNNING and task.node_id not in down for task in tasks),
        "DesiredTasks": desired[value.spec.mode.name],
        "CompletedTasks": completed if value.spec.is_job else 0,
    }


def task(value: Task, network: Callable[[NetworkID], Network | None], service: Service | None = None) -> Json:
    """A task; `network` finds the networks it is attached to, `service` is the one it belongs to if that still is."""
    status = value.status
    is_job = service is not None and service.spec.is_job
    attachments = []
    for attachment in value.attachments:
        found = network(attachment.network_id)
        attachments.append(
            {
                "Network": cluster_network(found) if found else {"ID": attachment.network_id},
                "Addresses": [str(address) for address in attachment.addresses],
            }
        )
    container: Json = {"ContainerID": status.container_id, "PID": status.pid, "ExitCode": status.exit_code}
    answer = _meta(value) | {
        "Labels": {},
        "Spec": task_spec(value.spec),
        "ServiceID": value.service_id,
        **({"Slot": value.slot} if value.slot or is_job else {}),
        "Status": {
            "Timestamp": timestamp(status.timestamp),
            "State": status.state.name.lower(),
            "Message": status.message,
            **({"Err": status.err} if status.err else {}),
            **({"ContainerStatus": container} if status.container_id else {}),
            "PortStatus": {"Ports": [codec.to_builtins(p) for p in status.ports]} if status.ports else {},
        },
        "DesiredState": "complete" if is_job and value.desired == TaskState.RUNNING else value.desired.name.lower(),
        "NetworksAttachments": attachments,
    }
    if is_job:
        answer["JobIteration"] = {"Index": value.iteration}
    if value.node_id:
        answer["NodeID"] = value.node_id
    if value.generic:
        answer["GenericResources"] = codec.to_builtins(value.generic)
    return answer


# --- nodes and the swarm ----------------------------------------------------------------------------------------


def reachability(value: Node) -> str:
    """Of a manager."""
    return "unreachable" if value.state == "down" else "reachable"


def node(value: Node, tls: Json, leader: NodeID | None = None) -> Json:
    """A node as `node ls` and `node inspect` show it; `tls` is its `TLSInfo`."""
    about = value.description
    answer = _meta(value) | {
        "Spec": codec.to_builtins(value.spec),
        "Description": {
            "Hostname": about.hostname,
            "Platform": {"Architecture": about.architecture, "OS": about.os},
            "Resources": {
                "NanoCPUs": about.nano_cpus,
                "MemoryBytes": about.memory_bytes,
                **({"GenericResources": codec.to_builtins(about.generic)} if about.generic else {}),
            },
            "Engine": {
                "EngineVersion": about.engine_version,
                "Labels": about.labels,
                "Plugins": [{"Type": "Network", "Name": "bridge"}, {"Type": "Network", "Name": "overlay"}],
            },
            "TLSInfo": tls,
        },
        "Status": {"State": value.state, "Message": value.message, "Addr": value.addr},
    }
    if value.manager_addr:
        answer["ManagerStatus"] = {
            "Leader": value.id == leader,
            "Reachability": reachability(value),
            "Addr": value.manager_addr,
        }
    return answer


def cluster_info(value: Cluster, tls: Json) -> Json:
    """The cluster without its tokens, as `/info` shows it; `tls` is its `TLSInfo`."""
    return _meta(value) | {
        "Spec": codec.to_builtins(value.spec),
        "TLSInfo": tls,
        "RootRotationInProgress": value.rotation is not None,
        "DefaultAddrPool": [str(pool) for pool in value.pools],
        "SubnetSize": value.subnet_size,
        "DataPathPort": value.data_path_port,
    }


def swarm(value: Cluster, tls: Json) -> Json:
    """`GET /swarm`."""
    return cluster_info(value, tls) | {"JoinTokens": {"Worker": value.worker_token, "Manager": value.manager_token}}


# --- networks ---------------------------------------------------------------------------------------------------


def _subnets(value: Network) -> list[Json]:
    if not value.subnets:
        return [codec.to_builtins(config) for config in value.spec.ipam]
    return [
        {
            "Subnet": str(subnet.prefix),
            **({"IPRange": str(subnet.ip_range)} if subnet.ip_range else {}),
            "Gateway": str(subnet.gateway),
            **({"AuxiliaryAddresses": found} if (found := _aside(value.spec, subnet)) else {}),
        }
        for subnet in value.subnets
    ]


def _aside(spec: NetworkSpec, subnet: Subnet) -> dict[str, str]:
    asked = [one for one in spec.ipam if one.subnet and parse_prefix(one.subnet) == subnet.prefix]
    return asked[0].auxiliary_addresses if asked else {}


def _driver_options(value: Network) -> dict[str, str]:
    return value.spec.options | ({VNI_OPTION: str(value.vni)} if value.vni is not None else {})


def cluster_network(value: Network) -> Json:
    """A network in the swarm objects' own shape, inside a task's attachments."""
    spec: NetworkSpec = value.spec
    return _meta(value) | {
        "Spec": {
            "Name": spec.name,
            "Labels": spec.labels,
            "DriverConfiguration": {"Name": spec.driver, "Options": spec.options},
            "IPv6Enabled": spec.ipv6,
            "Internal": spec.internal,
            "Attachable": spec.attachable,
            "Ingress": spec.ingress,
            "IPAMOptions": {"Driver": {"Name": "default"}},
            "Scope": "swarm",
        },
        "DriverState": {"Name": spec.driver, "Options": _driver_options(value)},
        "IPAMOptions": {"Driver": {"Name": "default"}, "Configs": _subnets(value)},
    }


def network(about: Insight) -> Json:
    """A network in the shape that `network ls` and `network inspect` share."""
    value = about.network
    return {
        "Name": value.spec.name,
        "Id": value.id,
        "Created": timestamp(value.created),
        "Scope": "swarm",
        "Driver": value.spec.driver,
        "EnableIPv4": True,
        "EnableIPv6": value.spec.ipv6 or any(subnet.prefix.version == 6 for subnet in value.subnets),
        "IPAM": {"Driver": "default", "Options": None, "Config": _subnets(value)},
        "Internal": value.spec.internal,
        "Attachable": value.spec.attachable,
        "Ingress": value.spec.ingress,
        "ConfigFrom": {"Network": value.spec.config_from},
        "ConfigOnly": False,
        "Containers": {},
        "Options": _driver_options(value),
        "Labels": value.spec.labels,
        "Peers": [{"Name": _peer_name(host), "IP": str(host.vtep)} for host in about.hosts],
    }


def _peer_name(host: Host) -> str:
    return f"{host.name}-{host.id[:10]}" if host.name else host.id[:10]


def _interface(addresses: Iterable[Interface], version: int) -> str:
    """With its prefix length."""
    return next((str(address) for address in addresses if address.version == version), "")


def _address(addresses: Iterable[Address | Interface], version: int) -> str:
    return next((str(address).partition("/")[0] for address in addresses if address.version == version), "")


def network_containers(about: Insight, here: NodeID | None) -> Json:
    """`Containers` of `network inspect`: the endpoints on the node `here`, by container id."""
    name = about.network.spec.name
    answer: Json = {}
    for member in about.members:
        if member.node == here and member.running:
            answer[member.container or member.endpoint] = _endpoint(
                member.name, member.endpoint, member.mac, member.addresses
            )
    for host in about.hosts:
        if host.id == here and host.own is not None:
            key, title = ("ingress-sbox", "ingress") if about.network.spec.ingress else (f"lb-{name}", name)
            answer[key] = _endpoint(f"{title}-endpoint", host.own.endpoint_id, host.own.mac, host.own.addresses)
    return answer


def _endpoint(name: str, identifier: EndpointID, mac: MAC, addresses: Iterable[Interface]) -> Json:
    return {
        "Name": name,
        "EndpointID": identifier,
        "MacAddress": mac,
        "IPv4Address": _interface(addresses, 4),
        "IPv6Address": _interface(addresses, 6),
    }


def network_services(about: Insight) -> Json:
    """`Services` of `network inspect --verbose`: who serves on the network, wherever it runs.

    Plain containers have no service: they stand under an empty name, as in Docker. `VIPv6` and `EndpointIPv6` are ours.
    """
    by_service: dict[str, list[Json]] = {}
    for member in about.members:
        if member.serving:
            by_service.setdefault(member.service, []).append(
                {
                    "Name": member.name,
                    "EndpointID": member.endpoint,
                    "EndpointIP": _address(member.addresses, 4),
                    **({"EndpointIPv6": v6} if (v6 := _address(member.addresses, 6)) else {}),
                    "Info": {"Host IP": member.host},
                }
            )
    answer: Json = {}
    for offer in about.services:
        answer[offer.name] = {
            "VIP": _address(offer.vips, 4),
            **({"VIPv6": v6} if (v6 := _address(offer.vips, 6)) else {}),
            "Ports": [f"Target: {port.target_port}, Publish: {port.published_port}" for port in offer.ports],
            "LocalLBIndex": 0,
            "Tasks": by_service.get(offer.service, []),
        }
    if "" in by_service:
        answer[""] = {"VIP": "", "Ports": [], "LocalLBIndex": 0, "Tasks": by_service[""]}
    return answer


def network_status(about: Insight) -> Json:
    """`Status` of `network inspect` (API 1.52): addresses in use and free."""
    return {
        "IPAM": {
            "Subnets": {
                usage.subnet: {"IPsInUse": usage.in_use, "DynamicIPsAvailable": usage.free} for usage in about.usage
            }
        }
    }
