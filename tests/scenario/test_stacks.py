"""`docker stack`: files as teams have them, deployed, changed, taken back and removed; images from a registry."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from outside import Said, await_tasks, cli, eventually, run_cli, tasks_of

from debian_images import Unavailable, made, serve
from hivemesh.lab.lab import Lab
from labs import SharedLab

pytestmark = [pytest.mark.scenario, pytest.mark.usefixtures("registry")]

STACKS = Path(__file__).parent.parent / "stacks"
WEB, AGENT = 8180, 9100


@pytest.fixture(scope="module")
def registry(shared_lab: SharedLab) -> Iterator[str]:
    try:
        root = made()
    except Unavailable as error:
        pytest.skip(f"no images of Debian's packages: {error}")
    with serve(shared_lab.get().client, root) as address:
        yield address


def stack(lab: Lab, *words: str, **settings: str) -> Said:
    """`docker stack …`, with variables for the file."""
    environment = [f"{name}={value}" for name, value in settings.items()]
    return run_cli(lab.nodes[0], "env", *environment, "docker", "stack", *words)


def deploy(lab: Lab, name: str, *options: str, file: Path | None = None, **settings: str) -> str:
    said = stack(lab, "deploy", "--compose-file", str(file or STACKS / f"{name}.yml"), *options, name, **settings)
    assert said.code == 0, said
    return said.out


def remove(lab: Lab, name: str) -> None:
    said = stack(lab, "rm", name)
    assert (said.code, said.err) == (0, "")
    listed = [
        line for line in cli(lab.nodes[0], "docker", "stack", "ls", "--format", "{{.Name}}").split() if line == name
    ]
    assert listed == []
    for kind in ("services", "networks", "secrets", "configs"):
        assert [thing for thing in lab.nodes[0].api("GET", f"/{kind}") if _name(thing).startswith(f"{name}_")] == []


def _name(thing: dict[str, object]) -> str:
    spec = thing.get("Spec", thing)
    assert isinstance(spec, dict)
    return str(spec["Name"])


def ids(lab: Lab, name: str) -> list[str]:
    return sorted(cli(lab.nodes[0], "docker", "stack", "ps", "--quiet", "--no-trunc", name).split())


def asked(lab: Lab, path: str, port: int, node: int = 0) -> str:
    done = lab.client.exec("curl", "-s", "-m", "5", f"http://{lab.nodes[node].spec.v4.ip}:{port}{path}", check=False)
    return done.stdout.strip()


def visited(lab: Lab, version: str, greeting: str = "hello", node: int = 0) -> re.Match[str]:
    """A visit that was counted and kept."""

    def look() -> re.Match[str]:
        said = asked(lab, "/cgi-bin/visit", WEB, node)
        found = re.fullmatch(rf"version {version} {greeting} hits (\d+) rows (\d+) on (n\d)", said)
        assert found, said
        return found

    return eventually(look, 30)


def test_shop_is_deployed_updated_rolled_back_and_removed(lab: Lab) -> None:
    first = lab.nodes[0]
    deploy(lab, "shop", "--detach=true")
    visited(lab, "1", node=2)
    await_tasks(lab, "shop_web", 2)
    eventually(lambda: _assert_listed(lab))
    assert cli(first, "docker", "stack", "ls", "--format", "{{.Name}} {{.Services}}") == "shop 4\n"

    image = first.api("GET", "/services/shop_web")["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"]
    assert re.fullmatch(r"client:5000/shop/web:1@sha256:[0-9a-f]{64}", image), "what the file says, as that very one"

    # Deployed again as it is, nothing is touched
    before = ids(lab, "shop")
    deploy(lab, "shop", "--detach=true")
    assert ids(lab, "shop") == before

    # Another version; data stays
    rows = int(visited(lab, "1")[2])
    deploy(lab, "shop", "--detach=true", WEB_VERSION="2")
    now = visited(lab, "2")
    assert int(now[2]) > rows
    untouched = {task.id for name in ("db", "cache", "schema") for task in tasks_of(lab, f"shop_{name}")}
    assert untouched <= set(before)
    running = {task.id for task in await_tasks(lab, "shop_web", 2)}
    assert running.isdisjoint(before)

    # Back, by hand
    cli(first, "docker", "service", "rollback", "--detach", "--quiet", "shop_web")
    eventually(lambda: _assert_rolled_back(lab), 30)
    visited(lab, "1")

    # And on its own: a version that cannot start
    deploy(lab, "shop", "--detach=true", WEB_PROGRAM="/bin/nothing", GREETING="welcome")
    eventually(lambda: _assert_rolled_back(lab), 60)
    assert int(visited(lab, "1")[2]) > int(now[2])

    # A job of another stack, on the network and with the secret of this one, each time it is asked for
    for day in ("monday", "tuesday"):
        deploy(lab, "report", "--detach=true", DAY=day)
        eventually(lambda day=day: _assert_reported(lab, day), 20)  # type: ignore[misc]
    remove(lab, "report")

    remove(lab, "shop")
    refused = stack(lab, "deploy", "--compose-file", str(STACKS / "report.yml"), "report")
    assert refused.code == 1
    assert 'network "shop_data" is declared as external, but could not be found' in refused.err
    eventually(lambda: _assert_no_tasks(lab), 20)
    eventually(lambda: cli(lab.nodes[1], "docker", "volume", "rm", "shop_db"), 20)  # once its container is removed too


def _assert_listed(lab: Lab) -> None:
    words = ("docker", "stack", "services", "--format", "{{.Name}} {{.Mode}} {{.Replicas}}", "shop")
    assert set(cli(lab.nodes[0], *words).splitlines()) == {
        "shop_web replicated 2/2",
        "shop_cache replicated 1/1",
        "shop_db replicated 1/1",
        "shop_schema replicated job 0/1 (1/1 completed)",
    }


def _assert_rolled_back(lab: Lab) -> None:
    """To the greeting of before, which no other update has."""
    service = lab.nodes[0].api("GET", "/services/shop_web")
    assert service["UpdateStatus"]["State"] == "rollback_completed", service["UpdateStatus"]
    assert "GREETING=hello" in service["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"]


def _assert_no_tasks(lab: Lab) -> None:
    assert lab.nodes[0].api("GET", "/tasks") == []


def test_agents_run_on_every_node_and_change_with_their_config(lab: Lab) -> None:
    both = ("--compose-file", str(STACKS / "agents-probe.yml"))
    deploy(lab, "agents", *both, "--detach=true")
    await_tasks(lab, "agents_agent", 3)
    await_tasks(lab, "agents_probe", 1)
    for number, node in enumerate(lab.nodes):
        _reports(lab, number, rf"node {node.name} revision 1 load [\d.]+ .*")

    # The other revision of the program, and the service that only the second file has goes
    said = deploy(lab, "agents", "--prune", "--detach=false", REVISION="2")
    assert "Removing service agents_probe" in said
    await_tasks(lab, "agents_agent", 3, 0)  # the command waited
    for number, node in enumerate(lab.nodes):
        _reports(lab, number, rf"node {node.name} revision 2 load [\d.]+ .*")
    configs = cli(lab.nodes[0], "docker", "config", "ls", "--format", "{{.Name}}").split()
    assert set(configs) == {"agent-program-1", "agent-program-2"}

    # A drained node has none, and gets one again
    cli(lab.nodes[0], "docker", "node", "update", "--availability", "drain", "n3")
    try:
        await_tasks(lab, "agents_agent", 2)
    finally:
        cli(lab.nodes[0], "docker", "node", "update", "--availability", "active", "n3")
    await_tasks(lab, "agents_agent", 3)
    remove(lab, "agents")
    eventually(lambda: _assert_no_tasks(lab), 20)


def _reports(lab: Lab, node: int, pattern: str) -> None:
    def look() -> None:
        said = asked(lab, "/metrics", AGENT, node)
        assert re.fullmatch(pattern, said), said

    eventually(look, 20)


def _assert_reported(lab: Lab, day: str) -> None:
    lines = cli(lab.nodes[0], "docker", "service", "logs", "--raw", "report_report").splitlines()
    assert sorted(lines) == [f"report {day}: t part {part}" for part in (0, 1)]
