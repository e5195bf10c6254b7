"""Services find each other: names, virtual addresses, the mesh at once. dig and curl in the tasks are the witnesses."""

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from names_asked import SLEEP, Asker, Reply, askers, network, service, update, vips
from outside import as_json, await_served, curl, eventually, overlay_of

from hivemesh.lab.lab import Lab
from hivemesh.lab.machine import kill

pytestmark = pytest.mark.scenario


def test_classic_services_find_each_other_and_are_published_at_once(lab: Lab) -> None:
    mynet = network(lab, "mynet")
    service(lab, "web_mynet", "--network", "mynet", "--publish", "8080:80", replicas=2)
    service(lab, "test", "--network", "mynet", command=SLEEP)
    webs, (test,) = askers(lab, "web_mynet", 2), askers(lab, "test")
    (vip,) = vips(lab, "web_mynet", mynet)
    own = {web: web.addresses("10.0.1.") for web in webs}

    assert test.names("web_mynet") == test.names("WEB_mynet.mynet") == {vip}
    assert test.names("tasks.web_mynet") == set(own.values())
    assert test.names("web_mynet", "AAAA") == set()
    assert not test.knows(vip, "PTR")
    for web, address in own.items():
        for name in (web.name, web.task.host, f"{web.name}.mynet", f"{web.task.host}.mynet"):
            assert test.names(name) == {address}, name
        assert test.names(address, "PTR") == {f"{web.name}.mynet."}
        assert web.names("tasks.test") == {test.addresses("10.0.1.")}

    # the backend sees the caller itself; a service reaches itself by its own address
    for asker in (test, *webs):
        answers = asker.curl(vip, 6)
        assert Counter(answer.host for answer in answers) == {web.task.host: 3 for web in webs}, asker.name
    assert {answer.client for answer in test.curl(vip, 2)} == {test.addresses("10.0.1.")}
    assert test.inside("ping", "-c", "1", "-W", "1", vip)[0] == 0

    vni = int(lab.nodes[0].api("GET", "/networks/mynet")["Options"]["com.docker.network.driver.overlay.vxlanid_list"])
    for web in webs:
        links = as_json(web.node, web.task.id[:12], "ip", "-j", "-4", "addr")
        where = {link["ifname"]: link["addr_info"][0]["local"].rsplit(".", 2)[0] for link in links}
        assert where == {"lo": "127.0", "eth0": "10.0", "eth1": "172.18", "eth2": "10.0"}
        assert {link["addr_info"][0]["local"] for link in links if link["ifname"] in ("eth0", "eth2")} < (
            web.task.addresses
        )
        assert next(link for link in links if link["ifname"] == "eth2")["addr_info"][0]["local"] == own[web]
        (vxlan,) = as_json(web.node, overlay_of(web.node, mynet), "ip", "-j", "-d", "link", "show", "type", "vxlan")
        assert vxlan["linkinfo"]["info_data"]["id"] == vni >= 4097  # the first that was free
    await_served(lab, 2, 8080)
    for node in lab.nodes:
        assert {answer.host for answer in curl(lab.client, str(node.spec.v4.ip), 8080, 2)} == {
            w.task.host for w in webs
        }


def test_each_network_has_its_own_answers_to_one_question(lab: Lab) -> None:
    left, right = network(lab, "left"), network(lab, "right")
    service(lab, "one", "--network", "name=left,alias=db")
    service(lab, "two", "--network", "name=right,alias=db", "--hostname", "deux")
    service(lab, "both", "--network", "left", "--network", "right", command=SLEEP)
    service(lab, "lone", "--network", "right", command=SLEEP)
    (one,), (two,), (both,), (lone,) = (askers(lab, name) for name in ("one", "two", "both", "lone"))
    vip1, vip2 = vips(lab, "one", left), vips(lab, "two", right)

    assert one.names("db") == vip1
    assert two.names("db") == lone.names("db") == vip2
    for name in ("one", "tasks.one", one.name, one.task.host, "db.left", "one.left"):
        assert not lone.knows(name), name
    assert not lone.knows(min(one.task.addresses), "PTR")
    # nor is there a way
    assert lone.inside("curl", "-s", "-m", "1", f"http://{min(one.task.addresses)}/")[0] != 0

    assert both.names("db.left") == both.names("one") == vip1
    assert both.names("db.right") == both.names("two.right") == vip2
    assert both.names("tasks.db.right") == both.names("deux") == both.names("tasks.two") == two.task.addresses
    assert not both.knows("one.right")
    assert both.curl(min(vip1))[0].host == one.task.host
    assert both.curl(min(vip2))[0].host == "deux"


def test_modes_are_switched_and_an_alias_of_several_services_stands_for_all(lab: Lab) -> None:
    mynet = network(lab, "mynet")
    service(lab, "web", "--network", "name=mynet,alias=db", "--endpoint-mode", "dnsrr", replicas=3)
    service(lab, "more", "--network", "name=mynet,alias=db")
    webs, (more,) = askers(lab, "web", 3), askers(lab, "more")
    every = frozenset(web.addresses("10.0.1.") for web in webs)

    assert vips(lab, "web", mynet) == frozenset()
    assert more.names("web") == more.names("tasks.web") == every
    first = Counter(more.inside("dig", "+short", "@127.0.0.11", "web")[1].split()[0] for _ in range(20))
    assert len(first) > 1, "always the same address comes first"
    assert more.names("db") == every | vips(lab, "more", mynet)
    assert more.names("tasks.db") == every | more.task.addresses

    update(lab, "web", "--endpoint-mode", "vip")
    vip = vips(lab, "web", mynet)
    assert len(vip) == 1
    eventually(lambda: _names(more, "web", vip))
    assert {answer.host for answer in more.curl(min(vip), 6)} == {web.task.host for web in webs}
    update(lab, "web", "--endpoint-mode", "dnsrr")
    eventually(lambda: _names(more, "web", every))
    assert {web.task.id for web in askers(lab, "web", 3)} == {web.task.id for web in webs}, "no task was replaced"
    # nobody is at the virtual address any more
    assert more.inside("curl", "-s", "-m", "1", f"http://{min(vip)}/")[0] != 0


def _names(asker: Asker, name: str, wanted: frozenset[str]) -> None:
    assert asker.names(name) == wanted


@pytest.mark.parametrize(("options", "prefix"), [((), "fd"), (("--subnet", "fd00:77::/64"), "fd00:77:")])
def test_overlay_with_ipv6_is_named_and_balanced_in_both_families(
    lab: Lab, options: tuple[str, ...], prefix: str
) -> None:
    six = network(lab, "six", "--ipv6", *options)
    service(lab, "web", "--network", "six", replicas=2)
    service(lab, "test", "--network", "six", command=SLEEP)
    webs, (test,) = askers(lab, "web", 2), askers(lab, "test")
    for kind, mark in (("A", "10."), ("AAAA", prefix)):
        assert test.names("web", kind) == {vip for vip in vips(lab, "web", six) if vip.startswith(mark)}
        (vip,) = test.names("web", kind)
        assert test.names("tasks.web", kind) == {web.addresses(mark) for web in webs}
        for web in webs:
            assert test.names(web.addresses(mark), "PTR") == {f"{web.name}.six."}
        answers = test.curl(vip, 4)
        assert Counter(answer.host for answer in answers) == {web.task.host: 2 for web in webs}, vip
        assert {answer.client for answer in answers} == {test.addresses(mark)}


_OUTSIDE = """
import http.server, socket, sys, threading
import dns.message, dns.rrset
web = http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=web.serve_forever, daemon=True).start()
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind((sys.argv[1], 53))
print("ready", flush=True)
while True:
    data, asker = names.recvfrom(65535)
    answer = dns.message.make_response(dns.message.from_wire(data))
    answer.answer.append(dns.rrset.from_text(answer.question[0].name, 60, "IN", "A", "192.0.2.77"))
    names.sendto(answer.to_wire(), asker)
"""


@contextmanager
def outside_world(lab: Lab, port: int) -> Iterator[str]:
    """A name server and a web server on the client host; its address."""
    own = str(lab.client.spec.v4.ip)
    command = lab.client.command([sys.executable, "-c", _OUTSIDE, own, str(port)])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as servers:
        try:
            assert servers.stdout is not None
            assert servers.stdout.readline() == "ready\n"
            yield own
        finally:
            for process in lab.client.processes():
                if _OUTSIDE in process.arguments:
                    kill([process], signal.SIGKILL)


def test_internal_network_has_no_way_out_and_asks_nobody(lab: Lab) -> None:
    with outside_world(lab, 8123) as server:
        network(lab, "closed", "--internal")
        network(lab, "open")
        service(lab, "web", "--network", "closed")
        for name in ("closed", "open"):
            service(lab, f"from-{name}", "--network", name, "--dns", server, command=SLEEP)
        (web,), (closed,), (free,) = (askers(lab, name) for name in ("web", "from-closed", "from-open"))
        assert free.ask("outside.test") == Reply("NOERROR", frozenset({"192.0.2.77"}))
        assert free.inside("curl", "-s", "-m", "2", f"http://{server}:8123/")[0] == 0
        assert closed.ask("outside.test").status == "SERVFAIL"
        assert closed.inside("curl", "-s", "-m", "1", f"http://{server}:8123/")[0] != 0
        assert closed.inside("ip", "route", "show", "default") == (0, "")
        assert closed.names("tasks.web") == web.task.addresses
        assert closed.curl(min(closed.names("web")))[0].host == web.task.host
