"""What this machine cannot give to a container, found before it is tried: the words of a kernel that refuses are few.

A machine that is a container or a small virtual one itself often lacks CAP_SYS_RESOURCE, swap accounting or a journal.
"""

import resource
from dataclasses import dataclass
from pathlib import Path

from hivemesh.engine.api import ContainerRequest, EngineError
from hivemesh.model.container import ContainerSpec
from hivemesh.model.privilege import ALL, CAPABILITIES, UNLIMITED, capability
from hivemesh.model.service import Resources

RESOURCE = "SYS_RESOURCE"
LIMIT_KINDS = {
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "locks": 10,  # RLIMIT_LOCKS, which Python does not know (asm-generic/resource.h)
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": resource.RLIMIT_MSGQUEUE,
    "nice": resource.RLIMIT_NICE,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "rss": resource.RLIMIT_RSS,
    "rtprio": resource.RLIMIT_RTPRIO,
    "rttime": resource.RLIMIT_RTTIME,
    "sigpending": resource.RLIMIT_SIGPENDING,
    "stack": resource.RLIMIT_STACK,
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look; another root is a picture of a machine, for tests."""

    root: Path = Path("/")

    def capabilities(self) -> frozenset[str]:
        """That the daemon, and so a container of its, may have at most."""
        for line in (self.root / "proc/self/status").read_text().splitlines():
            if line.startswith("CapBnd:"):
                bits = int(line.split()[1], 16)
                return frozenset(name for bit, name in enumerate(CAPABILITIES) if bits >> bit & 1)
        return frozenset(CAPABILITIES)

    def oom_score(self) -> int:
        """The daemon's own; only CAP_SYS_RESOURCE allows a lower one."""
        return int((self.root / "proc/self/oom_score_adj").read_text())

    def has_selinux(self) -> bool:
        return (self.root / "sys/fs/selinux/enforce").exists()

    def has_journal(self) -> bool:
        return (self.root / "run/systemd/journal/socket").exists()

    def counts_swap(self) -> bool:
        unified = self.root / "sys/fs/cgroup/cgroup.controllers"
        return unified.exists() or (self.root / "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()

    def has_swappiness(self) -> bool:
        """Of groups of processes: unified cgroups (v2) have none."""
        return (self.root / "sys/fs/cgroup/memory/memory.swappiness").exists()


def refuse_impossible(request: ContainerRequest, machine: Machine) -> None:
    """Raises `EngineError` that names the field and what the machine lacks."""
    able = machine.capabilities()
    refuse_impossible_process(request.spec, machine, able)
    privileges = request.spec.privileges
    context = privileges.selinux_context if privileges else None
    if context and (context.user or context.role or context.type or context.level) and not machine.has_selinux():
        raise EngineError("Privileges.SELinuxContext: SELinux is not enabled on this machine")
    _swap(request.resources, machine)
    if request.log_driver and request.log_driver.name == "journald" and not machine.has_journal():
        raise EngineError("LogDriver journald: no journal runs on this machine (/run/systemd/journal/socket)")


def refuse_impossible_process(spec: ContainerSpec, machine: Machine, able: frozenset[str]) -> None:
    """What concerns the process alone. `able`: the capabilities this machine can give."""
    for name in spec.capability_add:
        if (wanted := capability(name)) != ALL and wanted not in able:
            raise EngineError(f"CapabilityAdd: the daemon on this machine lacks CAP_{wanted} and cannot give it")
    if RESOURCE in able:
        return
    for limit in spec.ulimits:
        own = resource.getrlimit(LIMIT_KINDS[limit.name])[1]
        if own != resource.RLIM_INFINITY and (limit.hard == UNLIMITED or limit.hard > own):
            wanted = "unlimited" if limit.hard == UNLIMITED else str(limit.hard)
            raise EngineError(
                f"Ulimits: {limit.name} cannot be raised to {wanted} on this machine: the daemon's own limit is {own}, "
                "and it lacks CAP_SYS_RESOURCE"
            )
    if spec.oom_score_adj and spec.oom_score_adj < (own := machine.oom_score()):
        raise EngineError(
            f"OomScoreAdj: {spec.oom_score_adj} is less than the daemon's own {own}, and it lacks CAP_SYS_RESOURCE"
        )


def _swap(resources: Resources, machine: Machine) -> None:
    if resources.swap_bytes is not None and not machine.counts_swap():
        raise EngineError("Resources.SwapBytes: this machine's kernel does not count swap (boot it with swapaccount=1)")
    if resources.memory_swappiness not in (None, -1) and not machine.has_swappiness():
        raise EngineError(
            "Resources.MemorySwappiness: unified cgroups (v2), which this machine has, know no such thing"
        )
