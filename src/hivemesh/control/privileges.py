"""What a container may do, as asked: pure checks of capabilities, limits, settings and confinement.

They raise `Invalid`, or `Unsupported` for what nodes of ours cannot do. What one node cannot do, its engine says.
"""

import re
from collections.abc import Iterable

import msgspec

from hivemesh.dataplane.plan.sandbox import NOT_THE_USERS, NOT_THE_USERS_TREES
from hivemesh.model.container import ContainerSpec, Privileges, Ulimit
from hivemesh.model.errors import Invalid, Unsupported
from hivemesh.model.privilege import (
    LIMITS,
    OOM_SCORES,
    UNLIMITED,
    capability,
    is_own_setting,
    setting_path,
)

GROUP = re.compile(r"[^\s:,]+")
MOST_PROFILE = 512_000
"""Bytes of a seccomp profile: what a secret may have."""


def check(container: ContainerSpec) -> None:
    for field, names in (("CapabilityAdd", container.capability_add), ("CapabilityDrop", container.capability_drop)):
        for name in names:
            try:
                capability(name)
            except ValueError as error:
                raise Invalid(f"ContainerSpec.{field}: {error}: use names such as CAP_NET_ADMIN, or ALL") from None
    for group in container.groups:
        if not GROUP.fullmatch(group):
            raise Invalid(f"ContainerSpec.Groups: invalid group {group!r}: use a name or a number")
    if container.oom_score_adj not in OOM_SCORES:
        raise Invalid(
            f"ContainerSpec: Invalid value {container.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    _ulimits(container.ulimits)
    _sysctls(container.sysctls)
    if container.privileges is not None:
        _privileges(container.privileges)


def _ulimits(limits: Iterable[Ulimit]) -> None:
    seen = set()
    for limit in limits:
        if limit.name not in LIMITS:
            raise Invalid(f"ContainerSpec.Ulimits: invalid ulimit type: {limit.name}: use one of {', '.join(LIMITS)}")
        if limit.name in seen:
            raise Invalid(f"ContainerSpec.Ulimits: {limit.name} is given twice")
        seen.add(limit.name)
        if min(limit.soft, limit.hard) < UNLIMITED:
            raise Invalid(f"ContainerSpec.Ulimits: {limit.name}: a limit is -1 (none) or more")
        if limit.hard != UNLIMITED and (limit.soft > limit.hard or limit.soft == UNLIMITED):
            raise Invalid(
                f"ContainerSpec.Ulimits: {limit.name}: ulimit soft limit must be less than or equal to hard limit: "
                f"{limit.soft} > {limit.hard}"
            )


def _sysctls(sysctls: dict[str, str]) -> None:
    for key, value in sysctls.items():
        path = setting_path(key)
        if not key or ".." in path or "\0" in key + value or not value.strip():
            raise Invalid(f"ContainerSpec.Sysctls: invalid setting {key}={value}")
        if not is_own_setting(key):
            raise Invalid(
                f"ContainerSpec.Sysctls: {key} is no container's own, but the whole node's: set it on the nodes"
            )
        if path in NOT_THE_USERS or path.startswith(NOT_THE_USERS_TREES):
            raise Unsupported(f"ContainerSpec.Sysctls: {key} is not supported: the networks of tasks depend on it")


def _privileges(privileges: Privileges) -> None:
    seccomp, context = privileges.seccomp, privileges.selinux_context
    if seccomp and (seccomp.mode == "custom") != bool(seccomp.profile):
        raise Invalid("ContainerSpec.Privileges.Seccomp: a profile goes with mode custom, and with no other")
    if seccomp and seccomp.profile:
        if len(seccomp.profile) > MOST_PROFILE:
            raise Invalid(f"ContainerSpec.Privileges.Seccomp: the profile is larger than {MOST_PROFILE} bytes")
        try:
            msgspec.json.decode(seccomp.profile, type=dict)
        except msgspec.MsgspecError as error:
            raise Invalid(f"ContainerSpec.Privileges.Seccomp: the profile is no JSON object: {error}") from None
    if context and context.disable and (context.user or context.role or context.type or context.level):
        raise Invalid("ContainerSpec.Privileges.SELinuxContext: Disable excludes User, Role, Type and Level")
