"""What a task's container is made from: the Docker Engine API's `ContainerSpec` and its parts (names are the API's)."""

from typing import Literal

import msgspec

Nanoseconds = int


class Spec(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """Base of everything whose JSON form is the Docker Engine API's."""


MountType = Literal["bind", "volume", "tmpfs", "image"]
Propagation = Literal["", "private", "rprivate", "shared", "rshared", "slave", "rslave"]


class BindOptions(Spec, frozen=True, kw_only=True):
    """`propagation` empty means `rprivate`. Unless `non_recursive`, what is mounted below the source comes along."""

    propagation: Propagation = ""
    non_recursive: bool = False
    create_mountpoint: bool = False  # make the source, a directory, where the node has none
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeDriver(Spec, frozen=True, kw_only=True):
    """Who makes a volume, and how. Empty: the engine's own driver, `local`."""

    name: str = ""
    options: dict[str, str] = {}


class VolumeOptions(Spec, frozen=True, kw_only=True):
    """How a volume is made, if it is not there yet, and which part of it is mounted."""

    no_copy: bool = False  # of what the image has at the target
    labels: dict[str, str] = {}
    subpath: str = ""
    driver_config: VolumeDriver | None = None


class TmpfsOptions(Spec, frozen=True, kw_only=True):
    """`options` are those of mount(8), each a name, or a name and a value; 0 means the kernel's default."""

    size_bytes: int = 0
    mode: int = 0
    options: tuple[tuple[str, ...], ...] = ()


class ImageOptions(Spec, frozen=True, kw_only=True):
    subpath: str = ""


class Mount(Spec, frozen=True, kw_only=True):
    """Something that stands at `target`. Of the options, those of its type may be given.

    `source` is a path on the node, a volume (empty: one that ends with the container) or an image. `consistency` is a
    hint for machines whose containers are elsewhere; on Linux all its values mean the same.
    """

    type: MountType = msgspec.field(default_factory=lambda: "volume")  # not a plain default: it is always shown
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: Literal["", "default", "consistent", "cached", "delegated"] = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    image_options: ImageOptions | None = None


class DNSConfig(Spec, frozen=True, kw_only=True):
    """What a container's own resolver settings change; empty: as on the node."""

    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class HealthConfig(Spec, frozen=True, kw_only=True):
    """How to find out whether a container is healthy. `test` is `()` (as the image says), `("NONE",)`,
    `("CMD", argument, ...)` or `("CMD-SHELL", line)`; a duration or count of 0 means Docker's default.
    """

    test: tuple[str, ...] = ()
    interval: Nanoseconds = 0
    timeout: Nanoseconds = 0
    start_period: Nanoseconds = 0
    start_interval: Nanoseconds = 0
    retries: int = 0


class FileTarget(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """The file a container finds a secret or a config in; `name` is absolute, or relative to where such files stand."""

    name: str = ""
    uid: str = msgspec.field(default="0", name="UID")
    gid: str = msgspec.field(default="0", name="GID")
    mode: int = 0o444


class SecretReference(Spec, frozen=True, kw_only=True):
    """A secret a container uses. Clients look up the id; the name has to be that of the secret with this id."""

    file: FileTarget | None = None
    secret_id: str = msgspec.field(default="", name="SecretID")
    secret_name: str = ""


class ConfigReference(Spec, frozen=True, kw_only=True):
    """A config a container uses."""

    file: FileTarget | None = None
    config_id: str = msgspec.field(default="", name="ConfigID")
    config_name: str = ""


class SELinuxContext(Spec, frozen=True, kw_only=True):
    """The label of the container's processes and files; `disable`: none."""

    disable: bool = False
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class Seccomp(Spec, frozen=True, kw_only=True):
    """Which system calls are allowed: the engine's choice, all, or what `profile` says (JSON, as the engine reads)."""

    mode: Literal["", "default", "unconfined", "custom"] = ""
    profile: bytes = b""


class AppArmor(Spec, frozen=True, kw_only=True):
    mode: Literal["", "default", "disabled"] = ""


class Privileges(Spec, frozen=True, kw_only=True):
    selinux_context: SELinuxContext | None = msgspec.field(default=None, name="SELinuxContext")
    seccomp: Seccomp | None = None
    app_armor: AppArmor | None = None
    no_new_privileges: bool = False


class Ulimit(Spec, frozen=True, kw_only=True, omit_defaults=False):
    """A limit of each process, in the unit of setrlimit(2); -1 means none."""

    name: str = ""
    hard: int = 0
    soft: int = 0


class LogDriver(Spec, frozen=True, kw_only=True):
    """Where the container's output goes. An empty name means the engine's choice."""

    name: str = ""
    options: dict[str, str] = {}


class ContainerSpec(Spec, frozen=True, kw_only=True):
    """What to run. Fields hivemesh does not know are refused by name at the API's edge, never dropped."""

    image: str = ""
    labels: dict[str, str] = {}
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    hostname: str = ""
    env: tuple[str, ...] = ()
    dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    tty: bool = msgspec.field(default=False, name="TTY")
    open_stdin: bool = False
    read_only: bool = False
    stop_signal: str = ""
    stop_grace_period: Nanoseconds = 10_000_000_000
    mounts: tuple[Mount, ...] = ()
    secrets: tuple[SecretReference, ...] = ()
    configs: tuple[ConfigReference, ...] = ()
    hosts: tuple[str, ...] = ()  # lines of /etc/hosts: address, names
    dns_config: DNSConfig | None = msgspec.field(default=None, name="DNSConfig")
    healthcheck: HealthConfig | None = None
    init: bool | None = None
    isolation: str = ""
    capability_add: tuple[str, ...] = ()
    capability_drop: tuple[str, ...] = ()
    sysctls: dict[str, str] = {}
    ulimits: tuple[Ulimit, ...] = ()
    oom_score_adj: int = 0
    privileges: Privileges | None = None
