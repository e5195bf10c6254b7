"""Labels that say how services are balanced."""

import pytest

from hivemesh.control.balance import balance_of, weight_of
from hivemesh.model.errors import Invalid
from hivemesh.model.service import Balance


@pytest.mark.parametrize(
    ("labels", "balance"),
    [
        ({}, Balance()),
        ({"hivemesh.lb": "wrr"}, Balance(scheduler="rr")),
        ({"hivemesh.lb": "sh"}, Balance(scheduler="source")),
        ({"hivemesh.lb": "mh", "hivemesh.balancer": "nftables"}, Balance(scheduler="maglev", engine="nftables")),
        ({"hivemesh.lb": "lc"}, Balance(scheduler="lc", engine="ipvs")),
        ({"hivemesh.balancer": "ipvs", "unrelated": "x"}, Balance(engine="ipvs")),
    ],
)
def test_labels_of_a_service_say_how_it_is_balanced(labels: dict[str, str], balance: Balance) -> None:
    assert balance_of(labels) == balance


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ({"hivemesh.lb": "fastest"}, "invalid label hivemesh.lb=fastest: use one of rr, wrr, source"),
        ({"hivemesh.lb": ""}, "invalid label hivemesh.lb="),
        ({"hivemesh.balancer": "haproxy"}, "invalid label hivemesh.balancer=haproxy: use nftables or ipvs"),
        ({"hivemesh.balancer": ""}, "use nftables or ipvs"),
        ({"hivemesh.lb": "lc", "hivemesh.balancer": "nftables"}, "nftables does not count connections"),
    ],
)
def test_label_nobody_understands_is_refused_with_what_there_is(labels: dict[str, str], complaint: str) -> None:
    with pytest.raises(Invalid, match=complaint):
        balance_of(labels)


def test_weight_of_a_node_is_a_small_number() -> None:
    assert [weight_of({}), weight_of({"hivemesh.weight": "0"}), weight_of({"hivemesh.weight": "100"})] == [1, 0, 100]
    for bad in ("101", "-1", "", "1.5", "\u0663", "9" * 5000):
        with pytest.raises(Invalid, match="use a number from 0 to 100"):
            weight_of({"hivemesh.weight": bad})
