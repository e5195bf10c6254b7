"""The address of a store that is not ours to run."""

import pytest

from hivemesh.daemon.outside import parse, same
from hivemesh.model.errors import Invalid


@pytest.mark.parametrize(
    ("url", "endpoints", "root"),
    [
        ("etcd://192.0.2.1:2379", ["http://192.0.2.1:2379"], "hivemesh/"),
        ("etcd://one,two:4001/team%20a/", ["http://one:2379", "http://two:4001"], "team a/"),
        ("etcds://[2001:db8::1]/x/y", ["https://[2001:db8::1]:2379"], "x/y/"),
    ],
)
def test_endpoints_and_prefix_are_read_from_the_url(url: str, endpoints: list[str], root: str) -> None:
    assert parse(url)[:2] == (endpoints, root)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://one:2379", "expected etcd://"),
        ("etcd://", "expected etcd://"),
        ("one:2379", "expected etcd://"),
        ("etcd://user@one", "expected etcd://"),
        ("etcd://one?ca=x", "no ca here"),
        ("etcds://one?user=x", "no user here"),
        ("etcds://one?cert=x", "needs its key"),
    ],
)
def test_what_is_no_such_url_is_refused_with_what_is_expected(url: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        parse(url)


def test_managers_may_name_one_store_differently_but_not_two_alike() -> None:
    store = "etcds://one,two:2379/x?ca=/a.pem"
    for other in (store, "etcds://two,one:2379/x/?ca=/b.pem&cert=/c.pem&key=/d.pem"):
        assert same(store, other)
    for other in ("", "etcd://one,two:2379/x", "etcds://one,two:2379", "etcds://one/x", "etcds://one,two:2380/x"):
        assert not same(store, other)
        assert not same(other, store)
    assert same("", "")
