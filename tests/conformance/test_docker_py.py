"""docker-py, the SDK behind Ansible and many tools, against the same lab."""

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest
from conform_rig import IMAGE, KEPT, Board
from docker.errors import APIError, NotFound
from docker.types import (
    ConfigReference,
    EndpointSpec,
    Healthcheck,
    IPAMConfig,
    IPAMPool,
    Mount,
    Placement,
    PlacementPreference,
    Resources,
    RestartPolicy,
    RollbackConfig,
    SecretReference,
    ServiceMode,
    UpdateConfig,
)
from outside import eventually

from hivemesh.lab.http import Refused

pytestmark = pytest.mark.scenario

IDLE = ServiceMode("replicated", replicas=0)


@pytest.fixture
def client(board: Board) -> Iterator[Any]:
    made = docker.DockerClient(base_url=board.lab.nodes[0].docker_host, version="auto", timeout=40)
    try:
        yield made
    finally:
        made.close()
        _clean(board)


def _clean(board: Board) -> None:
    first = board.lab.nodes[0]
    for found in first.api("GET", "/containers/json?all=1"):
        if "/t-py" in found["Names"]:
            first.api("DELETE", f"/containers/{found['Id']}?force=1")
    for kind in ("services", "secrets", "configs"):
        for found in first.api("GET", f"/{kind}"):
            if found["Spec"]["Name"] not in KEPT[kind]:
                first.api("DELETE", f"/{kind}/{found['ID']}")

    def drop() -> None:
        try:
            first.api("DELETE", "/networks/t-py")
        except Refused as error:
            if error.status != 404:
                raise AssertionError(str(error)) from error

    eventually(drop)


def test_version_is_negotiated(client: Any) -> None:
    assert client.version()["ApiVersion"] == "1.51"
    assert client.ping() is True


def test_info_tells_of_the_swarm(client: Any) -> None:
    swarm = client.info()["Swarm"]
    assert (swarm["LocalNodeState"], swarm["ControlAvailable"], swarm["Nodes"]) == ("active", True, 2)


def test_swarm_is_read_and_updated(client: Any) -> None:
    client.swarm.reload()
    before = client.swarm.attrs
    assert before["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
    assert client.swarm.update(rotate_manager_token=True)
    client.swarm.reload()
    assert client.swarm.attrs["JoinTokens"]["Manager"] != before["JoinTokens"]["Manager"]
    assert client.swarm.attrs["JoinTokens"]["Worker"] == before["JoinTokens"]["Worker"]


def test_unlock_key_is_empty_without_autolock(client: Any) -> None:
    assert client.swarm.get_unlock_key()["UnlockKey"] == ""


def test_second_swarm_is_refused(client: Any) -> None:
    with pytest.raises(APIError, match="already part of a swarm") as refused:
        client.swarm.init(advertise_addr="eth0")
    assert refused.value.status_code == 503


def test_nodes_are_listed_by_role(client: Any) -> None:
    (worker,) = client.nodes.list(filters={"role": "worker"})
    assert worker.attrs["Description"]["Hostname"] == "n2"
    assert client.nodes.get(worker.id).attrs["Status"]["State"] == "ready"


def test_node_gets_a_label_and_loses_it(client: Any) -> None:
    (node,) = client.nodes.list(filters={"name": "n2"})
    spec = {"Availability": "active", "Role": "worker", "Labels": {"py": "1"}}
    assert node.update(spec)
    assert [found.id for found in client.nodes.list(filters={"node.label": "py=1"})] == [node.id]
    node.reload()
    assert node.update({**spec, "Labels": {}})


def test_node_update_of_an_old_version_is_out_of_sequence(client: Any) -> None:
    (node,) = client.nodes.list(filters={"name": "n2"})
    with pytest.raises(APIError, match="update out of sequence"):
        client.api.update_node(node.id, 0, {"Availability": "active", "Role": "worker"})


def test_service_is_created_scaled_and_removed(client: Any) -> None:
    service = client.services.create(IMAGE, name="t-py", mode=IDLE, labels={"a": "b"})
    assert service.name == "t-py"
    assert service.scale(1)

    def runs() -> None:
        (task,) = service.tasks(filters={"desired-state": "running"})
        assert task["Status"]["State"] == "running"

    eventually(runs, 20)
    service.remove()
    with pytest.raises(NotFound, match="service t-py not found"):
        client.services.get("t-py")


def test_service_with_every_part_is_kept_as_given(client: Any) -> None:
    secret = client.api.inspect_secret("key")
    config = client.api.inspect_config("conf")
    service = client.services.create(
        IMAGE,
        command=["/bin/sh"],
        args=["-c", "true"],
        name="t-py",
        mode=IDLE,
        env=["A=1"],
        hostname="{{.Service.Name}}",
        workdir="/tmp",
        user="1000",
        init=True,
        read_only=True,
        stop_grace_period=5 * 10**9,
        constraints=["node.role==worker"],
        preferences=[("spread", "node.labels.zone")],
        maxreplicas=2,
        mounts=[Mount("/scratch", None, type="tmpfs")],
        networks=["front"],
        secrets=[SecretReference(secret["ID"], "key")],
        configs=[ConfigReference(config["ID"], "conf")],
        healthcheck=Healthcheck(test=["CMD", "true"], interval=10**9),
        hosts={"example": "192.0.2.7"},
        resources=Resources(cpu_limit=10**9, mem_limit=64 << 20),
        restart_policy=RestartPolicy(condition="on-failure", max_attempts=3),
        update_config=UpdateConfig(parallelism=2, order="start-first", failure_action="rollback"),
        rollback_config=RollbackConfig(parallelism=2),
        endpoint_spec=EndpointSpec(ports={8140: 80}),
        cap_add=["NET_ADMIN"],
        sysctls={"net.ipv4.ip_unprivileged_port_start": "0"},
    )
    spec = service.attrs["Spec"]
    container = spec["TaskTemplate"]["ContainerSpec"]
    assert container["Command"] == ["/bin/sh"]
    assert container["Args"] == ["-c", "true"]
    assert container["Hosts"] == ["192.0.2.7 example"]
    assert container["Secrets"][0]["File"]["Name"] == "key"
    assert spec["TaskTemplate"]["Placement"]["Constraints"] == ["node.role==worker"]
    assert spec["TaskTemplate"]["RestartPolicy"]["MaxAttempts"] == 3
    assert spec["UpdateConfig"]["FailureAction"] == "rollback"
    assert service.attrs["Endpoint"]["Ports"][0]["PublishedPort"] == 8140


def test_service_update_changes_only_what_is_named(client: Any) -> None:
    service = client.services.create(IMAGE, name="t-py", mode=IDLE, env=["A=1"], labels={"a": "b"})
    assert service.update(env=["A=2"], fetch_current_spec=True, mode=IDLE) is not None
    service.reload()
    spec = service.attrs["Spec"]
    assert spec["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=2"]
    assert spec["Labels"] == {"a": "b"}
    assert service.attrs["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=1"]


def test_service_update_of_an_old_version_is_out_of_sequence(client: Any) -> None:
    service = client.services.create(IMAGE, name="t-py", mode=IDLE)
    old = service.version
    service.update(labels={"x": "1"}, mode=IDLE)
    with pytest.raises(APIError, match="update out of sequence") as refused:
        client.api.update_service(service.id, old, task_template=service.attrs["Spec"]["TaskTemplate"], name="t-py")
    assert refused.value.status_code == 500


def test_force_update_counts_up(client: Any) -> None:
    service = client.services.create(IMAGE, name="t-py", mode=IDLE)
    assert service.force_update()
    service.reload()
    assert service.attrs["Spec"]["TaskTemplate"]["ForceUpdate"] > 0


def test_global_service_and_jobs_have_their_modes(client: Any) -> None:
    nowhere = Placement(constraints=["node.labels.no==where"], preferences=[PlacementPreference("spread", "node.id")])
    for mode, key in (("global", "Global"), ("replicated-job", "ReplicatedJob"), ("global-job", "GlobalJob")):
        template = docker.types.TaskTemplate(docker.types.ContainerSpec(IMAGE), placement=nowhere)
        made = client.api.create_service(template, name="t-py", mode=ServiceMode(mode))
        assert key in client.api.inspect_service(made["ID"])["Spec"]["Mode"]
        assert [found.name for found in client.services.list(filters={"mode": mode, "name": "t-py"})] == ["t-py"]
        client.api.remove_service("t-py")


def test_services_are_listed_with_their_status(client: Any) -> None:
    found = client.api.services(filters={"name": "web"}, status=True)
    assert found[0]["ServiceStatus"]["RunningTasks"] == 2


def test_service_name_that_is_taken_is_a_conflict(client: Any) -> None:
    with pytest.raises(APIError, match="already exists") as refused:
        client.services.create(IMAGE, name="web", mode=IDLE)
    assert refused.value.status_code == 409


def test_service_logs_are_read(client: Any) -> None:
    assert list(client.services.get("web").logs(stdout=True, stderr=True)) is not None


def test_tasks_are_found_by_service_and_node(client: Any) -> None:
    tasks = client.api.tasks(filters={"service": "agent", "node": "n2", "desired-state": "running"})
    assert [task["Status"]["State"] for task in tasks] == ["running"]
    assert client.api.inspect_task(tasks[0]["ID"])["ServiceID"] == tasks[0]["ServiceID"]


def test_overlay_network_is_made_and_removed(client: Any) -> None:
    pool = IPAMConfig(pool_configs=[IPAMPool(subnet="10.79.0.0/24", gateway="10.79.0.1")])
    network = client.networks.create("t-py", driver="overlay", attachable=True, ipam=pool, labels={"a": "b"})
    network.reload()
    assert network.attrs["Scope"] == "swarm"
    assert network.attrs["IPAM"]["Config"][0]["Subnet"] == "10.79.0.0/24"
    assert [found.id for found in client.networks.list(names=["t-py"])] == [network.id]
    network.remove()
    with pytest.raises(NotFound):
        client.networks.get("t-py")


def test_container_joins_and_leaves_a_network(client: Any) -> None:
    network = client.networks.create("t-py", driver="overlay", attachable=True)
    network.connect("box", aliases=["other"])
    assert "t-py" in client.containers.get("box").attrs["NetworkSettings"]["Networks"]
    network.disconnect("box")
    assert "t-py" not in client.containers.get("box").attrs["NetworkSettings"]["Networks"]


def test_bridge_network_is_made_and_removed(client: Any) -> None:
    network = client.networks.create("t-py", driver="bridge", internal=True)
    network.reload()
    assert (network.attrs["Driver"], network.attrs["Scope"]) == ("bridge", "local")
    network.remove()


def test_network_in_use_is_not_removed(client: Any) -> None:
    with pytest.raises(APIError, match="is in use"):
        client.networks.get("front").remove()


@pytest.mark.parametrize("kind", ["secrets", "configs"])
def test_payload_is_made_listed_and_removed(client: Any, kind: str) -> None:
    collection = getattr(client, kind)
    made = collection.create(name="t-py", data=b"something", labels={"a": "b"})
    assert [found.name for found in collection.list(filters={"label": "a=b"})] == ["t-py"]
    found = collection.get(made.id)
    assert ("Data" in found.attrs["Spec"]) == (kind == "configs")
    made.remove()
    with pytest.raises(NotFound):
        collection.get(made.id)


@pytest.mark.parametrize(("kind", "name"), [("secrets", "key"), ("configs", "conf")])
def test_payload_in_use_is_not_removed(client: Any, kind: str, name: str) -> None:
    (found,) = getattr(client, kind).list(filters={"name": name})
    with pytest.raises(APIError, match="is in use by the following service: web"):
        found.remove()


def test_container_runs_and_its_output_comes_back(client: Any) -> None:
    assert client.containers.run(IMAGE, ["echo", "hello"], network="front", remove=True) == b"hello\n"


def test_container_that_fails_says_with_what(client: Any) -> None:
    container = client.containers.run(IMAGE, ["sh", "-c", "exit 3"], network="front", name="t-py", detach=True)
    assert container.wait(timeout=20)["StatusCode"] == 3


def test_command_in_a_container_is_run_with_its_streams(client: Any) -> None:
    box = client.containers.get("box")
    result = box.exec_run(["sh", "-c", "echo out; echo err >&2; exit 4"], demux=True)
    assert (result.exit_code, result.output) == (4, (b"out\n", b"err\n"))


def test_files_go_into_a_container_and_out_again(client: Any) -> None:
    box = client.containers.get("box")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("py.txt")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"hello"))
    assert box.put_archive("/tmp", buffer.getvalue())
    stream, about = box.get_archive("/tmp/py.txt")
    assert about["size"] == 5
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
        member = tar.extractfile("py.txt")
        assert member is not None
        assert member.read() == b"hello"


def test_containers_are_listed_by_label_and_network(client: Any) -> None:
    assert [found.name for found in client.containers.list(filters={"label": "kind=box"})] == ["box"]
    assert "box" in [found.name for found in client.containers.list(filters={"network": "front"})]


def test_images_and_volumes_are_the_engines(client: Any) -> None:
    assert client.images.get(IMAGE).tags
    volume = client.volumes.create("t-py", labels={"a": "b"})
    assert volume.attrs["Labels"] == {"a": "b"}
    volume.remove()


def test_events_of_a_service_are_told(client: Any) -> None:
    events = client.events(decode=True, filters={"type": "service", "event": "create"})
    try:
        service = client.services.create(IMAGE, name="t-py", mode=IDLE)
        event = next(events)
    finally:
        events.close()
    assert (event["Type"], event["Action"], event["Actor"]["ID"]) == ("service", "create", service.id)
    assert event["Actor"]["Attributes"]["name"] == "t-py"


def test_disk_use_is_told(client: Any) -> None:
    assert {"Images", "Containers", "Volumes"} <= client.df().keys()


@pytest.mark.parametrize(
    "look",
    [
        lambda client: client.services.get("nosuch"),
        lambda client: client.nodes.get("nosuch"),
        lambda client: client.networks.get("nosuch"),
        lambda client: client.secrets.get("nosuch"),
        lambda client: client.configs.get("nosuch"),
        lambda client: client.containers.get("nosuch"),
        lambda client: client.images.get("localhost/nosuch"),
        lambda client: client.volumes.get("nosuch"),
    ],
    ids=["service", "node", "network", "secret", "config", "container", "image", "volume"],
)
def test_what_is_not_there_is_not_found(client: Any, look: Callable[[Any], object]) -> None:
    with pytest.raises(NotFound):
        look(client)


def test_worker_sends_to_the_managers(board: Board) -> None:
    worker = docker.DockerClient(base_url=board.lab.nodes[1].docker_host, version="auto")
    try:
        with pytest.raises(APIError, match="Worker nodes can't be used") as refused:
            worker.services.list()
        assert refused.value.status_code == 503
        assert "front" in [network.name for network in worker.networks.list()]
    finally:
        worker.close()
