"""A task in the engine's terms: pure."""

import re

import msgspec

from hivemesh.engine.api import ContainerRequest
from hivemesh.model.errors import Invalid
from hivemesh.model.task import Task

_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}")


def container_request(task: Task, netns: str, hostname: str) -> ContainerRequest:
    """The container of `task` in the namespace at path `netns`; `hostname` is the node's.

    Raises `Invalid` when a template names what hivemesh does not know.
    """
    known = {
        ".Service.ID": task.service_id,
        ".Service.Name": task.service_name,
        ".Task.ID": task.id,
        ".Task.Name": task.name,
        ".Task.Slot": str(task.slot),
        ".Node.ID": task.node_id or "",
        ".Node.Hostname": hostname,
    }

    def filled(text: str) -> str:
        return _PLACEHOLDER.sub(lambda found: _value(known, found), text) if "{{" in text else text

    spec = task.spec.container_spec
    spec = msgspec.structs.replace(
        spec,
        env=tuple(map(filled, spec.env)),
        hostname=filled(spec.hostname),
        mounts=tuple(msgspec.structs.replace(mount, source=filled(mount.source)) for mount in spec.mounts),
    )
    return ContainerRequest(
        name=task.name,
        spec=spec,
        resources=task.spec.resources,
        labels={
            **spec.labels,
            "com.docker.swarm.task": "",
            "com.docker.swarm.task.id": task.id,
            "com.docker.swarm.task.name": task.name,
            "com.docker.swarm.node.id": task.node_id or "",
            "com.docker.swarm.service.id": task.service_id,
            "com.docker.swarm.service.name": task.service_name,
        },
        netns=netns,
        hostname=spec.hostname,
    )


def _value(known: dict[str, str], found: re.Match[str]) -> str:
    try:
        return known[found[1]]
    except KeyError:
        raise Invalid(f"unknown placeholder {found[0]}: this version knows {', '.join(known)}") from None
