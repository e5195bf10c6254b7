"""`docker run` on a plain machine, in a swarm and out of it again: containers by Podman, their networks by us."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from outside import IMAGE, cli, drift, eventually, resolver_of, run_cli

from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.machine import Machine
from hivemesh.lab.node import Node
from labs import a_lab

pytestmark = pytest.mark.scenario

COMPOSE = shutil.which("docker-compose")
SHOP = """
version: "3.8"
services:
  front:
    image: localhost/whoami
    ports: ["8088:80"]
    networks: [outer, inner]
    depends_on: [back]
  back:
    image: localhost/whoami
    networks:
      inner: {aliases: [store], ipv4_address: 10.66.0.10}
networks:
  outer: {}
  inner: {internal: true, ipam: {config: [{subnet: 10.66.0.0/24}]}}
"""


REFUSED = (
    ("network create bridge", "operation is not permitted on predefined bridge network"),
    ("network rm bridge", "bridge is a pre-defined network and cannot be removed"),
    ("network create mine", "network with name mine already exists"),
    ("network create --driver nosuch x", 'plugin "nosuch" not found: drivers are bridge, macvlan, overlay'),
    ("network create --driver ipvlan x", "the ipvlan driver is not supported: use macvlan, or bridge"),
    ("network create --driver host x", 'only one instance of "host" network is allowed'),
    ("network create --opt foo=1 x", "the option foo is not supported by the bridge driver: use one of"),
    ("network create --subnet 10.44.0.0/25 x", "invalid pool request: Pool overlaps with other one"),
    ("network create --subnet 198.51.100.0/25 x", "invalid pool request: Pool overlaps with other one"),
    ("network create --config-from mine x", "mine is not a configuration only network"),
    ("network rm nosuch", "network nosuch not found"),
    ("network rm mine", 'error while removing network: network mine has active endpoints (name:"one" id:"'),
    ("network connect mine nosuch", "no container with name or ID"),
    ("network connect nosuch one", "network nosuch not found"),
    ("network connect mine one", "endpoint with name one already exists in network mine"),
    ("network disconnect bridge one", "is not connected to the network bridge"),
    ("run --network nosuch localhost/whoami", "network nosuch not found"),
    ("run --network mine --ip 10.45.0.1 localhost/whoami", "invalid address 10.45.0.1: it is in no subnet"),
    ("run --network mine --ip 10.44.0.2 localhost/whoami", "Address already in use"),
    ("run --link nosuch localhost/whoami", "could not get container for nosuch: No such container: nosuch"),
    ("run --publish 192.0.2.9:80:80 localhost/whoami", "cannot assign requested address"),
    ("run --mac-address 01:00:00:00:00:01 localhost/whoami", "it belongs to a group"),
)


@pytest.fixture(scope="module")
def whole_lab() -> Iterator[Lab]:
    with a_lab(LabSettings(nodes=1, swarm=False)) as lab:
        yield lab


@pytest.fixture
def node(whole_lab: Lab) -> Iterator[Node]:
    """One machine in no swarm, as nobody had used it."""
    (node,) = whole_lab.nodes
    yield node
    if node.daemon() is None:
        whole_lab.restart_daemon(node.name)
    left = docker(node, "ps", "--all", "--quiet").split()
    if left:
        docker(node, "rm", "--force", *left)
    docker(node, "network", "prune", "--force")
    assert drift(node) == []


def address_of(node: Node) -> str:
    return str(node.spec.v4.ip)


def fetch(asker: Machine, url: str) -> str:
    """What a server of ours says; fails when there is none."""
    done = asker.exec("curl", "--silent", "--show-error", "--globoff", "--max-time", "3", url, check=False)
    assert done.returncode == 0, f"{asker.name}$ curl {url}: {done.stderr}"
    return done.stdout


def docker(node: Node, *words: str) -> str:
    return cli(node, "docker", *words).strip()


def refused(node: Node, *words: str) -> str:
    said = run_cli(node, "docker", *words)
    assert said.code != 0, said
    return said.err.removeprefix("docker: ").removeprefix("Error response from daemon: ").split("\n")[0]


def run(node: Node, name: str, *options: str) -> str:
    """A container that serves; its id."""
    return docker(node, "run", "--detach", "--name", name, *options, IMAGE)


def shown(node: Node, name: str, of: str = "{{json .NetworkSettings}}") -> Any:
    return json.loads(docker(node, "inspect", "--format", of, name))


def asked(node: Node, container: str, host: str) -> str:
    """The host name of who answers, asked from a container."""
    text = docker(node, "exec", container, "wget", "-qO-", f"http://{host}/")
    return text.splitlines()[0].removeprefix("Hostname: ")


def test_machine_nobody_uses_is_left_as_it_is(node: Node) -> None:
    names = docker(node, "network", "ls", "--format", "{{.Name}} {{.Driver}}").splitlines()
    assert names[:3] == ["bridge bridge", "host host", "none null"]
    links = node.exec("ip", "-brief", "link").stdout
    assert "hm" not in links
    assert "hivemesh" not in node.exec("nft", "list", "tables").stdout


def test_container_that_names_no_network_is_published_and_shown_as_docker_shows_it(whole_lab: Lab, node: Node) -> None:
    identifier = run(node, "web", "--publish", "8080:80", "--publish", "127.0.0.1:8081:80", "--publish", "80")
    settings = shown(node, "web")
    assert (settings["IPAddress"], settings["Gateway"], settings["IPPrefixLen"]) == ("172.17.0.2", "172.17.0.1", 16)
    assert settings["Networks"]["bridge"]["IPAddress"] == "172.17.0.2"
    assert settings["Ports"]["80/tcp"][0] == {"HostIp": "0.0.0.0", "HostPort": "8080"}
    first, anything, last = docker(node, "port", "web", "80").splitlines()
    assert (first, last) == ("0.0.0.0:8080", "127.0.0.1:8081")
    assert "0.0.0.0:8080->80/tcp" in docker(node, "ps", "--format", "{{.Ports}}")
    (about,) = json.loads(docker(node, "network", "inspect", "bridge"))
    assert about["Containers"][identifier]["IPv4Address"] == "172.17.0.2/16"
    for port in ("8080", anything.rpartition(":")[2]):
        assert f"Hostname: {identifier[:12]}" in fetch(whole_lab.client, f"http://{address_of(node)}:{port}/")
    assert "driver failed programming external connectivity: Bind for 0.0.0.0:8080 failed: port is already" in refused(
        node, "run", "--detach", "--publish", "8080:80", IMAGE
    )
    docker(node, "restart", "--time", "0", "web")
    assert anything in docker(node, "port", "web", "80")
    docker(node, "stop", "--time", "0", "web")
    assert shown(node, "web")["IPAddress"] == ""
    assert docker(node, "port", "web") == ""


def test_containers_of_a_network_find_each_other_by_name(node: Node) -> None:
    docker(node, "network", "create", "--subnet", "10.55.0.0/24", "--ipv6", "--label", "team=a", "mine")
    one = run(node, "one", "--network", "mine", "--network-alias", "uno", "--hostname", "first")
    two = run(node, "two", "--network", "mine", "--ip", "10.55.0.77", "--mac-address", "02:11:22:33:44:55",
              "--link", "one:mate", "--add-host", "here:host-gateway")  # fmt: skip
    for name in ("one", "uno", "first", one[:12], "mate", "one.mine"):
        assert asked(node, "two", name) == "first"
    assert asked(node, "one", "two") == two[:12]
    assert "bad address" in run_cli(node, "docker", "exec", "one", "wget", "-qO-", "http://mate/").err
    member = shown(node, "two")["Networks"]["mine"]
    assert (member["IPAddress"], member["MacAddress"]) == ("10.55.0.77", "02:11:22:33:44:55")
    assert member["GlobalIPv6Address"].startswith("fd")
    assert "10.55.0.1\there" in docker(node, "exec", "two", "cat", "/etc/hosts")
    outsider = run(node, "outsider")
    assert outsider
    assert run_cli(node, "docker", "exec", "outsider", "nslookup", "one").code != 0
    docker(node, "network", "connect", "--alias", "guest", "mine", "outsider")
    assert asked(node, "outsider", "one") == "first"
    assert asked(node, "one", "guest") == outsider[:12]
    assert docker(node, "exec", "outsider", "ip", "route").startswith("default via 172.17.0.1")
    docker(node, "network", "disconnect", "bridge", "outsider")
    assert shown(node, "outsider")["Networks"].keys() == {"mine"}
    listed = docker(node, "ps", "--quiet", "--no-trunc", "--filter", "network=mine").split()
    assert sorted(listed) == sorted([one, two, outsider])


def test_other_modes_are_the_engines(node: Node) -> None:
    docker(node, "network", "create", "mine")
    run(node, "one", "--network", "mine")
    run(node, "two", "--network", "mine")
    docker(node, "run", "--detach", "--name", "beside", "--network", "container:one", "--entrypoint", "/bin/sleep",
           IMAGE, "100")  # fmt: skip
    assert asked(node, "beside", "two") == docker(node, "ps", "-qf", "name=two")
    docker(node, "run", "--detach", "--name", "host", "--network", "host", "--entrypoint", "/bin/sleep", IMAGE, "100")
    assert address_of(node) in docker(node, "exec", "host", "ip", "address")
    assert shown(node, "host")["Networks"].keys() == {"host"}
    run(node, "none", "--network", "none")
    assert shown(node, "none")["Networks"].keys() == {"none"}
    for name in ("host", "none"):
        assert "cannot be connected to" in refused(node, "network", "connect", "mine", name)
    docker(node, "rm", "--force", "beside")


def test_what_cannot_be_is_refused_in_dockers_words(node: Node) -> None:
    docker(node, "network", "create", "--subnet", "10.44.0.0/24", "mine")
    run(node, "one", "--network", "mine")
    wrong = [(words, heard) for words, said in REFUSED if said not in (heard := refused(node, *words.split()))]
    assert wrong == []


def test_networks_and_containers_outlive_the_daemon_and_the_swarm(whole_lab: Lab, node: Node) -> None:
    docker(node, "network", "create", "mine")
    web = run(node, "web", "--network", "mine", "--publish", "8080:80")
    url = f"http://{address_of(node)}:8080/"

    def answers() -> None:
        assert web[:12] in fetch(whole_lab.client, url)

    node.kill_daemon()
    answers()
    whole_lab.restart_daemon(node.name)
    answers()
    docker(node, "swarm", "init", "--advertise-addr", address_of(node))
    try:
        answers()
        assert drift(node) == []
        docker(node, "network", "create", "--driver", "overlay", "--attachable", "wide")
        assert "network with name wide already exists" in refused(node, "network", "create", "wide")
        assert "network with name mine already exists" in refused(node, "network", "create", "-d", "overlay", "mine")
        both = run(node, "both", "--network", "mine")
        docker(node, "network", "connect", "wide", "both")
        far = run(node, "far", "--network", "wide", "--publish", "127.0.0.1:8090:80")
        assert asked(node, "both", "far") == far[:12]
        assert asked(node, "both", "web") == web[:12]
        assert asked(node, "far", "both") == both[:12]
        assert far[:12] in fetch(node, "http://127.0.0.1:8090/")
        docker(node, "rm", "--force", "far")
        served = resolver_of(node)
    finally:
        docker(node, "swarm", "leave", "--force")
    answers()
    assert asked(node, "both", "web") == web[:12]
    assert resolver_of(node) == served, "names were not answered all the time"
    eventually(lambda: _undisturbed(node))


def _undisturbed(node: Node) -> None:
    assert drift(node) == []


def test_damage_to_a_bridge_is_repaired(whole_lab: Lab, node: Node) -> None:
    docker(node, "network", "create", "--opt", "com.docker.network.bridge.name=br7", "mine")
    web = run(node, "web", "--network", "mine", "--publish", "8080:80")
    node.exec("ip", "link", "del", "br7")
    node.exec("nft", "delete", "table", "inet", "hivemesh-local")

    def mended() -> None:
        assert web[:12] in fetch(whole_lab.client, f"http://{address_of(node)}:8080/")
        assert drift(node) == []

    eventually(mended, timeout=15)


def test_events_tell_of_networks(node: Node) -> None:
    since = node.exec("date", "+%s.%N").stdout.strip()
    docker(node, "network", "create", "mine")
    web = run(node, "web", "--network", "mine")
    docker(node, "rm", "--force", "web")
    docker(node, "network", "rm", "mine")
    until = node.exec("date", "+%s.%N").stdout.strip()
    text = docker(
        node, "events", "--since", since, "--until", until, "--filter", "type=network", "--format", "{{json .}}"
    )
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["Action"] for event in events] == ["create", "connect", "disconnect", "destroy"]
    assert {event["Actor"]["Attributes"]["name"] for event in events} == {"mine"}
    assert events[1]["Actor"]["Attributes"]["container"] == web


def test_settings_kept_for_other_networks_are_used(node: Node) -> None:
    docker(node, "network", "create", "--config-only", "--subnet", "198.51.100.0/24", "--ip-range", "198.51.100.208/28",
           "--gateway", "198.51.100.1", "--opt", "parent=eth0", "wire-settings")  # fmt: skip
    docker(node, "network", "create", "--driver", "macvlan", "--config-from", "wire-settings", "wire")
    assert "in use by network wire" in refused(node, "network", "rm", "wire-settings")
    run(node, "web", "--network", "wire")
    assert shown(node, "web")["Networks"]["wire"]["IPAddress"] == "198.51.100.208"
    docker(node, "rm", "--force", "web")
    docker(node, "network", "rm", "wire")
    docker(node, "network", "rm", "wire-settings")


@pytest.mark.skipif(COMPOSE is None, reason="docker-compose is not installed")
def test_compose_file_of_two_services_talks_by_name(whole_lab: Lab, node: Node, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text(SHOP)

    def compose(*words: str) -> str:
        environment = {"DOCKER_HOST": f"unix://{node.socket}", "PATH": "/usr/bin:/bin:/usr/local/bin"}
        done = subprocess.run(
            [str(COMPOSE), "-p", "shop", *words], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    compose("up", "-d")
    try:
        for name in ("back", "store"):
            assert "IP: 10.66.0.10" in compose("exec", "-T", "front", "wget", "-qO-", f"http://{name}/")
        assert "Hostname" in fetch(whole_lab.client, f"http://{address_of(node)}:8088/")
    finally:
        compose("down")
    assert "shop" not in docker(node, "network", "ls")
