"""The node's resolver settings, and the files of a container."""

from ipaddress import ip_address
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hivemesh.dns.hostconf import (
    HostConf,
    container_hosts,
    container_resolv_conf,
    parse_host_conf,
    read_host_conf,
    wants_dots,
)
from hivemesh.model.service import DNSConfig


def test_settings_of_a_node_are_read_as_the_c_library_reads_them() -> None:
    conf = parse_host_conf(
        "# nameserver 192.0.2.9\n; search no\nnameserver 192.0.2.1 # first\nnameserver fe80::1%eth0\n"
        "nameserver nonsense\nnameserver\nnameserver 192.0.2.1\ndomain old.example\n"
        "search a.example b.example\noptions edns0 ndots:2\n"
        "options timeout:1\nsortlist 192.0.2.0\n"
    )
    assert conf == HostConf(
        nameservers=(ip_address("192.0.2.1"), ip_address("fe80::1%eth0")),
        search=("a.example", "b.example"),
        options=("edns0", "ndots:2", "timeout:1"),
    )


def test_a_last_domain_replaces_the_search_list() -> None:
    assert parse_host_conf("search a b\ndomain c\n").search == ("c",)
    assert parse_host_conf("search .\n").search == ()


@given(st.text())
def test_junk_in_the_file_is_passed_over(text: str) -> None:
    parse_host_conf(text)


def test_a_node_without_the_file_has_no_settings(tmp_path: Path) -> None:
    assert read_host_conf(tmp_path / "none") == HostConf()


def settings(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_container_asks_our_resolver_and_keeps_the_nodes_search_and_options() -> None:
    host = HostConf(nameservers=(ip_address("192.0.2.1"),), search=("a.example",), options=("edns0",))
    expected = ["nameserver 127.0.0.11", "search a.example", "options edns0 ndots:0"]
    assert settings(container_resolv_conf(host, None)) == expected
    assert settings(container_resolv_conf(host, DNSConfig())) == expected
    assert settings(container_resolv_conf(HostConf(), None)) == ["nameserver 127.0.0.11", "options ndots:0"]


def test_what_the_container_says_itself_replaces_the_nodes() -> None:
    host = HostConf(search=("a.example",), options=("edns0", "ndots:3"))
    own = DNSConfig(nameservers=("192.0.2.7",), search=("b.example",), options=("ndots:1", "use-vc"))
    assert settings(container_resolv_conf(host, own)) == [
        "nameserver 127.0.0.11",
        "search b.example",
        "options ndots:1 use-vc",
    ]
    assert settings(container_resolv_conf(host, DNSConfig(search=(".",))))[1:] == ["options edns0 ndots:3"]


def test_no_word_of_a_user_begins_a_line_of_its_own() -> None:
    own = DNSConfig(
        search=("a\nnameserver 192.0.2.66",), options=("ndots:x", "ndots:" + "9" * 5000, "edns0\nsearch evil")
    )
    text = container_resolv_conf(HostConf(), own)
    assert [line.split()[0] for line in settings(text)] == ["nameserver", "search", "options"]
    assert settings(text)[2] == "options edns0 search evil ndots:0"


def test_bare_names_stay_in_the_swarm_only_where_ndots_is_above_0() -> None:
    host = HostConf(options=("ndots:2",))
    assert wants_dots(host, None)
    assert not wants_dots(host, DNSConfig(options=("edns0",)))
    assert not wants_dots(HostConf(), DNSConfig(options=("ndots:0",)))
    assert wants_dots(HostConf(), DNSConfig(options=("ndots:1",)))


def test_hosts_name_the_container_by_its_addresses_and_carry_the_extra_lines() -> None:
    text = container_hosts(
        "web.example", [ip_address("10.0.0.5"), ip_address("fd00::5")], ["192.0.2.1 db db2", "", "192.0.2.2"]
    )
    assert text.splitlines()[0] == "127.0.0.1\tlocalhost"
    assert text.splitlines()[-3:] == ["10.0.0.5\tweb.example web", "fd00::5\tweb.example web", "192.0.2.1\tdb db2"]
    assert container_hosts("", [ip_address("10.0.0.5")]).endswith("ip6-allrouters\n")
