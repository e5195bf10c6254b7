"""Talking to etcd: its version 3 API as JSON over HTTP, which every etcd server offers beside gRPC.

Why not gRPC: its library costs a manager 14 MiB and brings an event loop of its own, and no kept asyncio client of etcd
changes to another endpoint by itself. Here a request goes to the endpoint that answered last, and to the next one when
that does not.

Keys and values are base64 and 64-bit numbers are strings in this form of the API; msgspec reads and writes both.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from hivemesh.model.errors import Conflict, HivemeshError, Unavailable
from hivemesh.store.api import Silent

log = logging.getLogger("hivemesh.store")

T = TypeVar("T")

CONNECT_TIMEOUT = 2.0
"""Seconds for TCP and TLS to one endpoint."""
CALL_TIMEOUT = 5.0
"""Seconds for a whole call, unless it says otherwise."""
LONG = 60.0
"""Seconds for what rewrites a member's whole file."""
QUIET = 15.0
"""Seconds without an event after which a watch is begun anew: a connection may die without a word."""

UNAVAILABLE, OUT_OF_RANGE, EXHAUSTED, PRECONDITION = 14, 11, 8, 9
"""Codes of gRPC."""


class EtcdError(HivemeshError):
    """etcd refused a request; `code` is gRPC's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Header(msgspec.Struct, frozen=True):
    revision: int = 0
    member_id: int = 0  # who answers


class KeyValue(msgspec.Struct, frozen=True):
    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0
    lease: int = 0


class RangeResponse(msgspec.Struct, frozen=True):
    header: Header = Header()
    kvs: tuple[KeyValue, ...] = ()
    more: bool = False


class Response(msgspec.Struct, frozen=True):
    """Of one operation in a transaction; only reads say anything."""

    response_range: RangeResponse = RangeResponse()


class TxnResponse(msgspec.Struct, frozen=True):
    header: Header = Header()
    succeeded: bool = False
    responses: tuple[Response, ...] = ()


class WatchEvent(msgspec.Struct, frozen=True):
    kv: KeyValue
    type: str = "PUT"


class WatchResponse(msgspec.Struct, frozen=True):
    header: Header = Header()
    created: bool = False
    canceled: bool = False
    fragment: bool = False  # more events of the same revisions follow
    compact_revision: int = 0
    cancel_reason: str = ""
    events: tuple[WatchEvent, ...] = ()


class _Watched(msgspec.Struct, frozen=True):
    result: WatchResponse | None = None
    error: Any = None


class LeaseResponse(msgspec.Struct, frozen=True):
    ID: int = 0
    TTL: int = 0


class _KeepAlive(msgspec.Struct, frozen=True):
    result: LeaseResponse = LeaseResponse()


class Member(msgspec.Struct, frozen=True, rename={"learner": "isLearner", "peers": "peerURLs"}):
    """One of the servers of a cluster; without a name it was never started."""

    ID: int
    name: str = ""
    peers: tuple[str, ...] = ()
    learner: bool = False


class MemberResponse(msgspec.Struct, frozen=True):
    member: Member | None = None
    members: tuple[Member, ...] = ()


class Status(msgspec.Struct, frozen=True, rename={"size": "dbSize", "used": "dbSizeInUse"}):
    """Of the member that answers: bytes of its file, and how many of them hold something."""

    header: Header = Header()
    size: int = 0
    used: int = 0


class Alarm(msgspec.Struct, frozen=True, rename={"member": "memberID", "kind": "alarm"}):
    """Raised by one member, and felt by all until it is disarmed."""

    member: int = 0
    kind: str = "NONE"


class _Alarms(msgspec.Struct, frozen=True):
    alarms: tuple[Alarm, ...] = ()


class _Error(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""
    error: Any = ""


def put(key: bytes, value: bytes, lease: int = 0) -> Any:
    return {"request_put": {"key": key, "value": value, **({"lease": str(lease)} if lease else {})}}


def delete(key: bytes) -> Any:
    return {"request_delete_range": {"key": key}}


def get(key: bytes, **options: Any) -> Any:
    return {"request_range": {"key": key, **options}}


def written_at(key: bytes, revision: int, *, or_before: bool = False) -> Any:
    """A condition: the key was last written at that revision, or not later; 0: it does not exist."""
    known = revision + 1 if or_before else revision
    return {"target": "MOD", "result": "LESS" if or_before else "EQUAL", "key": key, "mod_revision": str(known)}


def has_value(key: bytes, value: bytes) -> Any:
    """A condition."""
    return {"target": "VALUE", "result": "EQUAL", "key": key, "value": value}


class EtcdClient:
    """Calls to a cluster, at any of its `endpoints` (URLs), or at one member's `socket` on this machine.

    `ailing` knows what may keep that member from answering, in words; empty: nothing.
    """

    def __init__(
        self,
        endpoints: Sequence[str] = (),
        *,
        tls: ssl.SSLContext | None = None,
        socket: Path | None = None,
        ailing: Callable[[], str] = str,
    ) -> None:
        self._ailing = ailing
        self._endpoints = list(endpoints) or ["http://etcd"]
        self._ours = socket is not None
        self._tls: dict[str, Any] = {"ssl": tls} if tls is not None else {}
        self._http = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(socket)) if socket is not None else None,
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_connect=CONNECT_TIMEOUT),
            trust_env=False,
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self._http.close()

    async def call(self, path: str, body: Any, kind: type[T], timeout: float = CALL_TIMEOUT) -> T:
        """One request. Raises `EtcdError`, or `Silent` when no endpoint answers."""
        return msgspec.json.decode(await self._ask(path, body, timeout), type=kind, strict=False)

    async def txn(
        self,
        conditions: Sequence[Any],
        success: Sequence[Any],
        failure: Sequence[Any] = (),
        timeout: float = CALL_TIMEOUT,
    ) -> TxnResponse:
        body = {"compare": conditions, "success": success, "failure": failure}
        return await self.call("kv/txn", body, TxnResponse, timeout)

    async def watch(self, first: bytes, end: bytes, revision: int) -> AsyncGenerator[WatchResponse, None]:
        """What is written to keys from `first` to before `end`, from `revision` on. Ends when the connection does.

        Raises as `call` does, and `TimeoutError` after `QUIET` seconds without an event: ask again from there.
        """
        wanted = {"key": first, "range_end": end, "start_revision": str(revision), "fragment": True}
        data, rest = msgspec.json.encode({"create_request": wanted}), b""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=QUIET)
        async with self._http.post(self._url("watch"), data=data, timeout=timeout, **self._tls) as response:
            if response.status != 200:
                raise _error(await response.read())
            async for part in response.content.iter_any():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    told = msgspec.json.decode(line, type=_Watched, strict=False)
                    if told.result is None:
                        raise _error(line)
                    yield told.result

    async def grant(self, seconds: int, timeout: float = CALL_TIMEOUT) -> int:
        """A new lease."""
        return (await self.call("lease/grant", {"TTL": str(seconds)}, LeaseResponse, timeout)).ID

    async def keep_alive(self, lease: int, timeout: float) -> bool:
        """False when the lease is over."""
        answer = await self.call("lease/keepalive", {"ID": str(lease)}, _KeepAlive, timeout)
        return answer.result.TTL > 0

    async def revoke(self, lease: int) -> None:
        await self.call("lease/revoke", {"ID": str(lease)}, Header, 1.0)

    async def members(self) -> tuple[Member, ...]:
        return (await self.call("cluster/member/list", {}, MemberResponse)).members

    async def add_learner(self, peer: str) -> tuple[Member, ...]:
        """A member that only listens until it is promoted; returns all members.

        Raises `Conflict` while there is another one, or a member does not answer.
        """
        try:
            body = {"peerURLs": [peer], "isLearner": True}
            return (await self.call("cluster/member/add", body, MemberResponse)).members
        except EtcdError as error:
            if "too many learner" in error.message or "unhealthy" in error.message or "not started" in error.message:
                raise Conflict(f"another manager is being added, or one does not answer: {error.message}") from error
            raise

    async def promote(self, member: int) -> bool:
        """Make a learner a full member; False while it has not caught up."""
        try:
            await self.call("cluster/member/promote", {"ID": str(member)}, MemberResponse)
        except EtcdError as error:
            if "in sync" in error.message:
                return False
            raise
        return True

    async def remove(self, member: int) -> None:
        """Raises `EtcdError` when that could cost the majority."""
        await self.call("cluster/member/remove", {"ID": str(member)}, MemberResponse)

    async def status(self) -> Status:
        return await self.call("maintenance/status", {}, Status)

    async def compact(self, revision: int) -> None:
        """Forget all before etcd's `revision`; returns when the room it took is free inside the file."""
        try:
            await self.call("kv/compaction", {"revision": str(revision), "physical": True}, RangeResponse, LONG)
        except EtcdError as error:
            if error.code != OUT_OF_RANGE:  # somebody else was faster
                raise

    async def defragment(self) -> None:
        """Give what is free in the file of the member that answers back to its disk; it answers nothing meanwhile."""
        await self.call("maintenance/defragment", {}, Header, LONG)

    async def alarms(self) -> tuple[Alarm, ...]:
        return (await self.call("maintenance/alarm", {"action": "GET"}, _Alarms)).alarms

    async def disarm(self, alarm: Alarm) -> None:
        body = {"action": "DEACTIVATE", "memberID": str(alarm.member), "alarm": alarm.kind}
        await self.call("maintenance/alarm", body, _Alarms)

    async def _ask(self, path: str, body: Any, timeout: float) -> bytes:
        data = msgspec.json.encode(body)
        for _ in self._endpoints:
            try:
                async with asyncio.timeout(timeout):
                    async with self._http.post(self._url(path), data=BytesIO(data), **self._tls) as response:
                        answer = await response.read()
                        if response.status == 200:
                            return answer
            except aiohttp.ClientConnectorError as error:  # it was never sent
                reason = str(error.os_error) or "no connection"
                self._endpoints.append(self._endpoints.pop(0))
                continue
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._endpoints.append(self._endpoints.pop(0))
                raise Silent(self._no_answer(str(error) or "no answer in time")) from None
            raise _error(answer, ours=self._ours)
        raise Silent(self._no_answer(reason))

    def _no_answer(self, reason: str) -> str:
        return _no_majority("; ".join(filter(None, (reason, self._ailing()))))

    def _url(self, path: str) -> str:
        return f"{self._endpoints[0]}/v3/{path}"


def _no_majority(reason: str) -> str:
    return (
        "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of "
        f"the managers are online. (etcd: {reason})"
    )


def _error(answer: bytes, *, ours: bool = False) -> HivemeshError:
    """What etcd's refusal means; one that is `ours` is looked after by us (`store/room.py`)."""
    try:
        said = msgspec.json.decode(answer, type=_Error, strict=False)
        if isinstance(said.error, dict):  # in a stream
            said = _Error(int(said.error.get("grpc_code", 0)), str(said.error.get("message", "")))
    except (msgspec.MsgspecError, ValueError):
        return Unavailable(
            "the store's etcd does not speak the JSON form of its API: start it with --enable-grpc-gateway"
        )
    text = said.message or str(said.error)
    if "too many operations" in text or "too large" in text:
        return Unavailable(
            f"the store's etcd refuses a change of this size ({text}): nothing was changed; start it with "
            "--max-txn-ops=100000 --max-request-bytes=33554432"
        )
    if said.code == EXHAUSTED and "space exceeded" in text:
        help = "room is being made: try again in some seconds"
        if not ours:
            help = "compact and defragment it, then disarm its alarm"
        return Unavailable(f"the store's etcd has no room left ({text}): nothing was changed; {help}")
    if said.code == EXHAUSTED:
        return Unavailable(f"the store's etcd has too much to do ({text}): nothing was changed; try again")
    if said.code == UNAVAILABLE and "unhealthy" not in text:
        return Silent(_no_majority(text.removeprefix("etcdserver: ")))
    return EtcdError(said.code, text)
