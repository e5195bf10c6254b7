"""A task in the engine's terms: pure."""

import msgspec

from hivemesh.engine.api import ContainerRequest
from hivemesh.model import generic, template
from hivemesh.model.task import Task


def container_request(task: Task, netns: str, hostname: str) -> ContainerRequest:
    """The container of `task` in the namespace at path `netns`; `hostname` is the node's.

    Raises `Invalid` when a template names what hivemesh does not know.
    """
    values = template.values_of(task, hostname)

    def filled(text: str) -> str:
        return template.fill(text, values)

    spec = task.spec.container_spec
    spec = msgspec.structs.replace(
        spec,
        env=(*map(filled, spec.env), *generic.environment(task.generic)),
        hostname=filled(spec.hostname),
        mounts=tuple(msgspec.structs.replace(mount, source=filled(mount.source)) for mount in spec.mounts),
    )
    return ContainerRequest(
        name=task.name,
        spec=spec,
        resources=task.spec.resources,
        log_driver=task.spec.log_driver or task.log_driver,
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
