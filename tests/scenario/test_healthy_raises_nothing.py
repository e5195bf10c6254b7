"""A healthy swarm under load that is being scaled all the time: traces and the doctor raise nothing, 200 times."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults_made import Told, first_of, told
from names_asked import askers, network, service
from outside import await_served, cli
from under_load import PAUSE, load

from hivemesh.lab.lab import Lab, LabSettings

pytestmark = [pytest.mark.scenario, pytest.mark.soak]

RUNS = int(os.environ.get("HIVEMESH_HEALTHY_RUNS", "200"))


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab(f"t{os.getpid()}-healthy", LabSettings(engine="process"))
    lab.up()
    try:
        network(lab, "front", "--ipv6")
        service(lab, "web", "--network", "front", "--publish", "8080:80", replicas=3)
        service(lab, "names", "--network", "front", "--endpoint-mode", "dnsrr", replicas=2)
        service(lab, "client", "--network", "front", "--constraint", "node.hostname==n2")
        service(lab, "door", "--publish", "mode=host,published=8081,target=80", "--constraint", "node.hostname==n3")
        for name, count in (("web", 3), ("names", 2), ("client", 1), ("door", 1)):
            askers(lab, name, count)
        await_served(lab, 3, 8080)
        yield lab
    finally:
        lab.down()


QUESTIONS = (
    ("client.1", "web:80"), ("n1:8080",), ("client.1", "names:80"), ("192.0.2.200", "n3:8080"),
    ("client.1", "web:80", "--proto", "udp", "--no-probe"), ("n3:8081",), ("client.1", "web", "--proto", "icmp"),
    ("client.1", "tasks.web:80"), ("client.1", "web:80", "--count", "8"), (":8080", "--no-probe"),
)  # fmt: skip


def test_swarm_under_load_that_is_being_scaled_raises_nothing(lab: Lab, tmp_path: Path) -> None:
    script = tmp_path / "pause.lua"
    script.write_text(PAUSE)
    raised: list[str] = []
    times: list[tuple[float, float]] = []
    first = lab.nodes[0]
    with load(lab.client, script, f"http://{first.spec.v4.ip}:8080/"), ThreadPoolExecutor(2) as pool:
        for run in range(RUNS):
            cli(first, "docker", "service", "scale", "--detach", f"web={3 + run % 7}")
            question = QUESTIONS[run % len(QUESTIONS)]
            traced = pool.submit(told, first, "trace", "--json", *question)
            examined = pool.submit(told, lab.nodes[run % 3], "doctor", "--json")
            raised += [
                f"run {run}, {what}" for what in (*_of_trace(question, traced.result()), *_of(examined.result()))
            ]
            times.append((traced.result().seconds, examined.result().seconds))
            print(f"run {run}: trace {times[-1][0]:.1f} s, doctor {times[-1][1]:.1f} s; raised so far: {len(raised)}")
    assert not raised, "\n".join(raised)


def _of_trace(question: tuple[str, ...], found: Told) -> Iterator[str]:
    if found.code:
        unseen = [way["unseen"] for way in found.document["ways"] if way["unseen"]]
        said = unseen if found.code == 3 else first_of(found.document)
        yield f"trace {' '.join(question)}: exit code {found.code}: {json.dumps(said)}"


def _of(found: Told) -> Iterator[str]:
    for finding in found.document["findings"]:
        if finding["severity"] != "note":
            yield f"doctor on {found.document['node']}: {json.dumps(finding)}"
