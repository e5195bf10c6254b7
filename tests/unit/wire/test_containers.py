"""Containers on our networks in the API's words: what is read, what the engine gets, what is shown."""

from ipaddress import ip_address
from typing import Any

import pytest

from hivemesh.model.errors import HivemeshError, Invalid, Unsupported
from hivemesh.model.local import PublishedPort
from hivemesh.model.service import ContainerSpec, DNSConfig
from hivemesh.wire.control import Joining
from hivemesh.wire.engine import containers
from hivemesh.wire.engine.containers import Membership, RestartRule, Shown

CREATE: dict[str, Any] = {
    "Hostname": "box",
    "Image": "whoami",
    "ExposedPorts": {"80/tcp": {}, "90/udp": {}},
    "Labels": {"a": "b"},
    "HostConfig": {
        "NetworkMode": "mynet",
        "Binds": ["/data:/data", "/mine:/etc/hosts:ro"],
        "Dns": ["192.0.2.53"],
        "DnsSearch": ["x.y"],
        "DnsOptions": [],
        "ExtraHosts": ["a:1.2.3.4", "b=[fd00::1]"],
        "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "0.0.0.0", "HostPort": ""}]},
        "PublishAllPorts": True,
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3},
        "AutoRemove": False,
        "Memory": 1 << 20,
    },
    "NetworkingConfig": {
        "EndpointsConfig": {
            "zoo": None,
            "mynet": {"IPAMConfig": {"IPv4Address": "10.9.0.5", "IPv6Address": ""}, "Aliases": ["db", "db"]},
            "also": {"IPAMConfig": {"IPv6Address": "fd00::5"}},
        }
    },
}
FILES = {"/etc/hosts": "/var/ours/hosts", "/etc/resolv.conf": "/var/ours/resolv.conf"}


def test_everything_a_client_says_of_the_network_is_read() -> None:
    wish = containers.wish_of(CREATE)
    assert wish.mode == "mynet"
    assert wish.networks == (
        Joining(network="mynet", aliases=("db",), addresses=(ip_address("10.9.0.5"),)),
        Joining(network="also", addresses=(ip_address("fd00::5"),)),
        Joining(network="zoo"),
    )
    assert wish.spec == ContainerSpec(
        hostname="box",
        hosts=("1.2.3.4 a", "fd00::1 b"),
        dns_config=DNSConfig(nameservers=("192.0.2.53",), search=("x.y",)),
    )
    assert wish.ports == (
        PublishedPort(target=80, port=8080),
        PublishedPort(target=80, address=ip_address("0.0.0.0")),
        PublishedPort(protocol="udp", target=90),
    )
    assert wish.restart == RestartRule(name="on-failure", retries=3)


@pytest.mark.parametrize("mode", ["host", "none", "container:c1", "ns:/run/netns/x"])
def test_engines_own_modes_name_no_network(mode: str) -> None:
    assert containers.networks_of({"HostConfig": {"NetworkMode": mode}}) == ()


@pytest.mark.parametrize("mode", ["", "default", "bridge"])
def test_container_that_names_no_network_is_on_the_default_bridge(mode: str) -> None:
    assert containers.networks_of({"HostConfig": {"NetworkMode": mode}}) == ("bridge",)
    assert containers.networks_of({"NetworkDisabled": True, "HostConfig": {"NetworkMode": mode}}) == ()


def test_what_is_said_of_the_unnamed_network_is_said_of_the_default_bridge() -> None:
    endpoints: dict[str, Any] = {"EndpointsConfig": {"default": {"MacAddress": "02:42:00:00:00:01", "GwPriority": 2}}}
    wish = containers.wish_of({"HostConfig": {"NetworkMode": "default"}, "NetworkingConfig": endpoints})
    assert wish.mode == "bridge"
    assert wish.networks == (Joining(network="bridge", mac="02:42:00:00:00:01", priority=2),)


def test_links_are_read_from_wherever_they_are_said() -> None:
    endpoints = {"EndpointsConfig": {"n": {"Links": ["web:www"]}}}
    host = {"NetworkMode": "n", "Links": ["/db:sql", "db"]}
    wish = containers.wish_of({"HostConfig": host, "NetworkingConfig": endpoints})
    assert wish.links == (("db", "sql"), ("db", "db"), ("web", "www"))


@pytest.mark.parametrize(
    ("binding", "port"),
    [
        (
            {"HostIp": "127.0.0.1", "HostPort": "8080"},
            PublishedPort(target=80, port=8080, address=ip_address("127.0.0.1")),
        ),
        ({"HostIp": "[::1]"}, PublishedPort(target=80, address=ip_address("::1"))),
        ({"HostPort": "8000-8010"}, PublishedPort(target=80, port=8000, last=8010)),
        ({"HostPort": "8000-8000"}, PublishedPort(target=80, port=8000)),
        ({}, PublishedPort(target=80)),
    ],
)
def test_where_a_port_is_published_is_read(binding: dict[str, str], port: PublishedPort) -> None:
    host = {"NetworkMode": "n", "PortBindings": {"80/tcp": [binding]}}
    assert containers.wish_of({"HostConfig": host}).ports == (port,)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"HostConfig": {"NetworkMode": "n", "Links": ["a:b:c"]}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "Links": [":b"]}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "Dns": ["nowhere"]}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "ExtraHosts": ["a"]}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "ExtraHosts": ["a b:1.2.3.4"]}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "PortBindings": {"80/tcp": [{"HostIp": "nowhere"}]}}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "PortBindings": {"80/tcp": [{"HostPort": "9-1"}]}}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "PortBindings": {"80/tcp": [{"HostPort": "1-x"}]}}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "PortBindings": {"80/tcp": [{"HostPort": "65536"}]}}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "PortBindings": {"0/tcp": []}}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "RestartPolicy": {"Name": "sometimes"}}}, Invalid),
        ({"HostConfig": {"NetworkMode": "n", "RestartPolicy": {"Name": "always", "MaximumRetryCount": 1}}}, Invalid),
        ({"NetworkingConfig": {"EndpointsConfig": ["n"]}}, Invalid),
        ({"NetworkingConfig": {"EndpointsConfig": {"host": {}}}}, Invalid),
        ({"NetworkingConfig": {"EndpointsConfig": {"n": {"IPAMConfig": {"IPv4Address": "fd00::1"}}}}}, Invalid),
        ({"NetworkingConfig": {"EndpointsConfig": {"n": {"IPAMConfig": {"IPv4Address": "x"}}}}}, Invalid),
        ({"NetworkingConfig": {"EndpointsConfig": {"n": {"IPAMConfig": {"LinkLocalIPs": ["::1"]}}}}}, Unsupported),
        ({"NetworkingConfig": {"EndpointsConfig": {"n": {"GwPriority": "high"}}}}, Invalid),
        ({"NetworkingConfig": {"EndpointsConfig": {"n": {"DriverOpts": {"a": "b"}}}}}, Unsupported),
        ({"NetworkingConfig": {"EndpointsConfig": {"n": 5}}}, Invalid),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], error: type[HivemeshError]) -> None:
    if "HostConfig" not in change:
        change = {"HostConfig": {"NetworkMode": "n"}, **change}
    with pytest.raises(error):
        containers.wish_of(change)


def test_network_named_only_by_its_endpoint_is_the_mode_shown() -> None:
    endpoints: dict[str, Any] = {"EndpointsConfig": {"mynet": {}}}
    wish = containers.wish_of({"HostConfig": {"NetworkMode": "default"}, "NetworkingConfig": endpoints})
    assert (wish.mode, wish.networks) == ("mynet", (Joining(network="mynet"),))


def test_engine_gets_a_namespace_and_files_and_nothing_else_of_the_network() -> None:
    body = containers.engine_body(CREATE, "owner", "/run/netns/owner", FILES)
    host = body["HostConfig"]
    assert "NetworkingConfig" not in body
    assert body["Labels"] == {"a": "b", containers.LABEL: "owner"}
    assert host["NetworkMode"] == "ns:/run/netns/owner"
    # the user's own file stays
    assert host["Binds"] == ["/data:/data", "/mine:/etc/hosts:ro", "/var/ours/resolv.conf:/etc/resolv.conf"]
    assert host["Memory"] == 1 << 20
    gone = {"PortBindings", "PublishAllPorts", "RestartPolicy", "Dns", "DnsSearch", "DnsOptions", "ExtraHosts", "Links"}
    assert not gone & host.keys()
    assert CREATE["HostConfig"]["NetworkMode"] == "mynet"  # what was given is not changed


def test_client_sees_what_it_asked_for_and_what_was_granted() -> None:
    wish = containers.wish_of(CREATE)
    member = Membership(
        name="mynet", network_id="n1", aliases=("db",), wanted=("10.9.0.5",), endpoint_id="e1", mac="02:42:0a:09:00:05",
        v4="10.9.0.5/24", v6="fd00::5/64", names=("c1", "db"),
    )  # fmt: skip
    shown = Shown(
        mode="mynet", networks=(member,), spec=wish.spec, ports=wish.ports, restart=wish.restart, restarts=2,
        published=(PublishedPort(target=80, port=8080),),
        files=FILES, namespace="/run/netns/owner",
    )  # fmt: skip
    ours = [{"Source": source, "Destination": target} for target, source in FILES.items()]
    theirs = {"Source": "/data", "Destination": "/data"}
    said = {
        "Id": "c",
        "Mounts": [*ours, theirs],
        "HostConfig": {"NetworkMode": "ns:/run/netns/owner", "Binds": ["/var/ours/hosts:/etc/hosts:rw", "/data:/data"]},
        "NetworkSettings": {"IPAddress": "172.18.0.3", "Networks": {}},
    }
    value = containers.inspected(said, shown)
    assert (value["Mounts"], value["HostConfig"]["Binds"]) == ([theirs], ["/data:/data"])
    assert value["HostConfig"]["NetworkMode"] == "mynet"
    assert value["HostConfig"]["ExtraHosts"] == ["a:1.2.3.4", "b:fd00::1"]
    assert value["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    settings = value["NetworkSettings"]
    assert settings["IPAddress"] == ""
    assert settings["Ports"]["80/tcp"][0] == {"HostIp": "0.0.0.0", "HostPort": "8080"}
    endpoint = settings["Networks"]["mynet"]
    assert (endpoint["IPAddress"], endpoint["IPPrefixLen"]) == ("10.9.0.5", 24)
    assert (endpoint["GlobalIPv6Address"], endpoint["GlobalIPv6PrefixLen"]) == ("fd00::5", 64)
    assert (endpoint["IPAMConfig"], endpoint["Aliases"]) == ({"IPv4Address": "10.9.0.5"}, ["db"])
    line = containers.listed(said, shown)
    assert line["Ports"][0] == {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}
    assert line["NetworkSettings"]["Networks"].keys() == {"mynet"}
