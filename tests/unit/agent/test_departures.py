"""Which connections are forgotten when backends drain and when their endpoints are gone."""

import ipaddress

from hivemesh.agent.departures import Departed, Departures, Strangers
from hivemesh.cnm.node import Sandbox, ViewParts
from hivemesh.model.addr import MAC, VNI, Address
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.network import Subnet
from hivemesh.model.service import TaskSpec
from hivemesh.model.task import Attachment, Task
from hivemesh.wire.control import Backend, NetworkItem, PeerItem, PublishItem, ServiceItem

INGRESS, USER = NetworkID("ingress"), NetworkID("user")
SUBNETS = {
    n: Subnet(prefix=ipaddress.ip_network(f"10.0.{third}.0/24"), gateway=ipaddress.ip_address(f"10.0.{third}.1"))
    for third, n in enumerate((INGRESS, USER))
}
NETWORKS = {
    n: NetworkItem(id=n, name=n, vni=VNI(4096), port=4789, subnets=(SUBNETS[n],), ingress=n == INGRESS)
    for n in (INGRESS, USER)
}


def ip(last: int, network: NetworkID = USER) -> Address:
    return ipaddress.ip_address(f"10.0.{int(network == USER)}.{last}")


VIP = ip(5)


def view(
    peers: tuple[int, ...] = (), backends: tuple[int, ...] = (), published: tuple[int, ...] = (), protocol: str = "udp"
) -> ViewParts:
    """Peers and backends on the user network, backends of a published port, each by the last byte of its address."""

    def of(lasts: tuple[int, ...], network: NetworkID) -> tuple[Backend, ...]:
        return tuple(Backend(task=TaskID(f"t{n}"), addresses=(ip(n, network),)) for n in lasts)

    return ViewParts(
        vteps=(),
        networks=NETWORKS,
        peers={
            USER: tuple(
                PeerItem(
                    network=USER,
                    endpoint=EndpointID(f"e{n}"),
                    addresses=(ipaddress.ip_interface(f"{ip(n)}/24"),),
                    mac=MAC("02:42:0a:00:01:01"),
                    vtep=ipaddress.ip_address("192.0.2.1"),
                )
                for n in peers
            )
        },
        publishes=(
            PublishItem(
                service=ServiceID("s"), service_name="s", protocol=protocol, port=1, backends=of(published, INGRESS)
            ),
        ),
        services={
            USER: (
                ServiceItem(network=USER, service=ServiceID("s"), name="s", vips=(VIP,), backends=of(backends, USER)),
            )
        },
        endpoints={},
        tasks={},
    )


def sandbox(name: str, last: int) -> Sandbox:
    attachment = Attachment(
        endpoint_id=EndpointID(name),
        network_id=USER,
        addresses=(ipaddress.ip_interface(f"{ip(last)}/24"),),
        mac=MAC("02:42:0a:00:01:01"),
    )
    task = Task(
        id=TaskID(name),
        service_id=ServiceID("s"),
        service_name="s",
        slot=1,
        spec=TaskSpec(),
        attachments=(attachment,),
    )
    return Sandbox(task=task, networks={USER: NETWORKS[USER]}, lease=None)


HERE = [sandbox("caller", 9)]


def test_first_view_finds_that_nothing_left() -> None:
    assert Departures().since_last(view(peers=(1, 2), backends=(1, 2)), HERE) == []


def test_backend_that_drains_loses_its_udp_clients_only() -> None:
    departures = Departures()
    departures.since_last(view(peers=(1, 2), backends=(1, 2)), HERE)
    found = departures.since_last(view(peers=(1, 2), backends=(2,)), HERE)
    assert found == [Departed(namespace="caller", udp=frozenset({ip(1)}), every=frozenset())]
    assert departures.since_last(view(peers=(1, 2), backends=(2,)), HERE) == []


def test_endpoint_that_is_gone_loses_everybody() -> None:
    departures = Departures()
    departures.since_last(view(peers=(1, 2), backends=(2,)), HERE)
    found = departures.since_last(view(peers=(2,), backends=(2,)), HERE)
    assert found == [Departed(namespace="caller", udp=frozenset(), every=frozenset({ip(1)}))]


def test_sandbox_of_this_node_that_ended_is_gone_for_its_neighbours() -> None:
    departures = Departures()
    both = [*HERE, sandbox("web", 3)]
    departures.since_last(view(backends=(3,)), both)
    (found,) = departures.since_last(view(), HERE)
    assert found == Departed(namespace="caller", udp=frozenset({ip(3)}), every=frozenset({ip(3)}))


def test_published_udp_port_is_forgotten_in_the_ingress_sandbox_and_tcp_drains() -> None:
    departures = Departures()
    departures.since_last(view(published=(1, 2)), HERE)
    (found,) = departures.since_last(view(published=(2,)), HERE)
    assert found == Departed(namespace="ingress_sbox", udp=frozenset({ip(1, INGRESS)}), every=frozenset())
    departures.since_last(view(published=(1, 2), protocol="tcp"), HERE)
    assert departures.since_last(view(published=(2,), protocol="tcp"), HERE) == []


def test_strangers_are_looked_for_once_in_each_namespace_and_again_in_a_new_one() -> None:
    departures = Departures()
    now = view(peers=(1, 2), backends=(2,), published=(7,))
    ingress, caller = departures.strangers(now, HERE)[::-1]
    assert (ingress.namespace, ingress.within, ingress.backends) == (
        "ingress_sbox", (ipaddress.ip_network("10.0.0.0/24"),), frozenset({ip(7, INGRESS)})
    )  # fmt: skip
    assert caller == Strangers(
        namespace="caller",
        within=(ipaddress.ip_network("10.0.1.0/24"),),
        known=frozenset({ip(1), ip(2), ip(9), VIP}),
        backends=frozenset({ip(2)}),
    )
    assert departures.strangers(now, HERE) == []
    assert [left.namespace for left in departures.strangers(now, [*HERE, sandbox("late", 8)])] == ["late"]
    departures.strangers(now, HERE)
    assert [left.namespace for left in departures.strangers(now, [*HERE, sandbox("late", 8)])] == ["late"]
