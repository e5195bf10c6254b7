"""What events tell of a change: only the pairs that differ, in Docker's words."""

import asyncio
import json

import msgspec
from api_harness import manager_api

from hivemesh.api.events import describe
from hivemesh.model.ids import NodeID, ServiceID
from hivemesh.model.node import Node, NodeSpec
from hivemesh.model.service import ContainerSpec, Replicated, Service, ServiceMode, ServiceSpec, TaskSpec, UpdateStatus

replace = msgspec.structs.replace


def service(image: str = "a", replicas: int = 1, state: str = "") -> Service:
    template = TaskSpec(container_spec=ContainerSpec(image=image))
    spec = ServiceSpec(name="web", mode=ServiceMode(replicated=Replicated(replicas=replicas)), task_template=template)
    status = msgspec.convert({"state": state, "message": "", "started": 0.0}, UpdateStatus) if state else None
    return Service(id=ServiceID("s"), spec=spec, update_status=status)


def attributes(old: object, new: object, *leaders: NodeID | None) -> dict[str, str] | None:
    found = describe("x", old, new, leaders or (None, None))  # type: ignore[arg-type]
    return found[1]["Attributes"] if found else None


def test_a_service_tells_image_replicas_and_how_its_update_goes() -> None:
    assert attributes(service(), service()) is None
    assert attributes(service(), service("b", 3)) == {
        "name": "web", "image.old": "a", "image.new": "b", "replicas.old": "1", "replicas.new": "3",
    }  # fmt: skip
    assert attributes(service(), service(state="updating")) == {"name": "web", "updatestate.new": "updating"}
    assert attributes(service(state="updating"), service(state="completed")) == {
        "name": "web", "updatestate.old": "updating", "updatestate.new": "completed",
    }  # fmt: skip


async def test_a_repair_on_this_node_is_an_event_and_a_count() -> None:
    async with manager_api() as api:
        repairs = api.machine.local_networks.repairs
        repairs.note("host", "", ["the table inet hivemesh was missing"])
        repairs.note("sandbox", "0123456789ab", ["a route was missing"] * 9)
        query = {"since": "1", "until": str(api.machine.clock.now()), "filters": '{"event":["repair"]}'}
        async with asyncio.timeout(5):
            told = [event async for event in api.client.lines("/events", query)]
        assert [(e["Type"], e["Action"], e["scope"], e["Actor"]["ID"]) for e in told] == [
            ("node", "repair", "local", api.machine.node_id)
        ] * 2
        assert told[0]["Actor"]["Attributes"] == {
            "name": api.machine.name,
            "namespace": "host",
            "count": "1",
            "repaired": "the table inet hivemesh was missing",
        }
        assert told[1]["Actor"]["Attributes"]["count"] == "9"
        assert told[1]["Actor"]["Attributes"]["repaired"].endswith("; and 1 more")
        assert (await api.client.get("/hivemesh/drift"))["Repaired"] == {"host": 1, "sandbox": 9}


def test_a_node_tells_state_role_and_as_a_manager_who_leads() -> None:
    one = Node(id=NodeID("n"), spec=NodeSpec(name="n1", role="manager"), state="ready", manager_addr="192.0.2.1:2377")
    assert attributes(one, replace(one, state="down")) == {
        "name": "n1", "state.old": "ready", "state.new": "down",
        "reachability.old": "reachable", "reachability.new": "unreachable",
    }  # fmt: skip
    assert attributes(one, one, NodeID("n"), NodeID("other")) == {
        "name": "n1", "leader.old": "true", "leader.new": "false",
    }  # fmt: skip
    drained = replace(one, spec=replace(one.spec, availability="drain"))
    assert attributes(one, drained) == {"name": "n1", "availability.old": "active", "availability.new": "drain"}
    assert attributes(replace(one, manager_addr=""), replace(one, manager_addr="", updated=1.0)) is None


async def test_the_stream_ends_with_until_and_tells_what_passed_the_filters() -> None:
    async with manager_api() as api:
        await api.docker("service", "create", "-d", "--no-resolve-image", "--name=web", "--label=a=b", "localhost/x")
        await api.docker("service", "update", "-d", "--no-resolve-image", "--image=localhost/y", "web")
        await api.docker("network", "create", "-d", "overlay", "back")
        now = str(api.machine.clock.now() + 0.5)

        async def events(*filters: str) -> list[tuple[str, str, str]]:
            command = ["events", "--since=1", f"--until={now}", "--format={{json .}}"]
            out = await api.docker(*command, *(f"--filter={text}" for text in filters))
            told = [json.loads(line) for line in out.splitlines()]
            return [(each["Type"], each["Action"], each["Actor"]["Attributes"].get("image.new", "")) for each in told]

        await asyncio.sleep(0.5)
        every = await events()
        assert ("service", "create", "") in every
        assert ("service", "update", "localhost/y:latest") in every
        assert ("network", "create", "") in every
        assert await events("type=network", "event=create", "scope=swarm") == [("network", "create", "")]
        assert {kind for kind, *_ in await events("service=web")} == {"service"}
        assert await events("service=nosuch") == []
        assert "invalid filter 'nosuch'" in await api.docker_error("events", "--filter=nosuch=x", "--until=1")


async def test_the_last_256_events_are_remembered() -> None:
    async with manager_api() as api:
        for number in range(300):
            api.machine.local_networks.pruned(number)
        told = await api.docker("events", "--since=1", f"--until={api.machine.clock.now()}", "--format={{.Action}}")
        assert told.split() == ["prune"] * 256
