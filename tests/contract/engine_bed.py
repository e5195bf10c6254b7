"""What a container is asked for in the engines' tests."""

from dataclasses import dataclass
from typing import Any

import msgspec

from hivemesh.engine.api import ContainerRequest, Engine
from hivemesh.model.container import ContainerSpec, LogDriver
from hivemesh.model.service import Resources

IMAGE = "localhost/contract:latest"
TASK_LABEL = "com.docker.swarm.task.id"


@dataclass
class Bed:
    """An engine under test, and the sandbox its containers live in."""

    engine: Engine
    netns: str

    def request(
        self,
        name: str,
        *args: str,
        files: dict[str, str] | None = None,
        secrets: dict[str, str] | None = None,
        resources: Resources | None = None,
        log_driver: LogDriver | None = None,
        **fields: Any,
    ) -> ContainerRequest:
        """`fields` are those of the container's specification."""
        return ContainerRequest(
            name=name,
            spec=msgspec.structs.replace(ContainerSpec(image=IMAGE, args=args), **fields),
            resources=resources or Resources(),
            labels={TASK_LABEL: f"id-of-{name}", "com.docker.swarm.task": ""},
            netns=self.netns,
            hostname="box",
            log_driver=log_driver,
            files=files or {},
            secrets=secrets or {},
        )

    async def run(self, name: str, *args: str, **fields: Any) -> str:
        """A container that has been started; `fields` as those of `request`."""
        await self.engine.ensure_image(IMAGE)
        container = await self.engine.create(self.request(name, *args, **fields))
        await self.engine.start(container)
        return container
