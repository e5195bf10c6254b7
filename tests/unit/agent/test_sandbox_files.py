"""What a container finds in its /etc/hosts and /etc/resolv.conf."""

from ipaddress import ip_interface, ip_network
from pathlib import Path

from hivemesh.agent.files import SandboxFiles
from hivemesh.dns.hostconf import HostConf
from hivemesh.model.addr import MAC, VNI
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.network import Subnet
from hivemesh.model.service import ContainerSpec, DNSConfig, TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import NetworkItem

HOST = HostConf(search=("corp.example",), options=("timeout:2",))


def network(number: int, *, ingress: bool = False) -> NetworkItem:
    prefix = ip_network(f"10.0.{number}.0/24")
    subnet = Subnet(prefix=prefix, gateway=prefix[1])
    return NetworkItem(
        id=NetworkID(f"network{number}"), name=f"net{number}", vni=VNI(4096 + number), port=4789, subnets=(subnet,),
        ingress=ingress,
    )  # fmt: skip


NETWORKS = {item.id: item for item in (network(0, ingress=True), network(1), network(2))}


def a_task(spec: ContainerSpec | None = None) -> Task:
    attachments = tuple(
        Attachment(
            endpoint_id=EndpointID(f"e{n}"),
            network_id=NetworkID(f"network{n}"),
            addresses=(ip_interface(f"10.0.{n}.5/24"), ip_interface(f"fd00:{n}::5/64")),
            mac=MAC("02:42:0a:00:00:05"),
        )
        for n in range(3)
    )
    return Task(
        id=TaskID("task1"),
        service_id=ServiceID("s"),
        service_name="web",
        slot=1,
        spec=TaskSpec(container_spec=spec or ContainerSpec()),
        attachments=attachments,
    )


def test_files_name_the_container_on_the_users_networks_only(tmp_path: Path) -> None:
    spec = ContainerSpec(hosts=("192.0.2.9 old.example legacy",), dns_config=DNSConfig(search=("inside.example",)))
    files = SandboxFiles(tmp_path).write(a_task(spec), NETWORKS, HOST, "box")
    hosts = Path(files["/etc/hosts"]).read_text()
    assert "10.0.1.5\tbox\nfd00:1::5\tbox\n10.0.2.5\tbox\nfd00:2::5\tbox\n192.0.2.9\told.example legacy\n" in hosts
    assert "10.0.0.5" not in hosts
    assert "127.0.0.1\tlocalhost" in hosts
    lines = Path(files["/etc/resolv.conf"]).read_text().splitlines()
    assert lines[-3:] == ["nameserver 127.0.0.11", "search inside.example", "options timeout:2 ndots:0"]


def test_files_written_again_are_the_same_files(tmp_path: Path) -> None:
    """Whoever has mounted one sees what it says now."""
    store = SandboxFiles(tmp_path)
    before = {path: Path(path).stat().st_ino for path in store.write(a_task(), NETWORKS, HOST, "").values()}
    after = {path: Path(path).stat().st_ino for path in store.write(a_task(), NETWORKS, HOST, "0123456789ab").values()}
    assert before == after
    assert "10.0.1.5\t0123456789ab" in (tmp_path / "task1" / "hosts").read_text()


def test_files_of_forgotten_tasks_are_removed(tmp_path: Path) -> None:
    store = SandboxFiles(tmp_path / "sandboxes")
    store.keep(())  # nothing was ever written
    store.write(a_task(), NETWORKS, HOST, "box")
    store.keep({TaskID("task1")})
    assert (tmp_path / "sandboxes" / "task1").is_dir()
    store.keep(())
    assert not (tmp_path / "sandboxes" / "task1").exists()
    store.remove(TaskID("task1"))
