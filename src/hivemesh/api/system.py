"""Ping, version, info: what every client asks first. None of them ever fails because of the swarm or the engine."""

import asyncio
import logging
import os
import platform
from typing import Any

from aiohttp import web

import hivemesh
from hivemesh.api import passthrough, tls
from hivemesh.api.http import MAX_VERSION, MIN_VERSION, answer, filters_of, local_of, truth_of, version_text
from hivemesh.api.local import LocalNode
from hivemesh.model.errors import HivemeshError, Invalid, Unsupported
from hivemesh.model.node import Node
from hivemesh.wire import codec
from hivemesh.wire.engine import objects

log = logging.getLogger("hivemesh.api")
routes = web.RouteTableDef()

ENGINE_PATIENCE = 5.0
"""Seconds that `/info` waits for the engine before it answers without it."""

TWO_MANAGERS = (
    "WARNING: Running Swarm in a two-manager configuration. This configuration provides no fault tolerance, and poses "
    "a high risk to lose control over the cluster. Add a third manager, or demote one of the two."
)
"""Docker's words, but for what to do."""

NO_CACHE = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
"""What `uname` says to what Go says."""


@routes.get("/_ping")
async def ping(request: web.Request) -> web.Response:
    return web.Response(
        text="OK", headers=NO_CACHE | {"Swarm": _swarm_header(local_of(request)), "Builder-Version": "1"}
    )


@routes.head("/_ping")
async def head_ping(request: web.Request) -> web.Response:
    headers = NO_CACHE | {"Swarm": _swarm_header(local_of(request)), "Builder-Version": "1", "Content-Length": "0"}
    return web.Response(headers=headers, content_type="text/plain")


def _swarm_header(local: LocalNode) -> str:
    if local.state != "active":
        return local.state
    return "active/manager" if local.is_manager else "active/worker"


@routes.get("/version")
async def version(request: web.Request) -> web.Response:
    system = os.uname()
    machine = MACHINES.get(system.machine, system.machine)
    about = {
        "Version": hivemesh.__version__,
        "ApiVersion": version_text(MAX_VERSION),
        "MinAPIVersion": version_text(MIN_VERSION),
        "GitCommit": "",
        "GoVersion": f"python{platform.python_version()}",
        "Os": "linux",
        "Arch": machine,
        "KernelVersion": system.release,
        "BuildTime": "",
        "Experimental": False,
    }
    details = {key: str(value).lower() if isinstance(value, bool) else value for key, value in about.items()}
    del details["Version"]
    components = [{"Name": "Engine", "Version": hivemesh.__version__, "Details": details}]
    try:
        async with asyncio.timeout(ENGINE_PATIENCE):
            engine = await local_of(request).engine_info()
        components.append({"Name": engine.name, "Version": engine.version, "Details": {}})
    except (HivemeshError, OSError, TimeoutError) as error:
        log.debug("the engine did not say its version: %s", error)
    return answer({"Platform": {"Name": "hivemesh"}, "Components": components, **about})


@routes.get("/info")
async def info(request: web.Request) -> web.Response:
    local = local_of(request)
    result = _machine(local)
    warnings: list[str] = []
    try:
        async with asyncio.timeout(ENGINE_PATIENCE):
            result |= {
                key: value for key, value in (await passthrough.ask(request, "/info")).items() if key in FROM_ENGINE
            }
    except Unsupported:
        log.debug("the engine has no API of its own to ask")
    except (HivemeshError, OSError, TimeoutError, ValueError) as error:
        warnings.append(f"WARNING: the engine does not answer: {error}")
    result["Swarm"] = _swarm(local)
    result["Warnings"] = warnings + result["Swarm"].get("Warnings", [])
    return answer(result)


FROM_ENGINE = {
    "Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped", "Images", "Driver", "DriverStatus",
    "Runtimes", "DefaultRuntime", "InitBinary", "ContainerdCommit", "RuncCommit", "InitCommit", "SecurityOptions",
    "LoggingDriver", "CgroupDriver", "CgroupVersion", "MemoryLimit", "SwapLimit", "CpuCfsPeriod", "CpuCfsQuota",
    "CPUShares", "CPUSet", "PidsLimit", "OomKillDisable", "DockerRootDir",
}  # fmt: skip
"""What the engine knows better; the rest is ours to say."""


def _machine(local: LocalNode) -> dict[str, Any]:
    """Everything a client may look at, without asking anybody."""
    system = os.uname()
    commit = {"ID": "", "Expected": ""}
    return {
        "ID": local.node_id or local.name,
        "Name": local.name,
        "ServerVersion": hivemesh.__version__,
        "Containers": 0,
        "ContainersRunning": 0,
        "ContainersPaused": 0,
        "ContainersStopped": 0,
        "Images": 0,
        "Driver": "",
        "DriverStatus": [],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null", "overlay"],
            "Authorization": None,
            "Log": [],
        },
        "Runtimes": {},
        "DefaultRuntime": "",
        "InitBinary": "",
        "ContainerdCommit": commit,
        "RuncCommit": commit,
        "InitCommit": commit,
        "SecurityOptions": [],
        "KernelVersion": system.release,
        "OperatingSystem": _operating_system(),
        "OSType": "linux",
        "Architecture": system.machine,
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "DockerRootDir": str(local.data_dir),
        "Debug": False,
        "NFd": 0,
        "NGoroutines": 0,
        "NEventsListener": 0,
        "SystemTime": objects.timestamp(local.clock.now()),
        "LoggingDriver": "",
        "CgroupDriver": "",
        "CgroupVersion": "2",
        "MemoryLimit": True,
        "SwapLimit": True,
        "CpuCfsPeriod": True,
        "CpuCfsQuota": True,
        "CPUShares": True,
        "CPUSet": True,
        "PidsLimit": True,
        "OomKillDisable": False,
        "IPv4Forwarding": True,
        "BridgeNfIptables": False,
        "BridgeNfIp6tables": False,
        "ExperimentalBuild": False,
        "LiveRestoreEnabled": True,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": [], "Mirrors": []},
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Labels": [f"{key}={value}" for key, value in local.labels.items()],
        "GenericResources": codec.to_builtins(local.generic),
        "FirewallBackend": {"Driver": "nftables", "Info": [["Socket balancing", local.socket_balancing]]},
        "Isolation": "",
        "Swarm": {},
        "Warnings": [],
    }


def _operating_system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _swarm(local: LocalNode) -> dict[str, Any]:
    """`Swarm` of `/info`: `node ls` and `stack deploy` depend on its fields."""
    manager = local.manager
    result: dict[str, Any] = {
        "NodeID": local.node_id or "",
        "NodeAddr": local.node_addr,
        "LocalNodeState": local.state,
        "ControlAvailable": manager is not None,
        "Error": local.error,
        "RemoteManagers": [{"NodeID": known.node_id or "", "Addr": known.addr} for known in local.remote_managers]
        or None,
    }
    if manager is not None:
        view = manager.tables.view
        nodes = view.all(Node)
        result["Nodes"] = len(nodes)
        if sum(node.spec.role == "manager" for node in nodes) == 2:
            result["Warnings"] = [TWO_MANAGERS]
        result["Managers"] = sum(bool(node.manager_addr) for node in nodes)
        result["Cluster"] = objects.cluster_info(view.cluster, tls.of_cluster(view.cluster))
    return result


PLUGIN_FILTERS = ("capability", "enabled")


@routes.get("/plugins")
async def plugins(request: web.Request) -> web.Response:
    """There are none: drivers of networks and volumes are built in."""
    truth_of(filters_of(request, PLUGIN_FILTERS), "enabled")
    return answer([])


DISK_USAGE = {"container": ("Containers",), "image": ("Images", "LayersSize"), "volume": ("Volumes",),
              "build-cache": ("BuildCache", "BuilderSize")}  # fmt: skip
"""What `/system/df` answers with, by what its `type` asks for."""


@routes.get("/system/df")
async def disk_usage(request: web.Request) -> web.Response:
    """The engine's numbers, with what Podman leaves out: how large all layers are, and the slash before names."""
    asked = request.query.getall("type", [])
    for name in asked:
        if name not in DISK_USAGE:
            raise Invalid(f"unknown object type: {name!r}: use {', '.join(DISK_USAGE)}")
    value: dict[str, Any] = await passthrough.ask(request, "/system/df")
    images = value.get("Images") or []
    if not value.get("LayersSize"):
        shared = [max(image.get("SharedSize", 0), 0) for image in images]
        value["LayersSize"] = sum(image.get("Size", 0) for image in images) - sum(shared) + max(shared, default=0)
    for container in value.get("Containers") or []:
        container["Names"] = [f"/{name.lstrip('/')}" for name in container.get("Names") or []]
    kept = {key for name in asked or DISK_USAGE for key in DISK_USAGE[name]}
    return answer({key: said for key, said in value.items() if key in kept})


@routes.get("/hivemesh/drift")
async def drift(request: web.Request) -> web.Response:
    """What this node's kernel lacks or has too much, against the plan; and how much was put right so far, by place."""
    local = local_of(request)
    return answer({"Differences": await local.drift(), "Repaired": dict(local.local_networks.repairs.counts)})
