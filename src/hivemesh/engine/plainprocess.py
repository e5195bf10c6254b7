"""What of a container's specification a plain process of the machine can have, and the command that gives it. Pure.

It has a sandbox, so networks, names and network settings are its own; files, other processes and cgroups are the
machine's. What would need those is refused by name.
"""

from hivemesh.engine.api import ContainerRequest, EngineError
from hivemesh.model.container import AppArmor, ContainerSpec, Privileges, Seccomp, SELinuxContext, Ulimit
from hivemesh.model.privilege import ALL, UNLIMITED, capability, setting_path
from hivemesh.model.service import ResourceLimits


def refuse(request: ContainerRequest) -> None:
    """Raises `EngineError` with the names of all that only a container can have."""
    spec, resources = request.spec, request.resources
    limits = resources.limits or ResourceLimits()
    privileges = spec.privileges or Privileges()
    seccomp, armor = privileges.seccomp or Seccomp(), privileges.app_armor or AppArmor()
    context = privileges.selinux_context or SELinuxContext()
    driver = request.log_driver
    asked = {
        "TTY": spec.tty,
        "OpenStdin": spec.open_stdin,
        "ReadOnly": spec.read_only,
        "Init": spec.init,
        "Privileges.Seccomp": seccomp.mode not in ("", "unconfined"),
        "Privileges.AppArmor": armor.mode not in ("", "disabled"),
        "Privileges.SELinuxContext": context not in (SELinuxContext(), SELinuxContext(disable=True)),
        "Resources.Limits": limits != ResourceLimits(),
        "Resources.SwapBytes": resources.swap_bytes is not None,
        "Resources.MemorySwappiness": resources.memory_swappiness not in (None, -1),
        "LogDriver": driver and (driver.name not in ("", "json-file") or driver.options),
    }
    names = [name for name, given in asked.items() if given]
    names += [f"Mounts ({m.target})" for m in spec.mounts if m.type != "bind" or m.source != m.target or m.read_only]
    names += [f"Sysctls ({key})" for key in spec.sysctls if not setting_path(key).startswith("net/")]
    if names:
        raise EngineError(
            f"the process engine runs commands of the machine itself and cannot give them {', '.join(names)}: "
            "leave that out, or run the daemon with --engine podman"
        )


def prefix_of(spec: ContainerSpec) -> list[str]:
    """The command in front of the task's own: limits and scores first, while it still may, then user and rights."""
    words: list[str] = []
    if spec.oom_score_adj:
        words += ["choom", f"--adjust={spec.oom_score_adj}", "--"]
    if spec.ulimits:
        words += ["prlimit", *map(_limit, spec.ulimits)]
    rights = [*_identity(spec), *_bounds(spec)]
    if spec.privileges and spec.privileges.no_new_privileges:
        rights.append("--no-new-privs")
    return [*words, "setpriv", *rights] if rights else words


def _limit(limit: Ulimit) -> str:
    soft, hard = ("unlimited" if value == UNLIMITED else value for value in (limit.soft, limit.hard))
    return f"--{limit.name}={soft}:{hard}"


def _identity(spec: ContainerSpec) -> list[str]:
    groups = f"--groups={','.join(spec.groups)}" if spec.groups else ""
    if not spec.user:
        return [groups] if groups else []
    user, _, group = spec.user.partition(":")
    return [f"--reuid={user}", f"--regid={group or user}", groups or "--clear-groups"]


def _bounds(spec: ContainerSpec) -> list[str]:
    """Without a list of what to drop, nothing is dropped, and what to add is there."""
    if not spec.capability_drop:
        return []
    changes = [f"-{capability(name).lower()}" for name in spec.capability_drop]
    kept = [f"+{capability(name).lower()}" for name in spec.capability_add if capability(name) != ALL]
    listed = ",".join(changes + kept)
    return [f"--bounding-set={listed}", f"--inh-caps={listed}"]
