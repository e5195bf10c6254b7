"""From items of a view to a network's names: what Docker's resolver knows; and from table to table."""

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from hivemesh.dns.names import names_of
from hivemesh.dns.tables import news, renamed
from hivemesh.model.addr import VNI, Address
from hivemesh.model.ids import EndpointID, NetworkID, ServiceID, TaskID
from hivemesh.wire.control import Backend, EndpointItem, NetworkItem, ServiceItem
from hivemesh.wire.resolver import Names, Renames

NET = NetworkID("n1")
NETWORK = NetworkItem(id=NET, name="Front.net", vni=VNI(4097), port=4789, subnets=())


def ips(*texts: str) -> tuple[Address, ...]:
    return tuple(ipaddress.ip_address(text) for text in texts)


def backend(number: int, *names: str) -> Backend:
    return Backend(task=TaskID(f"t{number}"), addresses=ips(f"10.0.1.{number}", f"fd00::{number:x}"), names=names)


def service(name: str, *backends: Backend, vips: tuple[Address, ...] = (), aliases: tuple[str, ...] = (),
            network: NetworkID = NET) -> ServiceItem:  # fmt: skip
    return ServiceItem(
        network=network, service=ServiceID(f"id-{name}"), name=name, aliases=aliases, vips=vips, backends=backends
    )


def names(*services: ServiceItem, endpoints: tuple[EndpointItem, ...] = ()) -> Names:
    return names_of(NETWORK, services, endpoints)


BOX = EndpointItem(
    network=NET, endpoint=EndpointID("e1"), names=("Box", "0123456789ab", "db."), addresses=ips("10.0.1.9")
)


def test_service_with_a_vip_answers_with_it_and_its_tasks_under_tasks() -> None:
    table = names(service("web", backend(5), backend(6), vips=ips("10.0.1.2", "fd00::2"), aliases=("Site",)))
    assert table.addresses["web"] == table.addresses["site"] == ips("10.0.1.2", "fd00::2")
    both = ips("10.0.1.5", "fd00::5", "10.0.1.6", "fd00::6")
    assert table.addresses["tasks.web"] == table.addresses["tasks.site"] == both


def test_service_without_a_vip_answers_with_all_tasks() -> None:
    table = names(service("web", backend(5), backend(6)))
    assert table.addresses["web"] == table.addresses["tasks.web"] == ips("10.0.1.5", "fd00::5", "10.0.1.6", "fd00::6")


def test_name_of_a_service_without_vip_leads_to_no_task_that_takes_no_connections() -> None:
    idle = Backend(task=TaskID("t7"), addresses=ips("10.0.1.7"), names=("web.3.x",), weight=0)
    table = names(service("web", backend(5), idle))
    assert table.addresses["web"] == ips("10.0.1.5", "fd00::5")
    assert table.addresses["tasks.web"] == ips("10.0.1.5", "fd00::5", "10.0.1.7")
    assert table.addresses["web.3.x"] == ips("10.0.1.7")
    assert names(service("web", idle)).addresses["web"] == ()  # it is known, and answers nothing


def test_tasks_answer_to_each_of_their_names_and_have_the_first_in_reverse() -> None:
    table = names(service("web", backend(5, "web.1.Abc", "0123456789ab", "host5"), vips=ips("10.0.1.2")))
    assert {table.addresses[n] for n in ("web.1.abc", "0123456789ab", "host5")} == {ips("10.0.1.5", "fd00::5")}
    assert table.reverse == dict.fromkeys(ips("10.0.1.5", "fd00::5"), "web.1.Abc")  # a VIP has none


def test_attached_container_answers_to_its_names_in_lower_case() -> None:
    table = names(endpoints=(BOX,))
    assert table.addresses == dict.fromkeys(("0123456789ab", "box", "db"), ips("10.0.1.9"))
    assert table.reverse == {ips("10.0.1.9")[0]: "Box"}
    assert table.name == "front.net"


def test_shared_alias_has_the_addresses_of_all() -> None:
    one = service("a", backend(5), vips=ips("10.0.1.2"), aliases=("db",))
    two = service("b", backend(6), vips=ips("10.0.1.3"), aliases=("db",))
    table = names(two, one, endpoints=(BOX,))
    assert table.addresses["db"] == ips("10.0.1.2", "10.0.1.3", "10.0.1.9")
    assert table == names(one, two, endpoints=(BOX,))


def test_service_that_lost_its_last_task_has_no_names() -> None:
    gone = service("web", vips=ips("10.0.1.2"), aliases=("db",))
    assert names(gone).addresses == {}
    assert names(gone, service("b", backend(6), aliases=("db",))).addresses["db"] == ips("10.0.1.6", "fd00::6")


def test_ingress_and_other_networks_give_no_names() -> None:
    ingress = NetworkItem(id=NET, name="ingress", vni=VNI(4096), port=4789, subnets=(), ingress=True)
    assert names_of(ingress, [service("web", backend(5, "web.1.x"))], [BOX]).addresses == {}
    assert names(service("web", backend(5, "web.1.x"), network=NetworkID("other"))).reverse == {}


TABLES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sets(st.integers(2, 6), max_size=4)),
    max_size=3,
    unique_by=lambda s: s[0],
).map(lambda found: names(*(service(name, *(backend(n, f"{name}.{n}") for n in tasks)) for name, tasks in found)))


@given(TABLES, TABLES)
def test_whatever_is_told_of_a_change_gives_the_new_table(before: Names, after: Names) -> None:
    told = news(before, after)
    assert told is None if before == after else told is not None
    assert (renamed(before, told) if isinstance(told, Renames) else told or before) == after


def test_one_task_among_many_is_little_to_tell() -> None:
    many = [backend(n, f"web.{n}") for n in range(2, 250)]
    before, after = (names(service("web", *tasks, vips=ips("10.0.1.1"))) for tasks in (many, many[1:]))
    told = news(before, after)
    assert isinstance(told, Renames)
    assert (told.gone, set(told.addresses)) == (("web.2",), {"tasks.web"})
    assert isinstance(news(None, after), Names)
    assert isinstance(
        news(names(service("web", *many[:1], network=NetworkID("n1"))), names(service("db", backend(250, "db.1")))),
        Names,
    )  # all of it is less to say
