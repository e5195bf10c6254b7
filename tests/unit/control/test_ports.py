"""Published ports: who gets which number, where each is open, and what is refused."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import World, publish, spec

from hivemesh.control import ports
from hivemesh.model.errors import HivemeshError, Invalid, Unsupported
from hivemesh.model.node import NodeDescription
from hivemesh.model.service import DYNAMIC_PORTS, Door, PortConfig, Service, ServiceSpec, number_inside
from hivemesh.model.task import TaskState, TaskStatus


def at(name: str, where: str = "", *numbers: int, **more: Any) -> ServiceSpec:
    """A service that publishes 8080, if no other numbers are given, and only `where`."""
    wanted = spec(name, ports=[publish(number) for number in numbers or (8080,)], **more)
    labels = {f"hivemesh.publish.{number}": where for number in numbers or (8080,)} if where else {}
    return msgspec.structs.replace(wanted, labels=labels)


def numbers(service: Service) -> list[int]:
    return [port.published_port for port in service.ports]


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_one_target_published_twice_gets_two_numbers_and_keeps_them() -> None:
    world = World(1)
    assert numbers(world.create(spec(ports=[publish(0), publish(0)]))) == [30000, 30001]
    assert numbers(world.update("web", spec(image="new", ports=[publish(0), publish(0), publish(0)]))) == [
        30000, 30001, 30002
    ]  # fmt: skip


def test_number_that_is_asked_for_now_is_not_kept_for_another_port() -> None:
    world = World(1)
    world.create(spec(ports=[publish(0), publish(8080)]))
    assert numbers(world.update("web", spec(ports=[publish(0), publish(8080)]))) == [30000, 8080]
    assert numbers(world.update("web", spec(ports=[publish(0), publish(30000)]))) == [8080, 30000]


def test_port_that_loses_its_number_keeps_it() -> None:
    world = World(1)
    world.create(spec(ports=[publish(8080)]))
    assert numbers(world.update("web", spec(ports=[publish(0)]))) == [8080]


def test_protocols_share_a_number() -> None:
    world = World(1)
    world.create(spec(ports=[publish(53), publish(53, protocol="udp")]))
    world.create(spec("b", ports=[publish(54)]))
    assert numbers(world.create(spec("c", ports=[publish(54, protocol="udp")]))) == [54]


def test_all_dynamic_numbers_taken_is_said_and_ends_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "DYNAMIC_PORTS", DYNAMIC_PORTS[:2])
    world = World(1)
    world.create(spec("a", ports=[publish(0), publish(0, 81)]))
    late = world.create(spec("b", ports=[publish(0)]))
    assert late.error == "no free tcp port in 30000-30001 to publish"
    world.remove("a")
    assert numbers(world.service("b")) == [30000]


# --- conflicts -------------------------------------------------------------------------------------------------------


def test_number_a_node_chose_for_a_task_is_taken_there() -> None:
    world = World(1)
    host = world.create(spec("a", ports=[publish(0, mode="host")]))
    (task,) = world.tasks("a")
    bound = publish(49153, mode="host")
    report = TaskStatus(state=TaskState.RUNNING, ports=(bound,))
    world.change(lambda tx: tx.put(msgspec.structs.replace(task, status=report)))
    with pytest.raises(Invalid) as caught:
        world.create(spec("b", ports=[publish(49153)]))
    assert str(caught.value) == f"port '49153' is already in use by service 'a' ({host.id}) as a host-published port"
    world.create(spec("c", ports=[bound]))
    assert world.tasks("c")[0].status.err == "no suitable node (host-mode port already in use on 1 node)"


def test_update_that_takes_a_label_away_meets_who_has_the_port_elsewhere() -> None:
    world = World(1)
    first = world.create(at("a", "198.51.100.11"))
    world.create(at("b", "198.51.100.12"))
    with pytest.raises(
        Invalid, match=rf"port '8080' is already in use by service 'a' \({first.id}\) as an ingress port"
    ):
        world.update("b", at("b"))
    world.remove("a")
    world.update("b", at("b"))


@pytest.mark.parametrize(
    ("one", "two", "apart"),
    [
        ("198.51.100.11", "198.51.100.12", True),
        ("198.51.100.0/25", "198.51.100.128/25,2001:db8::1", True),
        ("0.0.0.0/0", "::/0", True),
        ("198.51.100.11", "198.51.100.0/24", False),
        ("198.51.100.11,2001:db8::1", "2001:db8::/64", False),
        ("198.51.100.11", "", False),
        ("", "198.51.100.11", False),
        ("node.labels.a==1", "node.labels.a==2", False),
        ("198.51.100.11", "node.id==x", False),
    ],
)
def test_two_services_share_a_number_where_addresses_are_plainly_apart(one: str, two: str, apart: bool) -> None:
    world = World(1)
    first = world.create(at("a", one))
    if apart:
        second = world.create(at("b", two))
        assert (numbers(first), numbers(second)) == ([8080], [8080])
        assert (first.doors, second.doors) == ((), (Door(protocol="tcp", port=8080, number=61000),))
        assert world.tasks("b")[0].doors == second.doors
    else:
        with pytest.raises(Invalid, match="already in use by service 'a'"):
            world.create(at("b", two))


def test_number_inside_stays_when_others_go_and_is_nobody_elses() -> None:
    world = World(1)
    world.create(at("a", "198.51.100.11"))
    world.create(at("b", "198.51.100.12"))
    world.remove("a")
    assert world.update("b", at("b", "198.51.100.12", replicas=2)).doors[0].number == 61000
    assert world.create(at("c", "", 61000)).doors == (Door(protocol="tcp", port=61000, number=61001),)
    assert world.create(at("d", "198.51.100.13")).doors == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["create", "update", "remove"]),
            st.sampled_from("abcd"),
            st.lists(st.sampled_from([0, 0, 8080, 8081, 30000, 30001, 61000]), max_size=4),
            st.sampled_from(["tcp", "udp"]),
            st.sampled_from(["", "198.51.100.11", "198.51.100.12", "198.51.100.0/24", "node.role==manager"]),
        ),
        max_size=12,
    )
)
def test_no_port_is_anybodys_twice_whatever_happens(steps: list[tuple[str, str, list[int], str, str]]) -> None:
    world = World(1)
    for verb, name, wanted, protocol, where in steps:
        asked = [publish(number, 80 + i, protocol=protocol) for i, number in enumerate(wanted)]
        labels = {f"hivemesh.publish.{number}": where for number in wanted if number and where}
        made = msgspec.structs.replace(spec(name, ports=asked), labels=labels)
        try:
            match verb:
                case "create":
                    world.create(made)
                case "update":
                    world.update(name, made)
                case _:
                    world.remove(name)
        except HivemeshError:
            continue
        inside: set[tuple[str, int]] = set()
        open_at: list[tuple[str, int, ports.Opening | None]] = []
        for service in world.view.all(Service):
            assert [_asked(p) for p in service.ports] == [_asked(p) for p in service.spec.endpoint_spec.ports]
            found = ports.openings(service.spec.labels)
            for port in service.ports:
                assert port.published_port
                number = (port.protocol, number_inside(port, service.doors))
                assert number not in inside
                inside.add(number)
                opening = ports.opening(found, port)
                for protocol_, number_, other in open_at:
                    if (protocol_, number_) == (port.protocol, port.published_port):
                        assert opening is not None
                        assert other is not None
                        assert opening.is_apart(other)
                open_at.append((port.protocol, port.published_port, opening))
        assert world.at_rest()


def _asked(port: PortConfig) -> tuple[str, int]:
    return port.protocol, port.target_port


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "value", "words"),
    [
        ("8080", "", "invalid address ''"),
        ("8080", "198.51.100.11,", "invalid address ''"),
        ("8080", "edge", "expected a prefix"),
        ("8080", "198.51.100.11/24", "expected a prefix"),
        ("8080", "0.0.0.0", "write 0.0.0.0/0 for all addresses"),
        ("8080", "::", "write ::/0 for all"),
        ("8080", "fe80::1%eth0", "names a link"),
        ("8080", "node.labels.edge=true", "expected one operator from ==, !="),
        ("8080", "node.colour==red", "nodes have no node.colour: use node.labels.NAME"),
        ("8081", "198.51.100.11", "does not publish port 8081 in ingress mode"),
        ("8080/udp", "198.51.100.11", "does not publish port 8080/udp in ingress mode"),
        ("9000", "198.51.100.11", "does not publish port 9000 in ingress mode"),
        ("web", "198.51.100.11", "expected hivemesh.publish.PORT or hivemesh.publish.PORT/PROTOCOL"),
        ("8080/icmp", "198.51.100.11", "expected hivemesh.publish.PORT"),
        ("08080", "198.51.100.11", "expected hivemesh.publish.PORT"),
        ("70000", "198.51.100.11", "from 1 to 65535"),
    ],
)
def test_bad_label_is_refused_with_words_and_nothing_changes(label: str, value: str, words: str) -> None:
    world = World(1)
    made = spec(ports=[publish(8080), publish(9000, mode="host")])
    bad = msgspec.structs.replace(made, labels={f"hivemesh.publish.{label}": value})
    with pytest.raises(Invalid) as caught:
        world.create(bad)
    assert f"invalid label hivemesh.publish.{label}" in str(caught.value)
    assert words in str(caught.value)
    world.create(made)
    revision = world.view.revision
    with pytest.raises(Invalid):
        world.update("web", bad)
    assert world.view.revision == revision


def test_label_of_a_protocol_goes_before_the_one_of_all() -> None:
    labels = {"hivemesh.publish.53": "198.51.100.11", "hivemesh.publish.53/udp": "node.role==worker"}
    found = ports.openings(labels)
    udp, tcp = (ports.opening(found, publish(53, protocol=protocol)) for protocol in ("udp", "tcp"))
    assert udp is not None
    assert tcp is not None
    assert (udp.nodes, len(tcp.addresses)) == (("node.role==worker",), 1)


def test_label_may_name_a_port_the_allocator_chose() -> None:
    world = World(1)
    world.create(spec(ports=[publish(0)]))
    labelled = msgspec.structs.replace(spec(ports=[publish(0)]), labels={"hivemesh.publish.30000": "198.51.100.11"})
    assert numbers(world.update("web", labelled)) == [30000]


def test_changing_where_a_port_is_open_replaces_no_task() -> None:
    world = World(1)
    world.create(at("web", "198.51.100.11"))
    before = world.tasks("web")
    world.update("web", at("web", "198.51.100.12"))
    assert world.tasks("web") == before


# --- SCTP ------------------------------------------------------------------------------------------------------------


def test_sctp_is_refused_where_no_kernel_has_it_and_runs_where_one_has() -> None:
    world = World(2)
    wanted = spec(replicas=2, ports=[PortConfig(protocol="sctp", target_port=9, published_port=9)])
    with pytest.raises(Unsupported, match="sctp is not supported by the kernel of any node"):
        world.create(wanted)
    able = NodeDescription(hostname="n2", architecture="x86_64", protocols=("tcp", "udp", "sctp"))
    world.set_node("n2", description=able)
    world.create(wanted)
    assert {task.node_id for task in world.tasks("web")} == {world.node("n2").id}
    world.set_spec("n2", availability="pause")
    world.update("web", msgspec.structs.replace(wanted, mode=spec(replicas=3).mode))
    (waiting,) = [task for task in world.tasks("web") if task.node_id is None]
    assert "no SCTP in the kernel (module sctp) of 1 node" in waiting.status.err
