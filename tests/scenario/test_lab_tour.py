"""The tour that `make lab` ends with says what is true."""

import re

import pytest

from hivemesh.lab import tour
from hivemesh.lab.lab import Lab

pytestmark = pytest.mark.scenario


def test_tour_shows_every_node_answering_and_whom_the_tasks_saw(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    tour.publish(lab, "docker")
    tour.publish(lab, "docker")  # `make lab` may be repeated
    tour.await_service(lab)
    tour.show(lab, "docker")
    said = capsys.readouterr().out

    both = r"web_ingress_lb\.1 on n\d and web_ingress_lb\.2 on n\d"
    for node in lab.nodes:
        assert re.search(rf"curl http://{node.spec.v4.ip}:8090/ +{both}\n +saw 198\.51\.100\.100\n", said)
        assert re.search(rf"curl http://\[{node.spec.v6.ip}\]:8090/ +{both}\n +saw \[fd00:198:51:100::100\]\n", said)
    assert re.search(rf"n3\$ curl http://127\.0\.0\.1:8090/ +{both}\n +saw 198\.51\.100\.13\n", said)
    assert re.search(rf"n3\$ curl http://\[::1\]:8090/ +{both}\n +saw \[fd00:198:51:100::13\]\n", said)
    assert re.search(r"were answered: 10 by web_ingress_lb\.1 on n\d, 10 by web_ingress_lb\.2 on n\d", said)
