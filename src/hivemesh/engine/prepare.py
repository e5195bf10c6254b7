"""What has to stand on a machine before Podman can make a container: directories, volumes, images, a profile."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from hivemesh.engine.api import ContainerRequest, EngineError
from hivemesh.engine.host import own_limits
from hivemesh.engine.libpod import Prepared, Volume
from hivemesh.engine.machine import Machine, refuse_impossible
from hivemesh.engine.mounts import DEFAULT_DRIVER, subpath_of, volume_body
from hivemesh.model.container import Mount


class Answer(Protocol):
    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...


Call = Callable[..., Awaitable[Answer]]
"""Method, path, and as the engine has it: `body`, `fine`."""


@contextlib.asynccontextmanager
async def prepared(
    request: ContainerRequest, call: Call, image_here: Callable[[str], Awaitable[str]]
) -> AsyncIterator[Prepared]:
    """Everything for as long as the container is being created. `image_here` pulls an image unless it is here, and says
    which name it has. Raises `EngineError` for what this machine cannot do.
    """
    spec = request.spec
    await asyncio.to_thread(_look, request)
    subpaths = {}
    for mount in spec.mounts:
        if (body := volume_body(mount)) is not None:
            volume = await _volume(mount, body, call)
            if subpath_of(mount):
                subpaths[mount.target] = await asyncio.to_thread(_part, mount, volume)
    images = {mount.source: await image_here(mount.source) for mount in spec.mounts if mount.type == "image"}
    seccomp = spec.privileges.seccomp if spec.privileges else None
    with _kept(seccomp.profile if seccomp and seccomp.mode == "custom" else b"") as profile:
        yield Prepared(
            image=await image_here(spec.image), images=images, subpaths=subpaths, seccomp=profile, limits=own_limits()
        )


def _look(request: ContainerRequest) -> None:
    refuse_impossible(request, Machine())
    for mount in request.spec.mounts:
        if mount.type == "bind" and mount.bind_options and mount.bind_options.create_mountpoint:
            try:
                os.makedirs(mount.source, exist_ok=True)
            except FileExistsError:
                pass  # a file: it can be mounted as well
            except OSError as error:
                raise EngineError(f"cannot make the mount source {mount.source}: {error.strerror}") from error


async def _volume(mount: Mount, body: dict[str, Any], call: Call) -> Volume:
    """The volume that `mount` names, made unless it is there. One that was made by another driver is another volume."""
    path = f"/volumes/{quote(mount.source, safe='')}/json"
    if (found := await call("GET", path, fine=(404,))).status == 404:
        try:
            found = await call("POST", "/volumes/create", body=body)
        except EngineError:  # another task of the service may have made it meanwhile
            if (found := await call("GET", path, fine=(404,))).status == 404:
                raise
    volume = msgspec.json.decode(found.body, type=Volume)
    if volume.driver != body["Driver"]:
        raise EngineError(f"a volume {mount.source} is there already, made by the driver {volume.driver}")
    return volume


def _part(mount: Mount, volume: Volume) -> str:
    """The directory or file on this node that is a part of a volume."""
    if volume.driver != DEFAULT_DRIVER or (volume.options or {}).keys() & {"type", "device", "o"}:
        raise EngineError(
            f"Subpath of volume {mount.source}: it is mounted only while a container uses all of it; "
            "leave the subpath out, or use a volume without driver options"
        )
    root = Path(volume.mountpoint).resolve()
    path = (root / subpath_of(mount)).resolve()
    if not path.is_relative_to(root):
        raise EngineError(f"Subpath {subpath_of(mount)} leads out of volume {mount.source}")
    if not path.exists():
        raise EngineError(
            f"Subpath {subpath_of(mount)}: volume {mount.source} on this node has no such file or directory"
        )
    return str(path)


@contextlib.contextmanager
def _kept(content: bytes) -> Iterator[str]:
    """The path of a file with this content for as long as it is needed; empty for none."""
    if not content:
        yield ""
        return
    with tempfile.NamedTemporaryFile(prefix="hivemesh-", suffix=".json") as file:
        file.write(content)
        file.flush()
        yield file.name
