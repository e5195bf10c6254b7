"""The `hivemesh` command against a running API: the same words as docker's, one line per error."""

import asyncio
import json
import signal
import sys

import pytest
from api_harness import Result, Served, manager_api, outside_api


async def hivemesh(api: Served, *arguments: str) -> Result:
    return await api.run(sys.executable, "-m", "hivemesh.cli", *arguments)


async def out(api: Served, *arguments: str) -> str:
    result = await hivemesh(api, *arguments)
    assert result.code == 0, result
    return result.out


async def test_swarm_is_made_shown_and_left() -> None:
    async with outside_api() as api:
        assert "hivemesh swarm join --token SWMTKN-1-" in await out(api, "swarm", "init")
        assert await out(api, "swarm", "join-token", "-q", "worker") != await out(
            api, "swarm", "join-token", "-q", "--rotate", "worker"
        )
        assert "Leader" in await out(api, "node", "ls")
        assert "manager" in await out(api, "info")
        assert "API 1.51" in await out(api, "version")
        assert "Node left the swarm" in await out(api, "swarm", "leave", "--force")
        refused = await hivemesh(api, "node", "ls")
        assert refused.code == 1
        assert refused.err.startswith("Error: This node is not a swarm manager.")
        assert refused.err.count("\n") == 1


async def test_service_is_created_watched_scaled_changed_and_removed() -> None:
    async with manager_api() as api:
        created = await hivemesh(
            api,
            "service",
            "create",
            "--name",
            "web",
            "--replicas",
            "2",
            "--publish",
            "8080:80",
            "localhost/whoami",
            "-v",
        )
        assert created.code == 0
        assert created.err.endswith("2 of 2 tasks running: converged\n")
        assert (await api.client.get("/services/web"))["Spec"]["TaskTemplate"]["ContainerSpec"]["Args"] == ["-v"]
        (row,) = (json.loads(line) for line in (await out(api, "service", "ls", "--format", "json")).splitlines())
        assert (row["Name"], row["Replicas"], row["Ports"]) == ("web", "2/2", "*:8080->80/tcp")

        assert "web scaled to 4" in await out(api, "service", "scale", "--detach", "web=4")
        await out(
            api,
            "service",
            "update",
            "--detach",
            "--env-add",
            "A=1",
            "--publish-add",
            "53:53/udp",
            "--label-add",
            "x=y",
            "web",
        )
        spec = (await api.client.get("/services/web"))["Spec"]
        assert spec["Mode"]["Replicated"]["Replicas"] == 4
        assert spec["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=1"]
        assert spec["Labels"] == {"x": "y"}
        assert [port["PublishedPort"] for port in spec["EndpointSpec"]["Ports"]] == [8080, 53]
        await out(api, "service", "update", "--detach", "--env-rm", "A", "--publish-rm", "80", "--label-rm", "x", "web")
        spec = (await api.client.get("/services/web"))["Spec"]
        assert [port["PublishedPort"] for port in spec["EndpointSpec"]["Ports"]] == [53]
        assert "Env" not in spec["TaskTemplate"]["ContainerSpec"]
        await out(api, "service", "update", "--detach", "--rollback", "web")
        assert (await api.client.get("/services/web"))["Spec"]["Labels"] == {"x": "y"}

        assert "web.1" in await out(api, "service", "ps", "web")
        assert "web.1" in await out(api, "node", "ps")
        removed = await hivemesh(api, "service", "rm", "web", "nosuch")
        assert (removed.code, removed.out, removed.err) == (1, "web\n", "Error: service nosuch not found\n")


async def test_service_of_ours_is_updated_by_docker_and_nothing_restarts() -> None:
    async with manager_api() as api:
        await out(api, "service", "create", "--detach", "--name", "web", "docker.io/library/whoami")
        plain = {"Name": "raw", "TaskTemplate": {"ContainerSpec": {"Image": "whoami"}}}
        await api.client.post("/services/create", plain)
        before = {task["ID"] for task in await api.client.get("/tasks")}
        image = (await api.client.get("/services/web"))["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
        assert image == "whoami:latest"
        for name in ("web", "raw"):
            await api.docker("service", "update", "--detach", "--label-add", "a=b", name)
        assert {task["ID"] for task in await api.client.get("/tasks")} == before


async def test_service_is_given_names_and_a_health_check() -> None:
    async with manager_api() as api:
        for name in ("front", "back"):
            await out(api, "network", "create", name)
        options = """--name web --network name=front,alias=db,alias=sql --endpoint-mode dnsrr --dns 192.0.2.1
            --dns-search a.example --dns-option ndots:2 --hostname box --host gate:192.0.2.9 --health-cmd true
            --label hivemesh.lb=source"""
        await out(api, "service", "create", "--detach", *options.split(), "localhost/whoami")
        service = await api.client.get("/services/web")
        template = service["Spec"]["TaskTemplate"]
        container = template["ContainerSpec"]
        front, back = [(await api.client.get(f"/networks/{name}"))["Id"] for name in ("front", "back")]
        assert template["Networks"] == [{"Target": front, "Aliases": ["db", "sql"]}]
        assert container["DNSConfig"] == {
            "Nameservers": ["192.0.2.1"], "Search": ["a.example"], "Options": ["ndots:2"],
        }  # fmt: skip
        assert (container["Hostname"], container["Hosts"]) == ("box", ["192.0.2.9 gate"])
        assert container["Healthcheck"] == {"Test": ["CMD-SHELL", "true"]}
        assert service["Endpoint"]["VirtualIPs"] == []
        options = """--network-rm front --network-add name=back,alias=db --endpoint-mode vip --dns-rm 192.0.2.1
            --dns-search-add b.example --host-rm gate --no-healthcheck --label-rm hivemesh.lb"""
        await out(api, "service", "update", "--detach", *options.split(), "web")
        service = await api.client.get("/services/web")
        template = service["Spec"]["TaskTemplate"]
        container = template["ContainerSpec"]
        assert template["Networks"] == [{"Target": back, "Aliases": ["db"]}]
        assert [vip["NetworkID"] for vip in service["Endpoint"]["VirtualIPs"]] == [back]
        assert container["DNSConfig"] == {"Search": ["a.example", "b.example"], "Options": ["ndots:2"]}
        assert "Hosts" not in container
        assert container["Healthcheck"] == {"Test": ["NONE"]}
        shown = json.loads(await out(api, "network", "inspect", "--verbose", "back"))[0]
        assert shown["Services"]["web"]["VIP"] == service["Endpoint"]["VirtualIPs"][0]["Addr"].partition("/")[0]


async def test_convergence_shows_the_engines_error_and_goes_on_when_interrupted() -> None:
    async with manager_api() as api:
        command = (sys.executable, "-m", "hivemesh.cli", "service", "create", "--name", "web", "bad/image")
        waiting = await asyncio.create_subprocess_exec(*command, env=api.environment, stderr=asyncio.subprocess.PIPE)
        assert waiting.stderr is not None
        async with asyncio.timeout(30):
            await waiting.stderr.readuntil(b"0 of 1 tasks running; no such image: bad/image")
            waiting.send_signal(signal.SIGINT)
            assert b"Operation continues in the background" in await waiting.stderr.read()
            assert await waiting.wait() != 0
        assert "no such image" in await out(api, "service", "ps", "web")


async def test_network_is_created_listed_and_removed() -> None:
    async with manager_api() as api:
        given = "--subnet 10.9.0.0/24 --subnet fd09::/64 --gateway fd09::9 --gateway 10.9.0.9 --internal --attachable"
        await out(api, "network", "create", *given.split(), "back")
        assert "10.9.0.0/24" in await out(api, "network", "ls")
        (network,) = json.loads(await out(api, "network", "inspect", "back"))
        assert [entry["Gateway"] for entry in network["IPAM"]["Config"]] == ["10.9.0.9", "fd09::9"]
        assert network["EnableIPv6"] is network["Internal"] is network["Attachable"] is True
        assert await out(api, "network", "rm", "back") == "back\n"
        asked = await hivemesh(api, "network", "rm", "ingress")
        assert asked.code != 0
        assert "ingress" in await out(api, "network", "ls")


async def test_node_is_updated() -> None:
    async with manager_api() as api:
        await out(api, "node", "update", "--availability", "drain", "--label-add", "a=b", "self")
        (node,) = json.loads(await out(api, "node", "inspect", "n1"))
        assert (node["Spec"]["Availability"], node["Spec"]["Labels"]) == ("drain", {"a": "b"})
        assert len((await out(api, "node", "ls", "-q")).strip()) == 25


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["service", "create", "--nosuch"], 2, "No such option"),
        (["nosuch"], 2, "No such command"),
        (["service", "create"], 2, "Missing argument"),
        (["service", "ls", "--format", "{{.ID}}"], 2, "Go templates are not supported: use table or json"),
        (["service", "create", "--publish", "70000:80", "x"], 1, "is no number from 1 to 65535"),
        (["service", "create", "--stop-grace-period", "soon", "x"], 1, "invalid duration 'soon'"),
        (["service", "create", "--mode", "global", "--replicas", "2", "x"], 1, "a global one has a task on each node"),
        (["service", "create", "--max-concurrent", "2", "x"], 1, "--max-concurrent is for replicated jobs"),
        (["service", "create", "--replicas", "-1", "x"], 2, "-1"),
        (["service", "scale", "web=many"], 1, "write SERVICE=REPLICAS"),
        (["service", "create", "--label", "hivemesh.lb=x", "x"], 1, "hivemesh.lb=x: use one of rr, wrr, source"),
        (["service", "create", "--dns", "one", "x"], 1, "invalid DNS server 'one': expected an IPv4 or IPv6 address"),
        (["service", "create", "--no-healthcheck", "--health-cmd", "true", "x"], 1, "conflicts with --health-"),
        (["network", "create", "--subnet", "10.9.0.0/24", "--gateway", "10.8.0.1", "x"], 1, "no matching subnet for"),
        (["network", "create", "--opt", "encrypted=", "x"], 1, "network option 'encrypted' is not supported"),
        (["node", "update", "--label-add", "hivemesh.weight=x", "n1"], 1, "use a number from 0 to 100"),
        (["service", "update", "nosuch"], 1, "service nosuch not found"),
        (["node", "ls", "--filter", "role"], 1, "write key=value"),
    ],
)
async def test_mistake_is_one_line_with_what_to_do(arguments: list[str], code: int, text: str) -> None:
    async with manager_api() as api:
        result = await hivemesh(api, *arguments)
        assert result.code == code
        assert result.err.startswith("Error: ")
        assert result.err.count("\n") == 1
        assert text in result.err


async def test_missing_daemon_is_named() -> None:
    async with outside_api() as api:
        for host, text in (
            ("unix:///nosuch/docker.sock", "no daemon at unix:///nosuch/docker.sock"),
            ("tcp://127.0.0.1:1", "cannot connect to the daemon at tcp://127.0.0.1:1"),
            ("ftp://x", "expected unix:///path/to/docker.sock"),
        ):
            result = await hivemesh(api, "--host", host, "node", "ls")
            assert result.code == 1
            assert text in result.err


async def test_every_command_explains_itself_with_examples() -> None:
    from hivemesh.cli import COMMANDS

    async with outside_api() as api:
        shown = await out(api, "--help")
        for name, (_, text) in COMMANDS.items():
            assert name in shown
            assert text.split(",")[0] in shown
        for command in (
            "service create",
            "service update",
            "swarm join",
            "network create",
            "node update",
            "completion",
        ):
            assert "Examples:" in await out(api, *command.split(), "--help")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion_script_is_printed(shell: str) -> None:
    async with outside_api() as api:
        assert "_HIVEMESH_COMPLETE" in await out(api, "completion", shell)
