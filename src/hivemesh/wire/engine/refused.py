"""Fields of a service's specification that Docker has and no node of ours can honour: refused by name, with what to do.

What nobody knows is refused in `strict`, by name too.
"""

from typing import Any

from hivemesh.model.errors import Unsupported
from hivemesh.wire.engine.strict import empty, pick

FIELDS = {
    "PluginSpec": "engine plugins do not run as services",
    "NetworkAttachmentSpec": "connect a container with `docker network connect` instead",
    "ContainerSpec.Privileges.CredentialSpec": "it is for containers of Windows",
}
MOUNTS = {"npipe": "it is for containers of Windows", "cluster": "use a volume with a driver that all nodes have"}


def check(template: Any) -> None:
    """Of a `TaskTemplate` as clients send it. Raises `Unsupported`."""
    if not isinstance(template, dict):
        return
    for path, why in FIELDS.items():
        if not empty(_find(template, path)):
            raise Unsupported(f"TaskTemplate.{path} is not supported: {why}")
    runtime = pick(template, "Runtime") or "container"
    if runtime != "container":
        raise Unsupported(f"TaskTemplate.Runtime {runtime!r} is not supported: use container")
    isolation = str(_find(template, "ContainerSpec.Isolation") or "default")
    if isolation.lower() != "default":
        raise Unsupported(f"ContainerSpec.Isolation {isolation!r} is not supported: use default")
    for mount in _entries(template, "ContainerSpec.Mounts"):
        kind = str(pick(mount, "Type"))
        if kind in MOUNTS:
            target = pick(mount, "Target")
            raise Unsupported(f"ContainerSpec.Mounts ({target}): type {kind} is not supported: {MOUNTS[kind]}")
    for config in _entries(template, "ContainerSpec.Configs"):
        if pick(config, "Runtime") is not None:
            name = pick(config, "ConfigName")
            raise Unsupported(f"ContainerSpec.Configs ({name}): Runtime is not supported: give it a File")


def _find(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = pick(value, name) if isinstance(value, dict) else None
    return value


def _entries(template: dict[str, Any], path: str) -> list[dict[str, Any]]:
    found = _find(template, path)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
