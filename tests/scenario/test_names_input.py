"""What cannot be on networks of the user's is refused in clear words, by docker's own CLI; nothing is half made."""

import pytest
from names_asked import IMAGE, QUIET, askers, network, service
from outside import cli, eventually, kernels, run_cli, tasks_of

from hivemesh.lab.lab import Lab

pytestmark = pytest.mark.scenario

NETWORKS: dict[tuple[str, ...], str] = {
    ("--subnet", "10.77.0.0/27", "new"): "overlaps with other one on this address space: 10.77.0.0/28 of network tiny",
    ("--subnet", "224.0.0.0/24", "new"): "not a range for hosts",
    ("--subnet", "198.51.100.0/24", "new"): "the address of a node",
    ("--subnet", "10.78.0.0/24", "--gateway", "10.79.0.1", "new"): "no matching subnet for gateway 10.79.0.1",
    ("--driver", "nosuch", "new"): 'plugin "nosuch" not found',
    ("--ipam-driver", "nosuch", "new"): "IPAM driver 'nosuch' is not supported",
    ("--opt", "nosuch=1", "new"): "network option 'nosuch' is not supported",
    ("tiny",): "network with name tiny already exists",
}
SERVICES: dict[tuple[str, ...], str] = {
    ("--endpoint-mode", "dnsrr", "--publish", "8099:80"): "can't be used with dnsrr mode",
    ("--network", "name=tiny,alias=not a name"): "not a name",
    ("--network", "name=tiny,alias=-no"): "-no",
    ("--network", "nosuch"): "network nosuch not found",
    ("--name", "first", "--network", "tiny"): "name conflicts with an existing object: service first already exists",
    ("--label", "hivemesh.lb=sometimes"): "sometimes",
}


def test_what_cannot_be_is_refused_and_an_exhausted_subnet_recovers(lab: Lab) -> None:
    first = lab.nodes[0]
    network(lab, "tiny", "--subnet", "10.77.0.0/28")
    service(lab, "first", "--network", "tiny", replicas=5)
    askers(lab, "first", 5)
    before = state(lab)
    for options, words in NETWORKS.items():
        driver = () if "--driver" in options else ("--driver", "overlay")
        said = run_cli(first, "docker", "network", "create", *driver, *options)
        assert said.code != 0, options
        assert words in said.err, options
    for options, words in SERVICES.items():
        said = run_cli(first, "docker", "service", "create", *QUIET, *options, IMAGE)
        assert said.code != 0, options
        assert words in said.err, options
    removed = run_cli(first, "docker", "network", "rm", "tiny")
    assert removed.code != 0
    assert "is in use by service" in removed.err
    assert state(lab) == before

    # 14 addresses: the gateway, up to 3 nodes, two virtual ones, 5 tasks; 3 or 4 are left
    service(lab, "second", "--network", "tiny", replicas=6)

    def exhausted() -> None:
        assert "no free address in 10.77.0.0/28" in cli(first, "docker", "service", "ps", "--no-trunc", "second")
        assert 0 < sum(task.state == "running" for task in tasks_of(lab, "second")) < 6

    eventually(exhausted, 20)
    cli(first, "docker", "service", "rm", "first")
    (one, *_) = askers(lab, "second", 6)
    assert len(one.names("tasks.second")) == 6


def state(lab: Lab) -> object:
    """What users see and what the kernels hold."""
    first = lab.nodes[0]
    return [first.api("GET", path) for path in ("/services", "/networks")], kernels(lab)
