"""What may be asked of a container's mounts: pure checks that raise `Invalid` or `Unsupported`, in Docker's words."""

import posixpath
import re
from collections.abc import Iterable

from hivemesh.model import template
from hivemesh.model.container import BindOptions, ImageOptions, Mount, TmpfsOptions, VolumeOptions
from hivemesh.model.errors import Invalid, Unsupported

VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
TMPFS_FLAGS = ("exec", "noexec", "suid", "nosuid", "dev", "nodev")
HIGHEST_MODE = 0o7777
OPTIONS = {"bind": "BindOptions", "volume": "VolumeOptions", "tmpfs": "TmpfsOptions", "image": "ImageOptions"}
"""Type of a mount to the only options it may have."""


def check(mounts: Iterable[Mount]) -> None:
    targets = set()
    for mount in mounts:
        if not mount.target:
            raise Invalid("ContainerSpec: mount target must be provided")
        if not mount.target.startswith("/") or "\0" in mount.target:
            raise _wrong(mount, f"invalid mount path: {mount.target!r} mount path must be absolute")
        target = posixpath.normpath(mount.target)
        if target.strip("/") == "":
            raise _wrong(mount, "destination can't be '/'")
        if target in targets:
            raise Invalid(f"ContainerSpec: duplicate mount point: {mount.target}")
        targets.add(target)
        template.check(mount.source)
        if "\0" in mount.source:
            raise _wrong(mount, "field Source holds a zero byte")
        for kind, field in OPTIONS.items():
            if kind != mount.type and _given(mount, kind):
                raise _wrong(mount, f"field {field} must not be specified")
        _CHECKS[mount.type](mount)


def _wrong(mount: Mount, words: str) -> Invalid:
    return Invalid(f'ContainerSpec: invalid mount config for type "{mount.type}": {words}')


def _given(mount: Mount, kind: str) -> bool:
    empty = {
        "bind": (None, BindOptions()),
        "volume": (None, VolumeOptions()),
        "tmpfs": (None, TmpfsOptions()),
        "image": (None, ImageOptions()),
    }
    return getattr(mount, f"{kind}_options") not in empty[kind]


def _bind(mount: Mount) -> None:
    if not mount.source:
        raise _wrong(mount, "field Source must not be empty")
    if not template.without(mount.source).startswith("/"):
        raise Invalid(f"ContainerSpec: the source of bind mount {mount.target} must be an absolute path")
    options = mount.bind_options or BindOptions()
    if options.read_only_force_recursive:
        raise Unsupported(
            f"ContainerSpec.Mounts ({mount.target}): BindOptions.ReadOnlyForceRecursive is not supported: mount what "
            "is below the source by itself, read-only"
        )
    if options.read_only_non_recursive and not mount.read_only:
        raise _wrong(mount, "mount source must be mounted readonly to use BindOptions.ReadOnlyNonRecursive")


def _volume(mount: Mount) -> None:
    options = mount.volume_options or VolumeOptions()
    if not mount.source:
        if mount.read_only:
            raise _wrong(mount, "must not set ReadOnly mode when using anonymous volumes")
        if options.labels or options.driver_config or options.subpath:
            raise Unsupported(
                f"ContainerSpec.Mounts ({mount.target}): labels, a driver or a part of a volume without a name are not "
                "supported: give it a Source"
            )
    elif not VOLUME_NAME.fullmatch(template.without(mount.source)):
        raise _wrong(mount, f"{mount.source!r} is no name of a volume: use letters, digits, _, . and -")
    if options.subpath.startswith("/") or ".." in options.subpath.split("/"):
        raise _wrong(mount, f"subpath {options.subpath!r} must be a relative path within the volume")


def _tmpfs(mount: Mount) -> None:
    if mount.source:
        raise _wrong(mount, "field Source must not be specified")
    options = mount.tmpfs_options or TmpfsOptions()
    if options.size_bytes < 0 or not 0 <= options.mode <= HIGHEST_MODE:
        raise _wrong(mount, f"a size must not be negative, and a mode is permission bits, such as {0o1777} for 1777")
    for words in options.options:
        if len(words) != 1 or words[0] not in TMPFS_FLAGS:
            raise Unsupported(
                f"ContainerSpec.Mounts ({mount.target}): the tmpfs option {'='.join(words)} is not supported: use "
                f"{', '.join(TMPFS_FLAGS)}, SizeBytes and Mode"
            )


def _image(mount: Mount) -> None:
    if not mount.source:
        raise _wrong(mount, "field Source must not be empty")
    if mount.image_options and mount.image_options.subpath:
        raise Unsupported(f"ContainerSpec.Mounts ({mount.target}): ImageOptions.Subpath is not supported: leave it out")


_CHECKS = {"bind": _bind, "volume": _volume, "tmpfs": _tmpfs, "image": _image}
