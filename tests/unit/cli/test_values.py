"""What users write becomes what the API reads."""

import pytest

from hivemesh.cli import values
from hivemesh.model.errors import Invalid


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", [(0, 80, "tcp", "ingress")]),
        ("8080:80", [(8080, 80, "tcp", "ingress")]),
        ("53:53/UDP", [(53, 53, "udp", "ingress")]),
        ("8000-8001:80-81/tcp", [(8000, 80, "tcp", "ingress"), (8001, 81, "tcp", "ingress")]),
        ("8000-8001:80", [(8000, 80, "tcp", "ingress"), (8001, 80, "tcp", "ingress")]),
        ("published=8080,target=80,protocol=udp,mode=host", [(8080, 80, "udp", "host")]),
        ("target=80", [(0, 80, "tcp", "ingress")]),
        ("published=8080-8081,target=80-81,mode=host", [(8080, 80, "tcp", "host"), (8081, 81, "tcp", "host")]),
        ("published=8080-8081,target=80", [(8080, 80, "tcp", "ingress"), (8081, 80, "tcp", "ingress")]),
        ("9/sctp", [(0, 9, "sctp", "ingress")]),
    ],
)
def test_port_is_read_in_both_syntaxes(text: str, expected: list[tuple[int, int, str, str]]) -> None:
    found = values.ports(text)
    assert [(p["PublishedPort"], p["TargetPort"], p["Protocol"], p["PublishMode"]) for p in found] == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "-5", "80:", "0:80", "80:70000", "80/icmp", "1.2.3.4:80:80", "8000-8002:80-81", "9-8:9-8"),
        *("target=80,mode=x", "mode=host", "target=80,color=red", "published=80-82,target=80-81", "target=81-80"),
    ],
)
def test_wrong_port_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="invalid port"):
        values.ports(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("10s", 10**10), ("1m30s", 9 * 10**10), ("1.5s", 15 * 10**8), ("500ms", 5 * 10**8)]
)
def test_duration_is_read(text: str, expected: int) -> None:
    assert values.duration(text) == expected


@pytest.mark.parametrize("text", ["", "10", "s", "1x", "10s ", "-1s", "1s2"])
def test_wrong_duration_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="invalid duration"):
        values.duration(text)


def test_size_and_cpus_are_read() -> None:
    assert [values.size(text) for text in ("100", "1k", "64m", "1.5g", "2GiB")] == [
        100, 1024, 64 << 20, 3 << 29, 2 << 30,
    ]  # fmt: skip
    assert values.cpus("0.5") == 500_000_000
    for text in ("", "x", "-1"):
        with pytest.raises(Invalid):
            values.size(text)
        with pytest.raises(Invalid):
            values.cpus(text)


def test_network_and_labels_are_read() -> None:
    assert values.network("name=back,alias=db,alias=sql") == {"Target": "back", "Aliases": ["db", "sql"]}
    assert values.network("name=back,driver-opt=a=b") == {"Target": "back", "DriverOpts": {"a": "b"}}
    assert values.pairs(["a=b", "c", "d=e=f"]) == {"a": "b", "c": "", "d": "e=f"}
    with pytest.raises(Invalid, match="invalid network"):
        values.network("alias=db")
