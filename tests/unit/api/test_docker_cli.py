"""The unmodified docker CLI speaks to our API: real managers, a real store, tasks that start at once."""

import asyncio
import json
import re
import shutil

import pytest
from api_harness import Served, manager_api, outside_api, worker_api

from hivemesh.model.ids import TaskID, new_id
from hivemesh.wire.control import AttachRequest, Joining

pytestmark = pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker command here")

CREATE = ("service", "create", "--name", "web_ingress_lb", "--replicas", "2", "--publish", "8090:80")


async def create(api: Served, *more: str, image: str = "localhost/whoami") -> str:
    return (await api.docker("service", "create", "--detach", "--no-resolve-image", *more, image)).strip()


async def test_machine_outside_a_swarm_answers_what_everybody_asks_first() -> None:
    async with outside_api() as api:
        assert "API version:      1.51 (minimum version 1.40)" in await api.docker("version")
        assert "Swarm: inactive" in await api.docker("info")
        assert "This node is not a swarm manager. Use " in await api.docker_error("node", "ls")
        assert "This node is not part of a swarm" in await api.docker_error("swarm", "leave")


async def test_swarm_init_makes_a_manager_and_refuses_to_do_it_twice() -> None:
    async with outside_api() as api:
        assert "is now a manager" in await api.docker("swarm", "init", "--default-addr-pool", "10.77.0.0/16")
        assert "already part of a swarm" in await api.docker_error("swarm", "init")
        assert "10.77.0.0/24" in await api.docker("network", "inspect", "ingress")
        info = await api.docker("info", "--format", "{{json .Swarm}}")
        assert json.loads(info)["ControlAvailable"] is True
        listed = await api.docker("node", "ls", "--format", "{{.Hostname}} {{.Self}} {{.ManagerStatus}} {{.TLSStatus}}")
        assert listed == "n1 true Leader Ready\n"


async def test_worker_says_that_managers_decide() -> None:
    async with worker_api() as api:
        for command in (
            ("node", "ls"),
            ("service", "ls"),
            ("service", "create", "x"),
            ("network", "create", "-dover", "n"),
        ):
            refused = await api.run("docker", *[word.replace("-dover", "--driver=overlay") for word in command])
            assert "Worker nodes can't be used to view or modify cluster state" in refused.err


async def test_service_is_created_scaled_updated_and_removed() -> None:
    async with manager_api() as api:
        created = await api.run("docker", *CREATE, "--update-monitor", "200ms", "localhost/whoami")
        assert created.code == 0, created
        assert re.search(r"Service (\w+ )?converged", created.out)  # newer clients name it
        assert "could not be accessed on a registry" in created.err
        row = await api.docker("service", "ls", "--format", "{{.Name}} {{.Replicas}} {{.Ports}}")
        assert row == "web_ingress_lb 2/2 *:8090->80/tcp\n"

        await api.docker("service", "scale", "--detach", "web_ingress_lb=5")
        await api.docker(
            "service", "update", "--detach", "--no-resolve-image", "--image", "localhost/two", "web_ingress_lb"
        )
        await api.docker("service", "update", "--detach", "--rollback", "web_ingress_lb")
        inspected = json.loads(await api.docker("service", "inspect", "web_ingress_lb"))[0]
        assert inspected["Spec"]["Mode"]["Replicated"]["Replicas"] == 5
        assert inspected["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "localhost/whoami:latest"
        for _ in range(100):  # one slot after the other is taken back
            tasks = await api.docker("service", "ps", "web_ingress_lb", "--filter", "desired-state=running", "-q")
            if len(tasks.split()) == 5:
                break
        assert len(tasks.split()) == 5

        await api.docker("service", "rm", "web_ingress_lb")
        assert await api.docker("service", "ls", "-q") == ""


async def test_zero_values_keep_their_meaning() -> None:
    async with manager_api() as api:
        await create(
            api, "--name=web", "--replicas=0", "--restart-delay=0s", "--stop-grace-period=0s", "--update-parallelism=0"
        )
        spec = json.loads(await api.docker("service", "inspect", "web"))[0]["Spec"]
        assert spec["Mode"]["Replicated"]["Replicas"] == 0
        assert spec["TaskTemplate"]["RestartPolicy"]["Delay"] == 0
        assert spec["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"] == 0
        assert spec["UpdateConfig"]["Parallelism"] == 0


async def test_everything_the_cli_can_say_about_a_container_arrives() -> None:
    async with manager_api() as api:
        options = """--name=web --env=A=1 --label=a=b --container-label=c=d --hostname=h --user=u --workdir=/w
            --stop-signal=INT --host=db:192.0.2.1 --mount=type=bind,source=/tmp,target=/x,readonly --limit-memory=64m
            --constraint=node.role==manager --publish=published=8080,target=80,mode=host
            --publish=9000-9001:9000-9001/udp"""
        await create(api, *options.split())
        service = json.loads(await api.docker("service", "inspect", "web"))[0]
        container = service["Spec"]["TaskTemplate"]["ContainerSpec"]
        assert container["Mounts"] == [{"Type": "bind", "Source": "/tmp", "Target": "/x", "ReadOnly": True}]
        assert container["Hosts"] == ["192.0.2.1 db"]
        assert container["Env"] == ["A=1"]
        ports = {
            (port["PublishedPort"], port["Protocol"], port["PublishMode"]) for port in service["Endpoint"]["Ports"]
        }
        assert ports == {(8080, "tcp", "host"), (9000, "udp", "ingress"), (9001, "udp", "ingress")}


async def test_everything_the_cli_can_say_about_names_arrives_and_changes() -> None:
    async with manager_api() as api:
        for name in ("front", "back"):
            await api.docker("network", "create", "--driver=overlay", "--attachable", name)
        options = """--name=web --network=name=front,alias=db --endpoint-mode=dnsrr --dns=192.0.2.1
            --dns-search=a.example --dns-option=ndots:2 --hostname={{.Service.Name}}-{{.Task.Slot}} --health-cmd=true
            --health-interval=5s --health-start-period=1s --health-retries=2"""
        await create(api, *options.split())
        front, back = [
            (await api.docker("network", "inspect", "--format={{.ID}}", name)).strip() for name in ("front", "back")
        ]
        service = json.loads(await api.docker("service", "inspect", "web"))[0]
        template = service["Spec"]["TaskTemplate"]
        assert template["Networks"] == [{"Target": front, "Aliases": ["db"]}]
        assert template["ContainerSpec"]["DNSConfig"] == {
            "Nameservers": ["192.0.2.1"], "Search": ["a.example"], "Options": ["ndots:2"],
        }  # fmt: skip
        check = template["ContainerSpec"]["Healthcheck"]
        assert check["Test"] == ["CMD-SHELL", "true"]
        assert (check["Interval"], check["StartPeriod"], check["Retries"]) == (5_000_000_000, 1_000_000_000, 2)
        assert service["Endpoint"]["Spec"]["Mode"] == "dnsrr"
        assert not service["Endpoint"].get("VirtualIPs")
        tasks = await api.docker("service", "ps", "-q", "web")
        await api.docker("service", "update", "--detach", "--endpoint-mode=vip", "web")
        (vip,) = json.loads(await api.docker("service", "inspect", "web"))[0]["Endpoint"]["VirtualIPs"]
        assert vip["NetworkID"] == front
        assert await api.docker("service", "ps", "-q", "web") == tasks
        options = "--network-rm=front --network-add=name=back,alias=sql --dns-rm=192.0.2.1 --no-healthcheck"
        await api.docker("service", "update", "--detach", *options.split(), "web")
        service = json.loads(await api.docker("service", "inspect", "web"))[0]
        template = service["Spec"]["TaskTemplate"]
        assert template["Networks"] == [{"Target": back, "Aliases": ["sql"]}]
        assert template["ContainerSpec"]["Healthcheck"] == {"Test": ["NONE"]}
        assert [vip["NetworkID"] for vip in service["Endpoint"]["VirtualIPs"]] == [back]
        assert "Endpoint Mode" in await api.docker("service", "inspect", "--pretty", "web")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("network create --driver=overlay --subnet=10.9.0.0/24 --gateway=10.8.0.1 x", "no matching subnet for gateway"),
        (
            "network create --driver=overlay --subnet=10.0.0.0/16 x",
            "Pool overlaps with other one on this address space",
        ),
        ("network create --driver=overlay --opt=encrypted x", "network option 'encrypted' is not supported"),
        ("network create --driver=overlay --ipam-driver=other x", "IPAM driver 'other' is not supported"),
        ("network create --driver=overlay front", "network with name front already exists"),
        (
            "network create --driver=other --scope=swarm x",
            'plugin "other" not found: drivers are bridge, macvlan, overlay',
        ),
        ("service create --endpoint-mode=dnsrr --publish=80:80 x", "can't be used with dnsrr mode"),
        ("service create --network=name=front,alias=d_b- x", "not a host name"),
        ("service create --network=name=front,driver-opt=a=b x", "driver option 'a' of a service is not supported"),
        ("service create --label=hivemesh.lb=fast x", "invalid label hivemesh.lb=fast: use one of"),
        ("node update --label-add=hivemesh.weight=-1 n1", "invalid label hivemesh.weight=-1: use a number"),
    ],
)
async def test_bad_input_about_networks_and_names_is_refused_with_words(command: str, words: str) -> None:
    async with manager_api() as api:
        await api.docker("network", "create", "--driver=overlay", "front")
        assert words in await api.docker_error(*command.split())
        assert await api.docker("service", "ls", "-q") == ""
        assert (await api.docker("network", "ls", "-q", "--filter=driver=overlay")).count("\n") == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--secret", "s"), "secret not found: s"),
        (("--log-driver", "syslog"), "LogDriver syslog is not supported: use json-file, journald or none"),
    ],
)
async def test_what_we_do_not_do_is_refused_by_name(options: tuple[str, ...], named: str) -> None:
    async with manager_api() as api:
        assert named in await api.docker_error("service", "create", "--detach", "--no-resolve-image", *options, "x")
        assert await api.docker("service", "ls", "-q") == ""


async def test_refusals_carry_the_words_that_tools_know() -> None:
    async with manager_api() as api:
        identifier = await create(api, "--name=web", "--publish=8080:80")
        again = await api.docker_error("service", "create", "--detach", "--no-resolve-image", "--name=web", "x")
        assert "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service web" in again
        taken = await api.docker_error("service", "create", "--detach", "--no-resolve-image", "--publish=8080:1", "x")
        assert f"port '8080' is already in use by service 'web' ({identifier}) as an ingress port" in taken
        for kind in ("service", "node"):  # older clients have words of their own for a 404
            missing = await api.docker_error(kind, "rm", "nosuch")
            assert f"No such {kind}: nosuch" in missing or f"{kind} nosuch not found" in missing
        assert "nosuch" in await api.docker_error("service", "create", "--detach", "--network=nosuch", "x")


async def test_failed_task_shows_the_engines_words() -> None:
    async with manager_api() as api:
        await create(api, "--name=web", "--restart-condition=none", image="bad/image")
        for _ in range(50):
            shown = await api.docker("service", "ps", "web", "--no-trunc")
            if "no such image: bad/image" in shown:
                break
            await asyncio.sleep(0.05)
        assert "no such image: bad/image" in shown
        assert "Rejected" in shown


async def test_networks_are_created_inspected_and_protected_while_in_use() -> None:
    async with manager_api() as api:
        await api.docker("network", "create", "--driver=overlay", "--subnet=10.9.0.0/24", "--ipv6", "backend")
        await create(api, "--name=web", "--network=backend")
        network = json.loads(await api.docker("network", "inspect", "--verbose", "backend"))[0]
        assert network["Scope"] == "swarm"
        assert network["IPAM"]["Config"][0] == {"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"}
        assert network["EnableIPv6"] is True
        assert "is in use by service" in await api.docker_error("network", "rm", "backend")
        assert "already exists" in await api.docker_error("network", "create", "--driver=overlay", "backend")
        await api.docker("service", "rm", "web")
        listed = await api.docker("network", "ls", "--filter", "driver=overlay", "--format", "{{.Name}}")
        assert listed.split() == ["backend", "ingress"]


async def test_network_shows_who_is_on_it_and_what_is_left_of_its_addresses() -> None:
    async with manager_api() as api:
        await api.docker("network", "create", "--driver=overlay", "--subnet=10.9.0.0/24", "--ipv6", "backend")
        created = api.run("docker", "service", "create", "--name=web", "--replicas=2", "--network=backend", "img")
        assert (await created).code == 0
        network = json.loads(await api.docker("network", "inspect", "--verbose", "backend"))[0]
        web = network["Services"]["web"]
        assert web["VIP"] == "10.9.0.2"
        assert web["VIPv6"].startswith("fd")
        assert {task["Info"]["Host IP"] for task in web["Tasks"]} == {"198.51.100.11"}
        assert [peer["IP"] for peer in network["Peers"]] == ["198.51.100.11"]
        here = {held["Name"]: held for held in network["Containers"].values()}
        for task in web["Tasks"]:
            assert here[task["Name"]]["IPv4Address"] == f"{task['EndpointIP']}/24"
            assert here[task["Name"]]["EndpointID"] == task["EndpointID"]
        assert "backend-endpoint" in here
        v4 = network["Status"]["IPAM"]["Subnets"]["10.9.0.0/24"]
        assert (v4["IPsInUse"], v4["DynamicIPsAvailable"]) == (3 + 4, 253 - 4)
        assert "Services" not in json.loads(await api.docker("network", "inspect", "backend"))[0]


async def test_plain_container_is_shown_on_its_network_and_among_no_tasks() -> None:
    async with manager_api() as api:
        await api.docker("network", "create", "--driver=overlay", "--attachable", "front")
        manager, node = api.machine.manager, api.machine.node_id
        assert manager is not None
        assert node is not None
        place = AttachRequest(
            task=TaskID(new_id()), container="c1", container_id="c" * 64, networks=(Joining(network="front"),)
        )
        await manager.attach(node, place)
        assert await api.docker("node", "ps", "-q") == ""
        network = json.loads(await api.docker("network", "inspect", "--verbose", "front"))[0]
        (shown,) = network["Services"][""]["Tasks"]
        held = network["Containers"]["c" * 64]
        assert (held["Name"], held["IPv4Address"]) == ("c1", f"{shown['EndpointIP']}/24")
        assert "is in use by task" in await api.docker_error("network", "rm", "front")


async def test_worker_shows_networks_it_heard_of_and_leaves_them_to_managers() -> None:
    async with manager_api() as api:
        await api.docker("network", "create", "--driver=overlay", "backend")
        assert api.machine.manager is not None
        told = (api.machine.manager.insight("backend"),)
    async with worker_api() as api:
        api.machine.told = told
        listed = await api.docker("network", "ls", "--filter", "scope=swarm", "--format", "{{.Name}} {{.Driver}}")
        assert listed == "backend overlay\n"
        network = json.loads(await api.docker("network", "inspect", "--verbose", "backend"))[0]
        assert (network["Id"], network["Services"]) == (told[0].network.id, {})
        assert "This node is not a swarm manager" in await api.docker_error("network", "rm", "backend")
        assert "nowhere" in await api.docker_error("network", "inspect", "nowhere")


async def test_rotated_token_is_new_and_the_old_one_gone() -> None:
    async with manager_api() as api:
        before = await api.docker("swarm", "join-token", "-q", "worker")
        after = await api.docker("swarm", "join-token", "-q", "--rotate", "worker")
        assert before != after
        assert after == await api.docker("swarm", "join-token", "-q", "worker")
        assert "docker swarm join --token" in await api.docker("swarm", "join-token", "manager")


async def test_node_can_be_drained_and_labelled() -> None:
    async with manager_api() as api:
        await api.docker("node", "update", "--availability=drain", "--label-add=disk=ssd", "n1")
        spec = json.loads(await api.docker("node", "inspect", "self"))[0]["Spec"]
        assert (spec["Availability"], spec["Labels"]) == ("drain", {"disk": "ssd"})
        assert "n1" in await api.docker("node", "ls", "--filter", "node.label=disk=ssd")
        assert "last manager" in await api.docker_error("node", "demote", "n1")


async def test_stack_is_deployed_listed_and_removed() -> None:
    stack = b"""
version: "3.8"
services:
  web:
    image: localhost/whoami
    ports: ["8091:80"]
    deploy: {replicas: 2}
"""
    async with manager_api() as api:
        await api.docker("stack", "deploy", "--resolve-image=never", "--compose-file=-", "demo", stdin=stack)
        assert "demo_web" in await api.docker("stack", "services", "demo")
        assert await api.docker("stack", "ls", "--format", "{{.Name}} {{.Services}}") == "demo 1\n"
        await api.docker("stack", "rm", "demo")
        assert await api.docker("service", "ls", "-q") == ""
