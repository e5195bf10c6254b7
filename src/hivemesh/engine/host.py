"""What we and this machine ask of Podman before a container can start: settings, and one line that says why.

Podman's defaults suit a systemd machine with unified cgroups and all capabilities. Elsewhere `crun` refuses, or raising
limits does. The settings found here go into a containers.conf of ours (`containers_conf`), merged with the machine's.
"""

import json
import os
import resource
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONF = "CONTAINERS_CONF"
"""Names the one configuration file Podman then reads in place of the machine's."""
MACHINE_FILES = (Path("/usr/share/containers/containers.conf"), Path("/etc/containers/containers.conf"))
MACHINE_DIRECTORY = Path("/etc/containers/containers.conf.d")
CAP_SYS_RESOURCE = 24  # linux/capability.h
INITS = ("catatonit", "tini-static", "docker-init")
"""Programs that run as a container's first process, forward signals and reap. No library is needed: any image will do.
"""
PODMANS_OWN = "/usr/libexec/podman:/usr/local/libexec/podman"
"""Where Podman looks for catatonit by itself."""
PODMAN_PROCESSES = 1048576
"""Podman raises its own limits to this where it may, and lowers RLIMIT_NPROC to kernel.pid_max where that is less."""


EXEC_DELAY = 5
"""Seconds a finished exec session (and the process that watched it) stays, so that its exit code can be asked for. With
Podman's 300, a container whose health is checked each second would have 300 of them."""


@dataclass(frozen=True, slots=True)
class HostNeeds:
    """Sections of containers.conf, and the explanation; both empty where Podman's defaults work."""

    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    why: str = ""


def host_needs(
    *,
    cgroup: Path = Path("/sys/fs/cgroup"),
    run: Path = Path("/run"),
    proc: Path = Path("/proc"),
) -> HostNeeds:
    """Look at cgroups, systemd, capabilities and OCI runtimes of this machine (or of a picture of one in a test)."""
    engine: dict[str, Any] = {}
    containers: dict[str, Any] = {}
    why: list[str] = []
    unified = (cgroup / "cgroup.controllers").exists()
    crun, runc = shutil.which("crun"), shutil.which("runc") or shutil.which("runc", path="/usr/sbin:/usr/local/sbin")
    if runc and not crun:
        engine["runtime"] = "runc"
        why.append("crun is not installed, runc is")
    elif runc and not unified:
        engine["runtime"] = "runc"
        why.append("cgroups are not unified (v2), which crun may refuse")
    elif not crun and not runc:
        why.append("no OCI runtime is installed: install runc or crun")
    if not (run / "systemd/system").is_dir():
        engine["cgroup_manager"] = "cgroupfs"
        why.append("systemd does not run here")
    if not (run / "systemd/journal").is_dir():
        engine["events_logger"] = "file"
    if limits := own_limits(proc):
        containers["default_ulimits"] = [f"{name}={most}:{most}" for name, most in limits.items()]
        why.append("limits cannot be raised without CAP_SYS_RESOURCE")
    init = next((found for name in INITS if (found := shutil.which(name))), None)
    if init and not shutil.which("catatonit", path=PODMANS_OWN):
        engine["init_path"] = init
        why.append(f"catatonit is not installed, {init} is")
    settings = {name: values for name, values in (("engine", engine), ("containers", containers)) if values}
    return HostNeeds(settings, "Podman gets settings of ours: " + "; ".join(why) if why else "")


def containers_conf(needs: HostNeeds, directory: Path) -> Path | None:
    """Write the settings, under those the machine already makes, to `directory`.

    None, and nothing is written, when the environment already names a file: whoever did that knows best.
    """
    if os.environ.get(CONF):
        return None
    merged: dict[str, Any] = {"engine": {"exit_command_delay": EXEC_DELAY}}
    for name, values in needs.settings.items():
        merged.setdefault(name, {}).update(values)
    for source in (*MACHINE_FILES, *sorted(MACHINE_DIRECTORY.glob("*.conf"))):
        try:
            found = tomllib.loads(source.read_text())
        except FileNotFoundError:
            continue
        for name, values in found.items():
            merged.setdefault(name, {}).update(values)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "containers.conf"
    path.write_text(_toml(merged))
    return path


def _may_raise_limits(proc: Path) -> bool:
    for line in (proc / "self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1)
    return True


def own_limits(proc: Path = Path("/proc")) -> dict[str, int]:
    """Of what Podman raises unasked, the most that this machine allows; empty where all can be raised."""
    if _may_raise_limits(proc):
        return {}
    limits = {}
    for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(kind)[1]
        ceiling = PODMAN_PROCESSES if hard == resource.RLIM_INFINITY else min(hard, PODMAN_PROCESSES)
        if name == "nproc":
            ceiling = min(ceiling, int((proc / "sys/kernel/pid_max").read_text()))
        limits[name] = ceiling
    return limits


def _toml(document: Mapping[str, Any], prefix: str = "") -> str:
    """Tables of text, numbers, booleans and lists of them: TOML writes those as JSON does."""
    lines: list[str] = []
    tables: list[str] = []
    for key, value in document.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{json.dumps(key)}"
            tables.append(f"[{name}]\n{_toml(value, f'{name}.')}")
        else:
            lines.append(f"{json.dumps(key)} = {json.dumps(value)}\n")
    return "".join([*lines, *tables])
