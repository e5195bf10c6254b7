"""A task in the engine's terms."""

import msgspec
import pytest

from hivemesh.agent.request import container_request
from hivemesh.model.errors import Invalid
from hivemesh.model.generic import discrete, named
from hivemesh.model.ids import NodeID, ServiceID, TaskID
from hivemesh.model.service import ContainerSpec, TaskSpec
from hivemesh.model.task import Task


def task(**spec: object) -> Task:
    return Task(
        id=TaskID("t1"),
        service_id=ServiceID("s1"),
        service_name="web",
        slot=2,
        node_id=NodeID("n1"),
        spec=TaskSpec(container_spec=ContainerSpec(image="whoami", **spec)),  # type: ignore[arg-type]
    )


def test_container_has_swarms_name_and_labels() -> None:
    request = container_request(task(labels={"mine": "1"}), "/run/netns/x", "host")
    assert (request.name, request.netns) == ("web.2.t1", "/run/netns/x")
    assert request.labels == {
        "mine": "1",
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.id": "t1",
        "com.docker.swarm.task.name": "web.2.t1",
        "com.docker.swarm.node.id": "n1",
        "com.docker.swarm.service.id": "s1",
        "com.docker.swarm.service.name": "web",
    }


def test_placeholders_are_filled_in() -> None:
    request = container_request(task(env=("A={{.Task.Slot}}", "B={{ .Node.Hostname }}"), hostname="{{.Service.Name}}-{{.Task.Slot}}"), "", "host")  # fmt: skip # noqa: E501
    assert request.spec.env == ("A=2", "B=host")
    assert request.hostname == "web-2"


def test_container_learns_what_it_got_of_the_nodes_resources() -> None:
    got = msgspec.structs.replace(
        task(env=("A=1",)), generic=(named("gpu", "a"), named("gpu", "b"), discrete("SSD", 2))
    )
    request = container_request(got, "", "host")
    assert request.spec.env == ("A=1", "DOCKER_RESOURCE_GPU=a,b", "DOCKER_RESOURCE_SSD=2")


def test_unknown_placeholder_is_refused_by_name() -> None:
    with pytest.raises(Invalid, match=r"\{\{\.Task\.Colour\}\}"):
        container_request(task(env=("A={{.Task.Colour}}",)), "", "host")
