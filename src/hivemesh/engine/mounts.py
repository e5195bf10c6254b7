"""What stands in a container beside its image, in the words of Podman's API. Pure.

Files of ours (`/etc/hosts`, secrets) give way to what the user mounts in their place. A part of a volume is mounted as
the directory it is on the node: Podman has no word for it.
"""

from collections.abc import Mapping
from typing import Any

from hivemesh.engine.api import ContainerRequest
from hivemesh.model.container import BindOptions, Mount, TmpfsOptions, VolumeDriver, VolumeOptions

DEFAULT_DRIVER = "local"


def mounts_of(request: ContainerRequest, subpaths: Mapping[str, str], images: Mapping[str, str]) -> dict[str, Any]:
    """Fields of the SpecGenerator. `subpaths`: of parts of volumes, by target; `images`: names they have here."""
    mounts = request.spec.mounts
    return {
        "mounts": [
            *_files(request),
            *(_bind(mount) for mount in mounts if mount.type == "bind"),
            *(_tmpfs(mount) for mount in mounts if mount.type == "tmpfs"),
            *(_part(mount, subpaths[mount.target]) for mount in mounts if mount.target in subpaths),
            *_secrets(request),
        ],
        "volumes": [_volume(mount) for mount in mounts if mount.type == "volume" and mount.target not in subpaths],
        "image_volumes": [
            {"Source": images.get(mount.source, mount.source), "Destination": mount.target, "ReadWrite": False}
            for mount in mounts
            if mount.type == "image"
        ],
    }


def subpath_of(mount: Mount) -> str:
    """The part of a volume that is mounted; empty: all of it."""
    return mount.volume_options.subpath if mount.type == "volume" and mount.volume_options else ""


def volume_body(mount: Mount) -> dict[str, Any] | None:
    """What to ask of Podman before the volume is used; None when it makes the volume as it should be by itself."""
    options = mount.volume_options or VolumeOptions()
    driver = options.driver_config or VolumeDriver()
    if mount.type != "volume" or not (options.labels or options.subpath or driver.name or driver.options):
        return None
    return {
        "Name": mount.source,
        "Driver": driver.name or DEFAULT_DRIVER,
        "Options": driver.options,
        "Label": options.labels,
    }


def _files(request: ContainerRequest) -> list[dict[str, Any]]:
    """Files of ours that stand in the container; what the user mounts there comes before them."""
    taken = {mount.target for mount in request.spec.mounts}
    return [
        _bound(source, target, "rbind", request.spec.read_only)
        for target, source in request.files.items()
        if target not in taken
    ]


def _secrets(request: ContainerRequest) -> list[dict[str, Any]]:
    options = ("nosuid", "nodev", "noexec")
    return [_bound(source, target, "bind", True, *options) for target, source in request.secrets.items()]


def _bind(mount: Mount) -> dict[str, Any]:
    options = mount.bind_options or BindOptions()
    more = (options.propagation,) if options.propagation else ()
    return _bound(mount.source, mount.target, "bind" if options.non_recursive else "rbind", mount.read_only, *more)


def _part(mount: Mount, path: str) -> dict[str, Any]:
    return _bound(path, mount.target, "rbind", mount.read_only)


def _bound(source: str, target: str, kind: str, read_only: bool, *options: str) -> dict[str, Any]:
    access = "ro" if read_only else "rw"
    return {"type": "bind", "source": source, "destination": target, "options": [kind, access, *options]}


def _tmpfs(mount: Mount) -> dict[str, Any]:
    """Empty at first and without programs, as Docker has it; Podman would copy there what the image has."""
    options = mount.tmpfs_options or TmpfsOptions()
    words = ["notmpcopyup", *("=".join(option) for option in options.options)]
    if "exec" not in words:
        words.append("noexec")
    if mount.read_only:
        words.append("ro")
    if options.size_bytes:
        words.append(f"size={options.size_bytes}")
    if options.mode:
        words.append(f"mode={options.mode:o}")
    return {"type": "tmpfs", "source": "tmpfs", "destination": mount.target, "options": words}


def _volume(mount: Mount) -> dict[str, Any]:
    words = ["ro" if mount.read_only else "rw"]
    if mount.volume_options and mount.volume_options.no_copy:
        words.append("nocopy")
    return {"Name": mount.source, "Dest": mount.target, "Options": words}
