"""Becoming a member of a swarm, staying one, and saying goodbye: a node's calls to a manager's cluster port."""

import logging
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import msgspec

from hivemesh.agent import identity as identities
from hivemesh.agent.identity import Facts, Identity
from hivemesh.model.addr import Address, host_port, parse_host_port
from hivemesh.model.cluster import DEFAULT_LISTEN_PORT
from hivemesh.model.errors import Conflict, Forbidden, HivemeshError, Invalid, NotFound, Unavailable, Unsupported
from hivemesh.model.ids import ClusterID, NodeID, TaskID
from hivemesh.model.node import Availability, Role
from hivemesh.pki import MANAGER_NAME, JoinToken, ca_digest, client_context, new_request, unverified_context
from hivemesh.wire import codec
from hivemesh.wire.control import (
    AttachReply,
    AttachRequest,
    DetachRequest,
    JoinReply,
    JoinRequest,
    ManagerReply,
    ManagerRequest,
    MembersReply,
    Refusal,
    RenewRequest,
    TellRequest,
)
from hivemesh.wire.doctor import Inspected, Told
from hivemesh.wire.trace import Answered, Examined, ExamineRequest, Traced

log = logging.getLogger("hivemesh.agent")

CONNECT_TIMEOUT = 5.0
"""Seconds for TCP and TLS to one manager."""
CALL_TIMEOUT = 15.0
"""Seconds for a whole call; Docker's CLI gives a join 20."""
MAX_ANSWER = 32 << 20
ERROR_OF: dict[int, type[HivemeshError]] = {
    400: Invalid,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    501: Unsupported,
}
ROLES: dict[str, Role] = {"worker": "worker", "manager": "manager"}


class Unreachable(Unavailable):
    """Nobody, or nobody we trust, answers at a manager's address: another manager may."""


async def join(
    remotes: Sequence[str],
    token: str,
    *,
    data_dir: Path,
    addr: Address,
    vtep: Address,
    listen: str,
    availability: Availability = "active",
    hostname: str = "",
    store: str = "",
    etcd: bool = False,
) -> Identity:
    """Join through the first of `remotes` (host[:port]) that answers, and keep the identity under `data_dir`.

    The manager's CA must have the digest in the token before the token is sent. Raises `Invalid` (malformed token or
    address), `Forbidden` (wrong or rotated token, another swarm), `Unsupported`, `Unavailable` (nobody answers).
    """
    parsed = JoinToken.parse(token)
    managers = [parse_host_port(remote, DEFAULT_LISTEN_PORT, "manager address") for remote in remotes]
    if not managers:
        raise Invalid("the address of a manager is needed, as host:port")
    request = await new_request()
    failures: list[str] = []
    for host, port in managers:
        manager = host_port(host, port)
        try:
            ca = await _pinned_ca(manager, parsed)
            asked = JoinRequest(
                token=str(parsed),
                csr=request.csr,
                addr=str(addr),
                availability=availability,
                hostname=hostname,
                store=store,
                etcd=etcd,
            )
            answer = await _call("POST", manager, "/v1/join", client_context(ca), codec.to_json(asked))
        except Unreachable as error:
            failures.append(str(error))
            continue
        reply = _reply(answer, manager)
        facts = Facts(
            node_id=reply.node_id,
            cluster_id=ClusterID(reply.cluster_id),
            role=ROLES[reply.role],
            addr=addr,
            vtep=vtep,
            listen=listen,
            managers=(manager,),
        )
        return identities.create(data_dir, facts, ca=reply.ca, certificate=reply.certificate, key=request.key)
    raise Unavailable("; ".join(failures))


async def renew(identity: Identity) -> Identity:
    """Get a new certificate with the present one, for a fresh key; its role may be another one. Raises as `join`."""
    request = await new_request()
    body = codec.to_json(RenewRequest(csr=request.csr))
    manager, answer = await _any("POST", "/v1/renew", identity, body)
    reply = _reply(answer, manager)
    identity.renew(reply.certificate, request.key)
    return identity if reply.role == identity.facts.role else identity.with_role(ROLES[reply.role])


async def leave(identity: Identity) -> None:
    """Tell a manager that this node goes. Raises `Unavailable` when none can be told: one may leave all the same.

    A manager tells another one, which answers once they can do without it.
    """
    try:
        await _any("POST", "/v1/leave", _beside(identity), b"")
    except Forbidden as error:  # removed before: nothing to tell
        log.info("leaving: %s", error)


async def act_as_manager(identity: Identity, store: str) -> ManagerReply:
    """What a node that has the role needs to begin with, of any other manager. Raises as `attach` does."""
    asked = ManagerRequest(addr=identity.manager_addr, store=store)
    manager, answer = await _any("POST", "/v1/manager", _beside(identity), codec.to_json(asked))
    try:
        return codec.from_json(answer, ManagerReply)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the manager at {manager} gave an answer we do not understand: {error}") from None


async def store_members(identity: Identity) -> tuple[NodeID, ...]:
    """The nodes that hold the store, in the eyes of another manager. Raises as `attach` does."""
    return codec.from_json(await ask(_beside(identity), "/v1/members"), MembersReply).nodes


async def tell(identity: Identity, leader: str, asked: TellRequest) -> bool:
    """Pass a frame on by the leader (host:port), as one manager to another; False when the node has no session."""
    try:
        await _call("POST", leader, "/v1/tell", identity.client_context(), codec.to_json(asked))
    except HivemeshError as error:
        log.info("cannot tell node %s anything: %s", asked.node, error)
        return False
    return True


def _beside(identity: Identity) -> Identity:
    """The identity that knows the other managers only."""
    others = tuple(manager for manager in identity.facts.managers if manager != identity.manager_addr)
    return replace(identity, facts=msgspec.structs.replace(identity.facts, managers=others))


class Managers:
    """Whoever of them can be reached; `identity` is asked each time, since it learns of new ones."""

    def __init__(self, identity: Callable[[], Identity]) -> None:
        self._identity = identity

    async def attach(self, request: AttachRequest) -> AttachReply:
        return await attach(self._identity(), request)

    async def detach(self, task: TaskID) -> None:
        await detach(self._identity(), task)


async def attach(identity: Identity, request: AttachRequest) -> AttachReply:
    """Put a container of this node on networks, by any manager. Raises what the manager refuses with, or
    `Unavailable` when none can be asked.
    """
    manager, answer = await _any("POST", "/v1/attach", identity, codec.to_json(request))
    try:
        return codec.from_json(answer, AttachReply)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the manager at {manager} gave an answer we do not understand: {error}") from None


async def detach(identity: Identity, task: TaskID) -> None:
    """The container is gone from all its networks. Raises as `attach` does."""
    await _any("POST", "/v1/detach", identity, codec.to_json(DetachRequest(task=task)))


async def examine(identity: Identity, request: ExamineRequest) -> Examined:
    """What another node sees of a packet's way, by any manager. Raises as `attach` does."""
    manager, answer = await _any("POST", "/v1/examine", identity, codec.to_json(request))
    try:
        return codec.from_json(answer, Examined)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the manager at {manager} gave an answer we do not understand: {error}") from None


async def tell_traced(identity: Identity, manager: str, traced: Traced) -> None:
    """Answer the manager (host:port) that asked. Raises as `tell_examined` does."""
    await _call("POST", manager, "/v1/traced", identity.client_context(), codec.to_json(traced))


async def tell_examined(identity: Identity, manager: str, answered: Answered) -> None:
    """Answer the manager (host:port) that asked. Raises `Unavailable`, or `Forbidden` when it waits no more."""
    await _call("POST", manager, "/v1/examined", identity.client_context(), codec.to_json(answered))


async def inspect(identity: Identity) -> Inspected:
    """How all nodes are, by any manager. Raises as `attach` does."""
    manager, answer = await _any("POST", "/v1/inspect", identity, b"")
    try:
        return codec.from_json(answer, Inspected)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the manager at {manager} gave an answer we do not understand: {error}") from None


async def tell_inspected(identity: Identity, manager: str, told: Told) -> None:
    """Answer the manager (host:port) that asked. Raises as `tell_examined` does."""
    await _call("POST", manager, "/v1/inspected", identity.client_context(), codec.to_json(told))


async def ask(identity: Identity, path: str) -> bytes:
    """What any manager says of `path`. Raises as `attach` does."""
    return (await _any("GET", path, identity, b""))[1]


async def _any(method: str, path: str, identity: Identity, body: bytes) -> tuple[str, bytes]:
    failures: list[str] = []
    for manager in identity.facts.managers:
        try:
            return manager, await _call(method, manager, path, identity.client_context(), body)
        except Unavailable as error:  # it may be cut off from the others
            failures.append(str(error))
    raise Unavailable("; ".join(dict.fromkeys(failures)) or "no other manager is known")


async def _pinned_ca(manager: str, token: JoinToken) -> str:
    """The CA certificate that `manager` presents, if it is the token's."""
    text = (await _call("GET", manager, "/v1/ca", unverified_context())).decode(errors="replace")
    try:
        digest = ca_digest(text)
    except ValueError:
        raise Unreachable(f"{manager} is no manager of a hivemesh swarm") from None
    if digest != token.digest:
        raise Forbidden(
            f"this token belongs to another swarm: the manager at {manager} presents a different CA; "
            "print the token again on a manager of the swarm you want to join"
        )
    return text


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises `ClientPayloadError` when it is larger than anything a manager says."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER:
            raise aiohttp.ClientPayloadError(f"the answer has more than {MAX_ANSWER >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


async def _call(method: str, manager: str, path: str, context: ssl.SSLContext, body: bytes = b"") -> bytes:
    """One HTTPS request. Raises `Unreachable`, or what the manager's refusal means."""
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT, connect=CONNECT_TIMEOUT)
    name = MANAGER_NAME if context.check_hostname else None
    try:
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as http:
            async with http.request(
                method, f"https://{manager}{path}", data=body, ssl=context, server_hostname=name, allow_redirects=False
            ) as response:
                answer = await _read(response)
                status = response.status
    except TimeoutError:
        raise Unreachable(f"cannot reach the manager at {manager}: no answer in time; {_hint(manager)}") from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise Unreachable(f"the manager at {manager} is not trusted: {error.certificate_error}") from None
    except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
        raise Unreachable(f"cannot reach the manager at {manager}: {reason_of(error)}; {_hint(manager)}") from None
    if status < 300:
        return answer
    try:
        message = codec.from_json(answer, Refusal).message
    except msgspec.MsgspecError:
        raise Unreachable(f"{manager} is no manager of a hivemesh swarm (it answers {status})") from None
    raise ERROR_OF.get(status, Unavailable)(message)


def reason_of(error: Exception) -> str:
    """What the operating system or TLS says, without the client library's own words."""
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        return str(cause) if isinstance(cause, ssl.SSLError) or not cause.errno else os.strerror(cause.errno)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _hint(manager: str) -> str:
    return f"is it up, and does its firewall let TCP port {manager.rpartition(':')[2]} through?"


def _reply(answer: bytes, manager: str) -> JoinReply:
    try:
        reply = codec.from_json(answer, JoinReply)
    except msgspec.MsgspecError as error:
        raise Unavailable(f"the manager at {manager} gave an answer we do not understand: {error}") from None
    if reply.role not in ROLES:
        raise Unavailable(f"the manager at {manager} gave this node the unknown role {reply.role!r}")
    return reply
