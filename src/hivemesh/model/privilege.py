"""What the kernel calls that which a process may be given or denied: capabilities, limits, settings of its own."""

CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""In the order of their bits (linux/capability.h)."""
ALL = "ALL"

LIMITS = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio",
    "rttime", "sigpending", "stack",
)  # fmt: skip
"""Of a process, as Docker's `--ulimit` and prlimit(1) call them."""
UNLIMITED = -1

OOM_SCORES = range(-1000, 1001)
"""proc(5): /proc/PID/oom_score_adj."""

_OWN_SETTINGS = (
    "kernel/domainname", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shm_rmid_forced",
    "kernel/shmall", "kernel/shmmax", "kernel/shmmni",
)  # fmt: skip
_OWN_TREES = ("fs/mqueue/", "net/")


def capability(text: str) -> str:
    """`NET_ADMIN` of `CAP_NET_ADMIN`, `net_admin` and the like, or `ALL`. Raises `ValueError`."""
    name = text.strip().upper().removeprefix("CAP_")
    if name != ALL and name not in CAPABILITIES:
        raise ValueError(f"unknown capability {text!r}")
    return name


def setting_path(key: str) -> str:
    """A setting's path below /proc/sys: `net.core.somaxconn` and `net/core/somaxconn` are one.

    As sysctl(8) has it: the first separator says which of the two is meant, so names of interfaces may hold the other.
    """
    dot, slash = key.find("."), key.find("/")
    if dot < 0 or 0 <= slash < dot:
        return key
    return key.translate({ord("."): "/", ord("/"): "."})


def is_own_setting(key: str) -> bool:
    """The kernel keeps it apart for each container."""
    path = setting_path(key)
    return path in _OWN_SETTINGS or path.startswith(_OWN_TREES)


def network_settings(sysctls: dict[str, str]) -> dict[str, str]:
    """Those of the network namespace, by path, blanks between several numbers made single."""
    found = {setting_path(key): " ".join(value.split()) for key, value in sysctls.items()}
    return {path: value for path, value in found.items() if path.startswith("net/")}
