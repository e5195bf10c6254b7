"""Each bad input gets words that say what to do and an exit code or status of the right class, and changes nothing."""

import http.client
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from outside import HIVEMESH, Said, await_tasks, cli, eventually, kernel, run_cli

from hivemesh.lab.http import Refused
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.lab.node import Node
from labs import a_lab

pytestmark = pytest.mark.scenario

DOCKER = shutil.which("docker") is not None
PROGRAMS = ["hivemesh", pytest.param("docker", marks=pytest.mark.skipif(not DOCKER, reason="no docker command here"))]
DAEMON = str(Path(HIVEMESH).with_name("hivemeshd"))
TAKEN = 8070


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """n1 manages a swarm with one service, n2 is its worker, n3 is outside."""
    with a_lab(LabSettings(engine="process", swarm=False)) as lab:
        first, second, _ = lab.nodes
        cli(first, "hivemesh", "swarm", "init", "--advertise-addr", "eth0")
        cli(second, "hivemesh", "swarm", "join", "--token", token(first), manager_of(first))
        cli(first, "hivemesh", "service", "create", "--detach", "--name", "taken", "--publish", f"{TAKEN}:80",
            "localhost/whoami")  # fmt: skip
        await_tasks(lab, "taken", 1)
        yield lab


def token(node: Node, role: str = "Worker") -> str:
    found: str = node.api("GET", "/swarm")["JoinTokens"][role]
    return found


def manager_of(node: Node) -> str:
    return f"{node.spec.v4.ip}:2377"


def state(lab: Lab) -> dict[str, Any]:
    """What users see of the swarm, what each node says of itself, and what is in every kernel."""
    first = lab.nodes[0]
    return {
        **{path: first.api("GET", path) for path in ("/swarm", "/services", "/networks", "/nodes")},
        **{f"info {node.name}": node.api("GET", "/info")["Swarm"]["LocalNodeState"] for node in lab.nodes},
        **{f"kernel {node.name}": kernel(node) for node in lab.nodes},
    }


@contextmanager
def nothing_changes(lab: Lab) -> Iterator[None]:
    before = state(lab)
    yield
    assert state(lab) == before


def refused(said: Said, *words: str) -> None:
    assert said.code not in (0, 2, 130), said
    for word in words:
        assert word in said.err, f"{word!r} is not in {said.err!r}"
    assert "Traceback" not in said.err


SERVICES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "name": (("--name", "-web-", "x"), ("name", "-web-")),
    "long name": (("--name", "w" * 64, "x"), ("63",)),
    "name taken": (("--name", "taken", "x"), ("taken", "already exists")),
    "published port": (("--publish", "70000:80", "x"), ("70000",)),
    "target port": (("--publish", "8080:0", "x"), ("0",)),
    "port is no number": (("--publish", "web:80", "x"), ("web",)),
    "protocol": (("--publish", "8080:80/icmp", "x"), ("icmp",)),
    "sctp": (("--publish", "8080:80/sctp", "x"), ("sctp", "not supported by the kernel of any node")),
    "replicas": (("--replicas", "99999", "x"), ("99999", "10000")),
    "mode": (("--mode", "several", "x"), ("several",)),
    "publish mode": (("--publish", "published=8080,target=80,mode=nowhere", "x"), ("nowhere",)),
    "port taken": (("--publish", f"{TAKEN}:80", "x"), (str(TAKEN), "already in use by service", "taken")),
    "port taken in host mode": (
        ("--publish", f"published={TAKEN},target=80,mode=host", "x"),
        (str(TAKEN), "already in use by service"),
    ),
    "port twice": (("--publish", "8080:80", "--publish", "8080:81", "x"), ("8080",)),
    "network": (("--network", "nosuch", "x"), ("nosuch", "not found")),
    "image": (("UPPER CASE",), ("UPPER CASE",)),
    "constraint": (("--constraint", "node.color~blue", "x"), ("node.color",)),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_service_that_cannot_be_is_refused(lab: Lab, program: str) -> None:
    with nothing_changes(lab):
        for what, (options, words) in SERVICES.items():
            said = run_cli(lab.nodes[0], program, "service", "create", "--detach", *options)
            assert said.code != 0, f"{what}: {said}"
            assert said.code != 2 or program == "hivemesh", f"{what}: {said}"
            found = said.err.lower()
            # docker checks some by itself, in words of its own
            if program == "hivemesh" or "Error response from daemon" in said.err:
                assert all(word.lower() in found for word in words), f"{what}: {said}"
            assert "traceback" not in found, f"{what}: {said}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_objects_that_are_not_there_are_named(lab: Lab, program: str) -> None:
    first = lab.nodes[0]
    with nothing_changes(lab):
        for words in (
            ("service", "inspect"), ("service", "rm"), ("service", "ps"), ("network", "inspect"), ("network", "rm"),
            ("node", "inspect"), ("node", "rm"), ("node", "ps"),
        ):  # fmt: skip
            said = run_cli(first, program, *words, "nosuch")
            assert said.code == 1, (words, said)
            assert "nosuch" in said.err, (words, said)
        refused(run_cli(first, program, "service", "scale", "--detach", "nosuch=2"), "nosuch")
        said = run_cli(first, program, "service", "scale", "--detach", "taken=-1")
        assert said.code != 0
        said = run_cli(first, program, "service", "scale", "--detach", "taken=99999")
        refused(said, "99999")


@pytest.mark.parametrize("program", PROGRAMS)
def test_network_that_cannot_be_is_refused(lab: Lab, program: str) -> None:
    create = (program, "network", "create", "--driver", "overlay")
    ingress = lab.nodes[0].api("GET", "/networks/ingress")["IPAM"]["Config"][0]["Subnet"]
    with nothing_changes(lab):
        for options, word in (
            (("--subnet", "10.90.0.1/33", "n"), "10.90.0.1/33"),
            (("--subnet", "10.90.0.0/31", "n"), "10.90.0.0/31"),
            (("--subnet", ingress, "n"), ingress),
            (("--subnet", "10.90.0.0/24", "--gateway", "10.91.0.1", "n"), "10.91.0.1"),
            (("--ingress", "second"), "ingress"),
            (("ingress",), "already exists"),
            (("_bad_",), "_bad_"),
            (("--opt", "com.docker.network.driver.mtu=many", "n"), "many"),
        ):
            said = run_cli(lab.nodes[0], *create, *options)
            assert said.code != 0, (options, said)
            assert word in said.err, (options, said)


@pytest.mark.parametrize("program", PROGRAMS)
def test_worker_says_that_managers_decide(lab: Lab, program: str) -> None:
    with nothing_changes(lab):
        for words in (
            ("node", "ls"), ("service", "ls"), ("service", "create", "--detach", "x"),
            ("network", "create", "--driver", "overlay", "x"), ("swarm", "join-token", "worker"),
        ):  # fmt: skip
            refused(run_cli(lab.nodes[1], program, *words), "not a swarm manager")


@pytest.mark.parametrize("program", PROGRAMS)
def test_second_init_and_second_join_are_refused(lab: Lab, program: str) -> None:
    first, second, _ = lab.nodes
    with nothing_changes(lab):
        for node in (first, second):
            refused(run_cli(node, program, "swarm", "init"), "already part of a swarm", "swarm leave")
        joining = (program, "swarm", "join", "--token", token(first), manager_of(first))
        refused(run_cli(second, *joining), "already part of a swarm")


@pytest.mark.parametrize("program", PROGRAMS)
def test_join_that_cannot_be_says_why(lab: Lab, program: str) -> None:
    first, second, third = lab.nodes
    good = token(first)

    def join(text: str, remote: str = "", *more: str) -> Said:
        return run_cli(third, program, "swarm", "join", *more, "--token", text, remote or manager_of(first))

    with nothing_changes(lab):
        prefix, secret = good[:-25], good[-25:]
        refused(join("nonsense"), "invalid join token", "join-token")
        refused(join(good[:-3]), "truncated")
        refused(join(prefix + secret[::-1]), "token")
        refused(join(prefix[:-2] + ("a" if prefix[-2] != "a" else "b") + "-" + secret), "another swarm")
        refused(join(good, manager_of(second)), str(second.spec.v4.ip), "cannot reach")
        refused(join(good, "198.51.100.77:2377"), "198.51.100.77", "cannot reach")
        refused(join(good, "nosuchhost:2377"), "nosuchhost")
        refused(join(good, "", "--advertise-addr", "192.0.2.7"), "192.0.2.7", "eth0")


def test_manager_of_another_swarm_is_not_joined(lab: Lab) -> None:
    """The token's digest names the swarm it is for; whoever else answers there learns nothing of the secret."""
    first, _, third = lab.nodes
    third.api("POST", "/swarm/init", {"AdvertiseAddr": "eth0", "ListenAddr": "0.0.0.0:2377"})
    foreign = token(third)
    third.api("POST", "/swarm/leave?force=1")
    eventually(lambda: _assert_no_links_of_ours(third))
    with nothing_changes(lab):
        said = run_cli(third, "hivemesh", "swarm", "join", "--token", foreign, manager_of(first))
        refused(said, "another swarm")


def _assert_no_links_of_ours(node: Node) -> None:
    """They go some milliseconds after their namespaces."""
    assert kernel(node)[""]["links"].keys() == {"lo", "eth0"}


def test_rotated_token_is_good_no_more(lab: Lab) -> None:
    first, _, third = lab.nodes
    old = token(first)
    fresh = cli(first, "hivemesh", "swarm", "join-token", "--rotate", "--quiet", "worker").strip()
    assert fresh == token(first) != old
    with nothing_changes(lab):
        said = run_cli(third, "hivemesh", "swarm", "join", "--token", old, manager_of(first))
        refused(said, "token", "join-token")


@pytest.mark.parametrize("program", PROGRAMS)
def test_swarm_that_cannot_be_leaves_a_clean_node(lab: Lab, program: str) -> None:
    third = lab.nodes[2]
    third.exec("ip", "addr", "add", "198.51.100.213/24", "dev", "eth0")
    third.exec("ip", "route", "add", "10.64.0.0/12", "via", "198.51.100.1")
    try:
        with nothing_changes(lab):
            for options, words in (
                ((), ("could not choose an IP address to advertise", "198.51.100.213", "--advertise-addr")),
                (("--advertise-addr", "eth0"), ("multiple addresses", "198.51.100.213")),
                (("--advertise-addr", "203.0.113.9"), ("203.0.113.9", "198.51.100.13")),
                (("--advertise-addr", "eth7"), ("eth7",)),
                (("--default-addr-pool", "10.64.0.0/16"), ("10.64.0.0/16", "10.64.0.0/12")),
                (("--default-addr-pool", "10.200.0.0/33"), ("10.200.0.0/33",)),
                (("--default-addr-pool", "10.200.0.0/28"), ("10.200.0.0/28", "/24")),
                (("--default-addr-pool", "10.200.0.0/16", "--default-addr-pool-mask-length", "31"), ("31",)),
                (("--data-path-port", "80"), ("80", "1024")),
            ):
                known = () if not options or options[0] == "--advertise-addr" else ("--advertise-addr", "198.51.100.13")
                said = run_cli(third, program, "swarm", "init", *known, *options)
                assert said.code in (1, 125), (options, said)  # 125: docker found it by itself
                if program == "hivemesh" or "Error response from daemon" in said.err:
                    assert all(word in said.err for word in words), (options, said)
    finally:
        third.exec("ip", "addr", "del", "198.51.100.213/24", "dev", "eth0")
        third.exec("ip", "route", "del", "10.64.0.0/12")


def test_routes_that_cover_the_default_pool_leave_no_free_one(lab: Lab) -> None:
    third = lab.nodes[2]
    third.exec("ip", "route", "add", "10.0.0.0/8", "via", "198.51.100.1")
    try:
        with nothing_changes(lab):
            said = run_cli(third, "hivemesh", "swarm", "init", "--advertise-addr", "eth0")
            refused(said, "no free pool", "10.0.0.0/8", "--default-addr-pool")
        cli(third, "hivemesh", "swarm", "init", "--advertise-addr", "eth0", "--default-addr-pool", "172.30.0.0/16")
        assert "172.30.0.0/24" in cli(third, "hivemesh", "network", "inspect", "ingress")
        answered = third.exec("ip", "netns", "exec", "ingress_sbox", "ip", "-4", "-o", "addr", "show", "eth0").stdout
        assert "172.30.0." in answered
    finally:
        third.exec("ip", "route", "del", "10.0.0.0/8")
        if third.api("GET", "/info")["Swarm"]["LocalNodeState"] != "inactive":
            third.api("POST", "/swarm/leave?force=1")
        eventually(lambda: _assert_no_links_of_ours(third))


def raw(node: Node, request: bytes) -> tuple[int, str]:
    """The status and message that a request nobody's library would send gets."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(node.socket))
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = answer.read()
    try:
        return answer.status, json.loads(body)["message"]
    except (ValueError, KeyError):
        return answer.status, body.decode(errors="replace")


def post(path: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_requests_that_make_no_sense_are_refused(lab: Lab) -> None:
    first = lab.nodes[0]
    with nothing_changes(lab):
        for request, status, word in (
            (post("/services/create", b"{"), 400, "JSON"),
            (post("/services/create", b""), 400, "no body"),
            (post("/services/create", b"[1, 2]"), 400, ""),
            (post("/services/create", b'{"Name": 7}'), 400, "Name"),
            (post("/services/create", b"\xff\xfe"), 400, "JSON"),
            (post("/services/create", b'{"Name": "a"}', "text/plain"), 400, "content type"),
            (post("/services/create", b'{"Name": "a", "Mode": {"Replicated": {"Replicas": -1}}}'), 400, "Replicas"),
            (post("/services/create", b'{"Name": "a", "Nonsense": {"a": 1}}'), 501, "Nonsense is not supported"),
            (post("/networks/create", b'{"Name": "a", "Driver": "overlay", "IPAM": 7}'), 400, "IPAM"),
            (post("/swarm/init", b"nonsense"), 400, "JSON"),
            (post("/services/taken/update?version=many", b"{}"), 400, "version"),
            (post("/services/taken/update?version=1", b"{}"), 500, "update out of sequence"),  # as Docker has it
            (b"GET /v1.12/services HTTP/1.1\r\nHost: x\r\n\r\n", 400, "too old"),
            (b"GET /v9.99/services HTTP/1.1\r\nHost: x\r\n\r\n", 400, "too new"),
            (b"GET /nosuch HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not found"),
            (b"GET /services/nosuch HTTP/1.1\r\nHost: x\r\n\r\n", 404, "nosuch"),
            (b"nonsense\r\n\r\n", 400, ""),
        ):
            answered = raw(first, request)
            assert answered[0] == status, (request, answered)
            assert word in answered[1], (request, answered)


def test_statuses_are_of_the_right_class(lab: Lab) -> None:
    """What scripts look at: 400 wrong, 404 unknown, 409 taken, 503 not here."""
    first, second, third = lab.nodes
    spec = {"Name": "taken", "TaskTemplate": {"ContainerSpec": {"Image": "x"}}}
    for node, method, path, body, status in (
        (first, "POST", "/services/create", spec, 409),
        (first, "GET", "/nodes/nosuch", None, 404),
        (first, "DELETE", "/networks/nosuch", None, 404),
        (first, "POST", "/swarm/init", {}, 503),
        (second, "GET", "/services", None, 503),
        (third, "GET", "/services", None, 503),
        (third, "POST", "/swarm/leave", None, 503),
    ):
        with pytest.raises(Refused) as answer:
            node.api(method, path, body)
        assert answer.value.status == status, (path, answer.value)


def test_unknown_image_is_told_by_the_task_in_the_engines_words(lab: Lab) -> None:
    first = lab.nodes[0]
    cli(first, "hivemesh", "service", "create", "--detach", "--name", "lost", "--restart-condition", "none",
        "localhost/nosuch")  # fmt: skip
    try:

        def told() -> None:
            listed = cli(first, "hivemesh", "service", "ps", "--no-trunc", "lost")
            assert "Rejected" in listed
            assert "localhost/nosuch" in listed

        eventually(told)
    finally:
        cli(first, "hivemesh", "service", "rm", "lost")


# -- the daemon itself ------------------------------------------------------------------------------------------------


def test_daemon_and_lab_say_that_they_need_root(tmp_path: Path) -> None:
    """In a user namespace of nobody's, where even the owner of everything is not root."""
    for command in ([DAEMON, "--data-dir", str(tmp_path / "data")], [HIVEMESH, "lab", "up", "--name", "never"]):
        done = subprocess.run(["unshare", "--user", *command], capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == 1
        assert "root" in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nobody_at_the_socket_is_told_with_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [HIVEMESH, "--host", f"unix://{tmp_path}/none.sock", "node", "ls"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "none.sock" in done.stderr
    assert "start it with" in done.stderr


def daemon_words(node: Node, data: str) -> str:
    """What a second daemon on the node says when it cannot start."""
    done = node.exec(
        DAEMON, "--engine", "process", "--data-dir", data, "--run-dir", "/run/second", check=False, timeout=20
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(("name", "field"), [("node.json", "format")])
def test_data_directory_of_another_version_is_left_alone(lab: Lab, tmp_path: Path, name: str, field: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(lab.nodes[0].disk / "data", data)
    facts = json.loads((data / name).read_text())
    (data / name).write_text(json.dumps({**facts, field: 999}))
    before = sorted((path, path.read_bytes()) for path in data.rglob("*") if path.is_file())
    assert "version" in daemon_words(lab.nodes[2], str(data))
    assert sorted((path, path.read_bytes()) for path in data.rglob("*") if path.is_file()) == before


def test_store_of_another_version_is_left_alone(lab: Lab) -> None:
    """The daemon of a manager starts, serves its API, and says what is wrong."""
    third = lab.nodes[2]
    third.api("POST", "/swarm/init", {"AdvertiseAddr": "eth0", "ListenAddr": "0.0.0.0:2377"})
    try:
        third.stop_daemon()
        (store,) = (third.disk / "data" / "store").glob("*.db")
        subprocess.run(
            [sys.executable, "-c", "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
             "c.execute(\"UPDATE meta SET value = '999' WHERE name = 'format'\"); c.commit(); c.close()", str(store)],
            check=True,
        )  # fmt: skip
        lab.restart_daemon("n3")

        def told() -> None:
            swarm = third.api("GET", "/info")["Swarm"]
            assert swarm["LocalNodeState"] == "error"
            assert "version" in swarm["Error"]

        eventually(told)
    finally:
        third.stop_daemon()
        lab.restart_daemon("n3")
        third.api("POST", "/swarm/leave?force=1")


def test_full_disk_refuses_changes_and_loses_nothing(lab: Lab) -> None:
    third = lab.nodes[2]
    data = str(third.disk / "data")
    third.stop_daemon()
    third.exec("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", data)
    try:
        lab.restart_daemon("n3")
        third.api("POST", "/swarm/init", {"AdvertiseAddr": "eth0", "ListenAddr": "0.0.0.0:2377"})
        cli(third, "hivemesh", "service", "create", "--detach", "--name", "kept", "--replicas", "0", "x")
        third.exec("dd", "if=/dev/zero", f"of={data}/ballast", "bs=4k", check=False)
        made, said = ["kept"], Said(0, "", "")
        for number in range(100):
            said = run_cli(third, "hivemesh", "service", "create", "--detach", "--name", f"s{number}",
                           "--replicas", "0", "--label", f"x={'x' * 20000}", "x")  # fmt: skip
            if said.code:
                break
            made.append(f"s{number}")
        refused(said, "disk")
        spec = {"Name": "late", "TaskTemplate": {"ContainerSpec": {"Image": "x", "Labels": {"x": "x" * 50000}}}}
        with pytest.raises(Refused) as answer:
            third.api("POST", "/services/create", spec)
        assert answer.value.status in (500, 503, 507)
        names = {service["Spec"]["Name"] for service in third.api("GET", "/services")}
        assert names == set(made)

        third.exec("rm", f"{data}/ballast")
        cli(third, "hivemesh", "service", "create", "--detach", "--name", "after", "--replicas", "0", "x")
        lab.restart_daemon("n3", kill=True)

        def kept() -> None:
            listed = {service["Spec"]["Name"] for service in third.api("GET", "/services")}
            assert listed == {*made, "after"}

        eventually(lambda: _answers(third))
        kept()
        third.api("POST", "/swarm/leave?force=1")
    finally:
        third.stop_daemon()
        third.exec("umount", "-l", data)
        lab.restart_daemon("n3")


def _answers(node: Node) -> None:
    assert node.api("GET", "/info")["Swarm"]["ControlAvailable"]
