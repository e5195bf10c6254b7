"""Errors to status codes and the words Docker's tools know."""

from collections.abc import Iterator
from contextlib import contextmanager

from hivemesh.model.errors import (
    Conflict,
    Forbidden,
    HivemeshError,
    Invalid,
    NotFound,
    OutOfSequence,
    Unavailable,
    Unsupported,
)

STATUS: dict[type[HivemeshError], int] = {
    Invalid: 400,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    OutOfSequence: 500,  # not 409: tools match on the text, and Docker answers 500
    Unsupported: 501,
    Unavailable: 503,
}

GRPC_CODE: dict[type[HivemeshError], str] = {
    Invalid: "InvalidArgument",
    Forbidden: "PermissionDenied",
    Conflict: "AlreadyExists",
    OutOfSequence: "Unknown",
    Unsupported: "Unimplemented",
}
"""What Docker's control plane puts before its words; look-ups and "not a manager" have nothing before theirs."""

STILL_USED = "is in use by the following service"
"""Of a secret or a config: for once, that is `InvalidArgument`."""

PRECONDITION = ("is in use by", "is not down", "cannot be removed", "can't be removed", "last manager")
"""Refusals because of the cluster's state rather than of a name taken: 400 `FailedPrecondition` in Docker."""

INACTIVE = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm '
    "and try again."
)
WORKER = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this "
    "command on a manager node or promote the current node to a manager."
)
STARTING = "This node is not a swarm manager. Manager is being prepared, please try again later."
ALREADY_IN_SWARM = (
    'This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.'
)
NOT_IN_SWARM = "This node is not part of a swarm"


class ApiError(Exception):
    """An answer other than success, decided already."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def status_of(error: HivemeshError) -> int:
    """The status of the nearest class of `error` in the tree."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


@contextmanager
def control_plane() -> Iterator[None]:
    """Around a change that managers decide on: their refusals carry the prefix that Docker's do."""
    try:
        yield
    except HivemeshError as error:
        text, status = str(error), status_of(error)
        code = next((GRPC_CODE[kind] for kind in type(error).__mro__ if kind in GRPC_CODE), None)
        if STILL_USED in text:
            pass
        elif isinstance(error, Invalid | Conflict) and any(words in text for words in PRECONDITION):
            code, status = "FailedPrecondition", 400
        elif isinstance(error, Conflict) and "already exists" in text and "name conflicts" not in text:
            text = f"name conflicts with an existing object: {text}"
        if code is None or text.endswith("matches found)"):
            raise
        raise ApiError(status, f"rpc error: code = {code} desc = {text}") from error
