"""What the unmodified docker CLI, and ours, say about nodes: preferences, resources, static addresses, labels."""

import json
import shutil
import sys
from operator import itemgetter
from typing import Any

import msgspec
import pytest
from api_harness import Served, manager_api

from hivemesh.model.generic import parse
from hivemesh.model.node import Node
from hivemesh.store.tables import Transaction

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker command here")

CREATE = ("service", "create", "--detach", "--no-resolve-image")


async def equip(api: Served, *texts: str, cpus: int = 4) -> None:
    """What the only node says it has."""
    assert api.machine.manager is not None

    def edit(tx: Transaction) -> None:
        (node,) = tx.all(Node)
        about = msgspec.structs.replace(
            node.description, generic=parse(texts), nano_cpus=cpus * 10**9, memory_bytes=1 << 30
        )
        tx.put(msgspec.structs.replace(node, description=about))

    await api.machine.manager.tables.update(edit)


async def inspect(api: Served, kind: str, ref: str) -> Any:
    (found,) = json.loads(await api.docker(kind, "inspect", ref))
    return found


async def errors(api: Served, service: str) -> list[str]:
    said = await api.docker("service", "ps", "--no-trunc", "--format", "{{.Error}}", service)
    return said.split("\n")[:-1]


async def test_placement_preferences_arrive_and_change() -> None:
    async with manager_api() as api:
        both = ("--placement-pref=spread=node.labels.zone", "--placement-pref=spread=node.labels.rack")
        await api.docker(*CREATE, "--name=web", *both, "x")
        placement = (await inspect(api, "service", "web"))["Spec"]["TaskTemplate"]["Placement"]
        assert [one["Spread"]["SpreadDescriptor"] for one in placement["Preferences"]] == [
            "node.labels.zone",
            "node.labels.rack",
        ]
        change = ("--placement-pref-rm=spread=node.labels.zone", "--placement-pref-add=spread=engine.labels.disk")
        await api.docker("service", "update", "--detach", *change, "web")
        assert "engine.labels.disk" in await api.docker("service", "inspect", "--pretty", "web")
        refused = await api.docker_error(*CREATE, "--placement-pref=spread=colour", "x")
        assert "Placement: cannot spread over 'colour': use node.labels.NAME" in refused


async def test_generic_resources_are_shown_taken_and_missed() -> None:
    async with manager_api() as api:
        await equip(api, "GPU=a", "GPU=b", "SSD=3")
        assert (await inspect(api, "node", "n1"))["Description"]["Resources"]["GenericResources"] == [
            {"NamedResourceSpec": {"Kind": "GPU", "Value": "a"}},
            {"NamedResourceSpec": {"Kind": "GPU", "Value": "b"}},
            {"DiscreteResourceSpec": {"Kind": "SSD", "Value": 3}},
        ]
        await api.docker(*CREATE, "--name=web", "--generic-resource=GPU=1", "--generic-resource=SSD=2", "x")
        reservations = (await inspect(api, "service", "web"))["Spec"]["TaskTemplate"]["Resources"]["Reservations"]
        asked = [each["DiscreteResourceSpec"] for each in reservations["GenericResources"]]
        # docker sends what it was given in any order
        assert sorted(asked, key=itemgetter("Kind")) == [{"Kind": "GPU", "Value": 1}, {"Kind": "SSD", "Value": 2}]
        task = (await api.docker("service", "ps", "-q", "web")).strip()
        taken = json.loads(await api.docker("inspect", "--type=task", task))[0]["GenericResources"]
        assert sorted(taken, key=str, reverse=True) == [
            {"NamedResourceSpec": {"Kind": "GPU", "Value": "a"}},
            {"DiscreteResourceSpec": {"Kind": "SSD", "Value": 2}},
        ]
        await api.docker(*CREATE, "--name=more", "--generic-resource=SSD=2", "x")
        assert await errors(api, "more") == ['"no suitable node (insufficient resources on 1 node)"']
        await api.docker("service", "update", "--detach", "--generic-resource-rm=SSD", "web")
        named = b'{"Name":"n","TaskTemplate":{"ContainerSpec":{"Image":"x"},"Resources":{"Reservations":'
        named += b'{"GenericResources":[{"NamedResourceSpec":{"Kind":"GPU","Value":"a"}}]}}}}'
        status, _, body = await api.http("POST", "/services/create", named, "Content-Type: application/json")
        assert (status, "invalid argument for resource GPU" in body["message"]) == (400, True)


async def test_reservations_and_their_lack_are_shown() -> None:
    async with manager_api() as api:
        await equip(api, cpus=2)
        await api.docker(*CREATE, "--name=web", "--replicas=3", "--reserve-cpu=1", "--reserve-memory=64m", "x")
        reserved = (await inspect(api, "service", "web"))["Spec"]["TaskTemplate"]["Resources"]["Reservations"]
        assert reserved == {"NanoCPUs": 1_000_000_000, "MemoryBytes": 64 << 20}
        assert sorted(await errors(api, "web")) == ["", "", '"no suitable node (insufficient resources on 1 node)"']
        pids = b'{"Name":"n","TaskTemplate":{"ContainerSpec":{"Image":"x"},"Resources":{"Reservations":{"Pids":5}}}}'
        status, _, body = await api.http("POST", "/services/create", pids, "Content-Type: application/json")
        assert (status, body["message"]) == (501, "TaskTemplate.Resources.Reservations.Pids is not supported")


async def test_labels_and_availability_decide_who_stays() -> None:
    async with manager_api() as api:
        await api.docker("node", "update", "--label-add=zone=north", "n1")
        await api.docker(*CREATE, "--name=web", "--constraint=node.labels.zone==north", "x")
        await api.docker("node", "update", "--label-rm=zone", "n1")
        for _ in range(100):
            said = await errors(api, "web")
            if '"assigned node no longer meets constraints"' in said:
                break
        assert sorted(said) == [
            '"assigned node no longer meets constraints"',
            '"no suitable node (scheduling constraints not satisfied on 1 node)"',
        ]
        await api.docker("node", "update", "--availability=drain", "n1")
        assert '"no suitable node (1 node not available for new tasks)"' in await errors(api, "web")
        await api.docker("node", "update", "--availability=active", "--label-add=zone=north", "n1")
        assert '"no suitable node' not in "".join(await errors(api, "web"))


async def test_static_addresses_are_given_shown_and_refused() -> None:
    async with manager_api() as api:
        await api.docker("network", "create", "--driver=overlay", "--subnet=10.9.0.0/24", "back")
        await api.docker(*CREATE, "--name=db", "--network=name=back,driver-opt=ip=10.9.0.50", "x")
        task = (await api.docker("service", "ps", "-q", "db")).strip()
        (attachment,) = json.loads(await api.docker("inspect", "--type=task", task))[0]["NetworksAttachments"]
        assert attachment["Addresses"] == ["10.9.0.50/24"]
        network = (await inspect(api, "service", "db"))["Spec"]["TaskTemplate"]["Networks"][0]
        assert network["DriverOpts"] == {"ip": "10.9.0.50"}
        words = "a static address is for one task: use mode replicated with at most 1 replica"
        assert words in await api.docker_error("service", "scale", "--detach", "db=2")
        taken = await api.docker_error(*CREATE, "--network=name=back,driver-opt=hivemesh.ip=10.9.0.50", "x")
        assert "address 10.9.0.50 is already in use by service db" in taken
        outside = await api.docker_error(*CREATE, "--network=name=back,driver-opt=ip=10.8.0.1", "x")
        assert "invalid address 10.8.0.1: It does not belong to network back" in outside
        assert await api.docker("service", "ls", "--format={{.Name}} {{.Replicas}}") == "db 1/1\n"


async def test_our_own_command_says_the_same() -> None:
    async with manager_api() as api:
        await equip(api, "GPU=2")
        await api.docker("network", "create", "--driver=overlay", "--subnet=10.9.0.0/24", "back")
        ours = (sys.executable, "-m", "hivemesh.cli", "service")
        create = """create --detach --name db --network name=back,ip=10.9.0.50 --placement-pref spread=node.labels.zone
            --generic-resource GPU=1 --reserve-memory 64m x"""
        update = "update --detach --placement-pref-rm spread=node.labels.zone --generic-resource-add GPU=1 db"
        for command in (create, update):
            result = await api.run(*ours, *command.split())
            assert result.code == 0, result
        template = (await inspect(api, "service", "db"))["Spec"]["TaskTemplate"]
        assert template["Networks"][0]["DriverOpts"] == {"ip": "10.9.0.50"}
        assert "Preferences" not in template["Placement"]
        assert template["Resources"]["Reservations"] == {
            "MemoryBytes": 64 << 20,
            "GenericResources": [{"DiscreteResourceSpec": {"Kind": "GPU", "Value": 2}}],
        }


async def test_info_shows_what_tasks_may_take_of_the_node() -> None:
    async with manager_api() as api:
        assert await api.docker("info", "--format", "{{json .GenericResources}}") == "[]\n"
        api.machine.generic = parse(["GPU=a"])
        shown = json.loads(await api.docker("info", "--format", "{{json .GenericResources}}"))
        assert shown == [{"NamedResourceSpec": {"Kind": "GPU", "Value": "a"}}]
