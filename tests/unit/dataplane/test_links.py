"""What is to be done about links, while other threads change what lies around them."""

from hivemesh.dataplane.links import compare
from hivemesh.kernel.api import Link, NamespacePlan, Veth, VethEnd
from hivemesh.model.addr import MAC
from hivemesh.wire.rtnetlink import LinkSeen

MAC1, MAC2 = MAC("02:42:0a:00:00:01"), MAC("02:42:0a:00:00:02")
ETH0 = Veth(name="eth0", mac=MAC1, mtu=1450, outer=VethEnd(namespace="1-net", name="veth0", master="br0"))
PLAN = NamespacePlan(namespace="task", mark="hivemesh/task/t", links=(ETH0,))
NEAR = LinkSeen(
    index=2, name="eth0", kind="veth", mac=MAC1, mtu=1450, up=True, alias="", master=0, peer=7, elsewhere=True
)
FAR = LinkSeen(
    index=7, name="veth0", kind="veth", mac=MAC2, mtu=1450, up=True, alias="", master=3, peer=2, elsewhere=True
)


def test_far_end_that_goes_meanwhile_is_asked_for_once_and_left_to_the_next_look() -> None:
    answers: list[tuple[LinkSeen | None, int]] = [(FAR, 3)]

    def outer(link: Link) -> tuple[LinkSeen | None, int]:
        return answers.pop() if answers else (None, 0)

    assert not list(compare(PLAN, [ETH0], {"eth0": NEAR}, outer))


def test_link_whose_far_end_is_gone_is_made_anew() -> None:
    (step,) = compare(PLAN, [ETH0], {"eth0": NEAR}, lambda link: (None, 0))
    assert step.create
    assert step.text == "link eth0 does not lead to veth0"
