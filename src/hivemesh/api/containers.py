"""`/containers`: where the engine's answers differ from what Docker's clients expect."""

from typing import Any
from urllib.parse import quote

from aiohttp import web

from hivemesh.api import passthrough
from hivemesh.api.http import answer, body_of
from hivemesh.model.errors import HivemeshError, Invalid, Unsupported
from hivemesh.model.service import Spec
from hivemesh.wire import codec
from hivemesh.wire.engine import strict

routes = web.RouteTableDef()

LIBPOD = "v4.0.0"
"""Podman's own API, which can change a container's limits (from Podman 4.3) where its copy of Docker's cannot."""
CPU_PERIOD = 100_000
"""Microseconds: the kernel's default, over which a share of CPUs is given out."""


class Limits(Spec, frozen=True, kw_only=True):
    """`POST /containers/{ref}/update`. Zero leaves a limit as it is; bytes, microseconds, billionths of a CPU."""

    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int = 0
    blkio_weight: int = 0


def resources(limits: Limits) -> dict[str, Any]:
    """As the OCI's runtime specification has them, without what stays as it is."""
    period, quota = limits.cpu_period, limits.cpu_quota
    if limits.nano_cpus:
        if period or quota:
            raise Invalid("conflicting options: NanoCpus and a CPU quota or period cannot both be set")
        period, quota = CPU_PERIOD, limits.nano_cpus * CPU_PERIOD // 10**9
    found: dict[str, dict[str, Any]] = {
        "memory": {"limit": limits.memory, "swap": limits.memory_swap, "reservation": limits.memory_reservation},
        "cpu": {
            "shares": limits.cpu_shares,
            "period": period,
            "quota": quota,
            "cpus": limits.cpuset_cpus,
            "mems": limits.cpuset_mems,
        },
        "pids": {"limit": limits.pids_limit},
        "blockIO": {"weight": limits.blkio_weight},
    }
    said = {part: {name: value for name, value in inner.items() if value} for part, inner in found.items()}
    return {part: inner for part, inner in said.items() if inner}


@routes.post("/containers/{ref}/update")
async def update(request: web.Request) -> web.Response:
    body = await body_of(request)
    if isinstance(body, dict) and not strict.empty(strict.pick(body, "RestartPolicy")):
        raise Unsupported("RestartPolicy of a container is not changed later: make the container anew with --restart")
    limits = resources(strict.read(body, Limits, "UpdateConfig"))
    found = await passthrough.ask(request, f"/containers/{quote(request.match_info['ref'], safe='')}/json")
    if limits:
        path = f"/libpod/containers/{found['Id']}/update"
        await passthrough.ask(request, path, method="POST", body=limits, version=LIBPOD)
    return answer({"Warnings": []})


@routes.get("/containers/{ref}/stats")
async def stats(request: web.Request) -> web.StreamResponse:
    """What a container uses. Docker's names begin with a slash, which its clients cut off; Podman 4's have none."""
    ref = quote(request.match_info["ref"], safe="")
    await passthrough.ask(request, f"/containers/{ref}/json")  # it may not be there, which the stream would not say
    query = f"?{request.query_string}" if request.query_string else ""
    async with passthrough.stream(request, f"/containers/{ref}/stats{query}") as content:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        async for line in content:
            await response.write(_slashed(line))
    await response.write_eof()
    return response


def _slashed(line: bytes) -> bytes:
    try:
        value: Any = strict.decode(line)
    except HivemeshError:
        return line  # an empty line, or words of the engine's that are no JSON
    name = value.get("name") if isinstance(value, dict) else None
    if not name or name.startswith("/"):
        return line
    return codec.to_json({**value, "name": f"/{name}"}) + b"\n"
