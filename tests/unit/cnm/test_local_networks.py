"""Networks of one node: what is granted, what is refused by name, who is called what on them."""

from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivemesh.cnm import local
from hivemesh.cnm.local import Around
from hivemesh.dataplane.plan.bridge import PLAIN_HOST, ports_of, way_out, with_local
from hivemesh.dataplane.plan.facts import HostFacts
from hivemesh.model.addr import Prefix
from hivemesh.model.errors import Exhausted, Forbidden, HivemeshError, Invalid, Unsupported
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.model.local import Local, LocalNetwork, LocalSpec, PublishedPort
from hivemesh.model.network import MTU_OPTION, IPAMConfig
from hivemesh.model.service import ContainerSpec, NetworkAttachmentConfig, TaskSpec
from hivemesh.model.task import Attachment, Task, TaskState, TaskStatus

POOL = tuple(ip_network(f"172.{second}.0.0/16") for second in (18, 19))
FACTS = HostFacts(
    vtep=ip_address("0.0.0.0"),
    vtep_mtu=1500,
    node_v4=None,
    node_v6=None,
    gateway4=IPv4Interface("0.0.0.0/32"),
    gateway6=IPv6Interface("::/128"),
)


def around(*networks: LocalNetwork, taken: tuple[str, ...] = ()) -> Around:
    return Around(networks=networks, taken=[ip_network(t) for t in taken], links={"eth0", "lo"}, pool=POOL)


def granted(name: str = "mine", here: Around | None = None, **spec: Any) -> LocalNetwork:
    return local.grant(LocalSpec(name=name, **spec), NetworkID(name.ljust(64, "0")), 1.0, here or around())


def ipam(**config: Any) -> dict[str, Any]:
    return {"ipam": (IPAMConfig(**config),)}


def test_network_without_wishes_gets_the_first_free_pool_and_a_device() -> None:
    first = granted("one")
    second = granted("two", around(first))
    assert [n.subnets[0].prefix for n in (first, second)] == list(POOL)
    assert (first.device, str(first.subnets[0].gateway)) == ("hm-one000000000", "172.18.0.1")
    assert granted("three", around(taken=("172.18.3.0/24",))).subnets[0].prefix == POOL[1]
    with pytest.raises(Exhausted, match="all predefined address pools"):
        granted("four", around(first, second))


def test_default_bridge_is_where_docker_has_it_unless_that_is_taken() -> None:
    made = local.default_bridge(NetworkID("0" * 64), 1.0, around())
    assert (str(made.subnets[0].prefix), made.device, made.is_default) == ("172.17.0.0/16", "hm_bridge0", True)
    beside = local.default_bridge(NetworkID("0" * 64), 1.0, around(taken=("172.17.0.0/16",)))
    assert beside.subnets[0].prefix == POOL[0]


def test_everything_asked_of_a_bridge_is_granted() -> None:
    made = granted(
        ipv6=True, internal=True, **ipam(
            subnet="10.7.0.0/24", gateway="10.7.0.9", ip_range="10.7.0.128/25",
            auxiliary_addresses={"router": "10.7.0.130"},
        ),
        options={local.NAME: "br7", local.ICC: "false", local.MASQUERADE: "0", local.BINDING: "192.0.2.1",
                 MTU_OPTION: "1400"},
    )  # fmt: skip
    four, six = made.subnets
    assert (str(four.prefix), str(four.gateway), str(four.ip_range)) == ("10.7.0.0/24", "10.7.0.9", "10.7.0.128/25")
    assert str(six.prefix).startswith("fd")
    assert six.prefix.prefixlen == 64
    assert (made.device, made.icc, made.masquerade, str(made.binding), made.mtu) == (
        "br7", False, False, "192.0.2.1", 1400,
    )  # fmt: skip
    assert made.subnets[0].reserved == (ip_address("10.7.0.130"),)


def test_gateway_that_nobody_chose_is_the_first_address_of_the_range() -> None:
    made = granted(**ipam(subnet="10.7.0.0/24", ip_range="10.7.0.128/25"))
    assert str(made.subnets[0].gateway) == "10.7.0.128"


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ({"options": {"foo": "1"}}, Unsupported, "the option foo is not supported by the bridge driver"),
        ({"options": {local.PARENT: "eth0"}}, Unsupported, "the option parent is not supported by the bridge"),
        ({"options": {local.ICC: "maybe"}}, Invalid, "enable_icc: expected true or false"),
        ({"options": {local.BINDING: "fd00::1"}}, Invalid, "expected an IPv4 address"),
        ({"options": {MTU_OPTION: "0"}}, Invalid, "invalid MTU"),
        ({"options": {MTU_OPTION: "1000"}, "ipv6": True}, Invalid, "needs 1280"),
        ({"options": {local.NAME: "x" * 16}}, Invalid, "15 bytes at most"),
        ({"options": {local.NAME: "eth0"}}, Invalid, "an interface eth0 exists"),
        ({"ipv4": False}, Unsupported, "EnableIPv4 false"),
        ({"ipam_options": {"foo": "1"}}, Unsupported, "IPAM option foo"),
        (ipam(gateway="10.0.0.1"), Invalid, "needs a subnet"),
        (ipam(subnet="10.0.0.0/33"), Invalid, "10.0.0.0/33"),
        (ipam(subnet="10.0.0.0/31"), Invalid, "too small"),
        (ipam(subnet="10.0.0.0/24", gateway="10.0.1.1"), Invalid, "no matching subnet for gateway"),
        (ipam(subnet="10.0.0.0/24", ip_range="10.0.0.0/16"), Invalid, "no matching subnet for range"),
        (ipam(subnet="10.0.0.0/24", auxiliary_addresses={"a": "10.1.0.1"}), Invalid, "auxiliary address"),
        (ipam(subnet="fd00::/64"), Invalid, "needs --ipv6"),
        (ipam(subnet="192.0.2.0/25"), Forbidden, "Pool overlaps"),
        ({"ipam": tuple(IPAMConfig(subnet=s) for s in ("10.1.0.0/24", "10.2.0.0/24"))}, Unsupported, "one subnet"),
        ({"ipam": tuple(IPAMConfig(subnet=s) for s in ("10.1.0.0/24", "10.1.0.0/25"))}, Invalid, "overlap"),
        ({"driver": "macvlan", "options": {local.PARENT: "eth9"}}, Invalid, "there is no interface eth9"),
        ({"driver": "macvlan", "options": {local.PARENT: "eth0", local.MODE: "x"}}, Invalid, "unknown macvlan mode"),
        ({"driver": "macvlan", "options": {local.ICC: "true"}}, Unsupported, "not supported by the macvlan driver"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(spec: dict[str, Any], error: type[HivemeshError], words: str) -> None:
    with pytest.raises(error, match=words):
        granted(here=around(taken=("192.0.2.0/24",)), **spec)


def test_two_networks_never_share_a_device_or_a_parent() -> None:
    bridge = granted("one", options={local.NAME: "br7"})
    with pytest.raises(Invalid, match="already used by network one"):
        granted("two", around(bridge), options={local.NAME: "br7"})
    wire = granted("one", driver="macvlan", options={local.PARENT: "eth0"})
    assert (wire.device, wire.own_parent, wire.mode) == ("eth0", False, "bridge")
    with pytest.raises(Invalid, match="network one is already using parent"):
        granted("two", around(wire), driver="macvlan", options={local.PARENT: "eth0"})


def test_macvlan_has_the_subnet_of_the_wire_outside() -> None:
    made = granted(here=around(taken=("192.0.2.0/24",)), driver="macvlan", options={local.PARENT: "eth0"},
                   **ipam(subnet="192.0.2.0/24"))  # fmt: skip
    assert str(made.subnets[0].prefix) == "192.0.2.0/24"


def test_network_that_is_settings_only_has_no_device() -> None:
    made = granted(config_only=True, options={"parent": "eth7"}, **ipam(subnet="10.1.0.0/24"))
    assert (made.device, made.subnets, made.is_bridge) == ("", (), False)


@pytest.mark.parametrize("name", ["bridge", "host", "none"])
def test_predefined_names_are_nobodys(name: str) -> None:
    with pytest.raises(Forbidden, match="predefined"):
        local.check_name(name)


@pytest.mark.parametrize("name", ["", "a b", "a/b"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        local.check_name(name)


# --- endpoints --------------------------------------------------------------------------------------------------------


def attach(network: LocalNetwork, held: list[Attachment], **more: Any) -> Attachment:
    return local.attachment(network, held, endpoint=EndpointID(f"e{len(held)}"), **more)


@given(st.lists(st.integers(0, 3), max_size=40))
def test_no_address_is_given_twice_and_none_that_is_reserved(releases: list[int]) -> None:
    made = granted(**ipam(subnet="10.7.0.0/28", auxiliary_addresses={"a": "10.7.0.4"}))
    held: list[Attachment] = []
    cursors: dict[Prefix, int] = {}
    for release in releases:
        try:
            held.append(attach(made, held, cursor=lambda prefix: cursors.get(prefix, 0)))
            cursors[made.subnets[0].prefix] = int(held[-1].addresses[0])
        except Exhausted:
            assert len(held) == 12  # 16 less the network, the broadcast, the gateway and the reserved one
        if release == 0 and held:
            held.pop(0)
        addresses = [str(a.addresses[0].ip) for a in held]
        assert len(set(addresses)) == len(addresses)
        assert not {"10.7.0.0", "10.7.0.1", "10.7.0.4", "10.7.0.15"} & set(addresses)


def test_address_of_ones_own_is_given_unless_it_is_taken_or_outside() -> None:
    made = granted(ipv6=True, **ipam(subnet="10.7.0.0/24"))
    mine = attach(made, [], wanted=[ip_address("10.7.0.77")], mac="02:11:22:33:44:55")
    assert str(mine.addresses[0]) == "10.7.0.77/24"
    assert mine.mac == "02:11:22:33:44:55"
    assert attach(made, []).mac == "02:42:0a:07:00:02"
    with pytest.raises(HivemeshError, match="Address already in use"):
        attach(made, [mine], wanted=[ip_address("10.7.0.77")])
    for outside in ("10.8.0.1", "fd00::1"):
        with pytest.raises(Invalid, match="in no subnet"):
            attach(made, [mine], wanted=[ip_address(outside)])


@pytest.mark.parametrize("text", ["", "02:42", "02:42:00:00:00:0g", "01:00:5e:00:00:01", "02:42:00:00:00:00:00"])
def test_mac_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="invalid MAC"):
        local.parse_mac(text)


def test_mac_is_read_in_any_usual_form() -> None:
    assert local.parse_mac("02-42-AC-11-00-02") == "02:42:ac:11:00:02"


# --- names, and the way out -------------------------------------------------------------------------------------------


def task(name: str, *attachments: Attachment, local: Local | None = None, aliases: tuple[str, ...] = ()) -> Task:
    configs = tuple(NetworkAttachmentConfig(target=a.network_id, aliases=aliases) for a in attachments)
    spec = TaskSpec(container_spec=ContainerSpec(hostname=f"{name}-host"), networks=configs)
    return Task(
        id=TaskID(name.ljust(25, "0")), service_id=ServiceID(""), service_name="", slot=0, spec=spec, container=name,
        attachments=attachments, local=local or Local(),
        status=TaskStatus(state=TaskState.RUNNING, container_id=name.encode().hex().ljust(64, "0")),
    )  # fmt: skip


def test_names_are_those_of_user_defined_networks_and_links_are_private() -> None:
    mine = granted("mine", **ipam(subnet="10.7.0.0/24"))
    default = local.default_bridge(NetworkID("d" * 64), 1.0, around())
    web = task("web", attach(mine, []), attach(default, []), aliases=("www",))
    box = task(
        "box", attach(default, list(web.attachments[1:])), local=Local(links={"DB": web.id, "gone": TaskID("x")})
    )
    names = local.names_on([mine, default], [web, box])
    assert names.keys() == {mine.id, local.links_of(box)}
    known = names[mine.id].addresses
    assert known.keys() == {"web", "www", "web-host", "776562000000"}
    assert {str(a) for a in known["www"]} == {"10.7.0.2"}
    assert names[mine.id].reverse == {ip_address("10.7.0.2"): "web"}
    linked = names[local.links_of(box)].addresses
    assert {name: [str(a) for a in addresses] for name, addresses in linked.items()} == {"db": ["172.17.0.2"]}


def test_way_out_is_the_first_network_that_leads_out_or_the_one_preferred() -> None:
    inner = granted("inner", internal=True, **ipam(subnet="10.1.0.0/24"))
    one, two = (granted(f"n{i}", **ipam(subnet=f"10.{i}.0.0/24")) for i in (2, 3))
    wire = granted("wire", driver="macvlan", options={local.PARENT: "eth0"}, **ipam(subnet="10.9.0.0/24"))
    networks = {n.id: n for n in (inner, one, two, wire)}
    ports = Local(ports=(PublishedPort(target=80, port=8080),))
    plain = task("a", *(attach(n, []) for n in (inner, one, two)), local=ports)
    way = way_out(plain, networks, 4)
    assert way is not None
    assert way.network is one
    assert way_out(plain, networks, 6) is None
    preferred = task("b", attach(one, []), attach(two, [], priority=1), attach(wire, [], priority=2), local=ports)
    assert way_out(preferred, networks, 4).network is wire  # type: ignore[union-attr]
    (port,) = ports_of(preferred, networks, None)
    assert (str(port.v4), port.v6) == ("10.3.0.2", None), "ports are published on bridges"
    assert ports_of(task("c", attach(inner, []), local=ports), networks, None)[0].v4 is None


def test_ports_are_published_where_the_network_says() -> None:
    bound = granted(options={local.BINDING: "192.0.2.1"}, ipv6=True, **ipam(subnet="10.7.0.0/24"))
    ports = Local(ports=(PublishedPort(target=80, port=1), PublishedPort(target=80, port=2, address=ip_address("::1"))))
    one, two = ports_of(task("a", attach(bound, []), local=ports), {bound.id: bound}, None)
    assert (str(one.address), one.v6) == ("192.0.2.1", None)
    assert str(two.address) == "::1"
    assert two.v6 is not None


def test_host_without_networks_of_its_own_is_left_alone() -> None:
    assert with_local(PLAIN_HOST, FACTS, (), ()) is PLAIN_HOST
    made = granted(**ipam(subnet="10.7.0.0/24"))
    plan = with_local(PLAIN_HOST, FACTS, (made,), ())
    assert [link.name for link in plan.links] == [made.device]
    assert plan.sysctls["net/ipv4/ip_forward"] == "1"
    assert plan == with_local(PLAIN_HOST, FACTS, (msgspec.structs.replace(made),), ())
