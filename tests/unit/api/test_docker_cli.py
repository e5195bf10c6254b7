"""The unmodified docker CLI speaks to our API."""

from api_harness import manager_api


async def test_one_manager_docker_cli_walks_through_a_service() -> None:
    async with manager_api() as manager:
        assert "hivemesh" in await manager.docker("version")
        nodes = await manager.docker("node", "ls")
        assert "n1" in nodes
        out = await manager.docker(
            "service",
            "create",
            "--name",
            "web_ingress_lb",
            "--replicas",
            "2",
            "--publish",
            "8090:80",
            "localhost/whoami",
        )
        print(out)
        print(await manager.docker("service", "ls"), await manager.docker("service", "ps", "web_ingress_lb"), nodes)
        print(
            await manager.docker("info"),
            await manager.docker("network", "ls"),
            await manager.docker("service", "inspect", "web_ingress_lb"),
        )
        assert 0
