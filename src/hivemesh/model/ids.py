"""Typed ids. Swarm objects have 25 characters of base 36, containers and sandboxes of the engine 64 hex digits."""

import secrets
from typing import NewType

ClusterID = NewType("ClusterID", str)
NodeID = NewType("NodeID", str)
NetworkID = NewType("NetworkID", str)
EndpointID = NewType("EndpointID", str)
ServiceID = NewType("ServiceID", str)
TaskID = NewType("TaskID", str)
PayloadID = NewType("PayloadID", str)  # of a secret or a config

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 25
"""Docker: 17 random bytes as 25 characters of base 36."""


def base36(number: int, width: int) -> str:
    """`number` in base 36, padded with zeros to `width` characters."""
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = DIGITS[digit] + text
    return text.rjust(width, "0")


def new_id() -> str:
    """A fresh id of 25 characters; unique without asking anybody."""
    return base36(secrets.randbelow(36**ID_LENGTH), ID_LENGTH)


def short(identifier: str) -> str:
    """The 12 characters people see in tables and in `ip netns`."""
    return identifier[:12]
