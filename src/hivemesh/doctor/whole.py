"""Judges of the swarm as a whole: its nodes together, and the managers' store. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from hivemesh.doctor import limits
from hivemesh.doctor.before import Judge
from hivemesh.model.ids import NodeID
from hivemesh.wire.doctor import Finding, Place, Seen, StoreFacts


def absent(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    for seen in nodes:
        if seen.facts is None:
            yield Judge(judge.check, seen.place.name).find(
                "error", f"node {seen.place.name} did not answer: {seen.unseen}",
                why="it is down, overloaded, or cut off from the managers; " + _unsent(nodes, seen.place),
                do="see that hivemeshd runs there, and that new connections from it to port 2377/tcp of the managers "
                   f"get through; or, if it is gone for good, docker node rm --force {seen.place.name}",
                proof="docker node ls",
            )  # fmt: skip
        elif seen.facts.deaf:
            yield Judge(judge.check, seen.place.name).find(
                "warning", f"{seen.place.name} could not listen to the other nodes' probes: {seen.facts.deaf}",
                why="the ways to it are not known", do="mend that, and run hivemesh doctor again",
            )  # fmt: skip


def _unsent(nodes: Sequence[Seen], place: Place) -> str:
    """What the kernels of others say of sending there."""
    refused = [
        f"{seen.place.name} cannot send to it: {seen.facts.refused[place.id]}"
        for seen in nodes
        if seen.facts is not None and place.id in seen.facts.refused
    ]
    return "; ".join(refused) or "nothing is known of it"


def clocks(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    for seen in nodes:
        if seen.facts is not None and abs(seen.skew) > limits.SKEW_WARNS:
            ahead = "ahead of" if seen.skew > 0 else "behind"
            yield Judge(judge.check, seen.place.name).find(
                "error" if abs(seen.skew) > limits.SKEW_ERRS else "warning",
                f"the clock of {seen.place.name} is {abs(seen.skew):.1f} s {ahead} the managers'",
                why="times in logs and events do not fit, and beyond an hour certificates are refused",
                do="run chrony, ntpd or systemd-timesyncd on all nodes", proof="date; timedatectl",
            )  # fmt: skip


def alike(nodes: Sequence[Seen], judge: Judge) -> Iterator[Finding]:
    """Host names that several nodes have: everything is told by them."""
    by_name: defaultdict[str, list[NodeID]] = defaultdict(list)
    for seen in nodes:
        by_name[seen.place.name].append(seen.place.id)
    for name, ids in sorted(by_name.items()):
        if len(ids) > 1:
            yield Judge(judge.check, name).find(
                "warning", f"{len(ids)} nodes are called {name}",
                why="commands that name a node refuse, and what is told of one could be of the other",
                do="hostnamectl set-hostname NAME on all but one, and restart hivemeshd there", proof="docker node ls",
            )  # fmt: skip


def store(facts: StoreFacts, judge: Judge) -> Iterator[Finding]:
    if facts.error:
        yield judge.find(
            "error", f"the managers' store does not answer: {facts.error}",
            why="nothing can be changed, and nothing is replaced, until more than half of the managers are back",
            do="start the managers that are down; if they are lost for good: swarm init --force-new-cluster",
            proof="docker node ls",
        )  # fmt: skip
    elif facts.seconds > limits.SLOW_STORE:
        yield judge.find(
            "warning", f"the managers' store took {facts.seconds:.1f} s to answer",
            why="each change waits that long at least; etcd elects anew when a disk takes more than a second",
            do="give managers faster disks, or fewer other things to do", proof="docker info",
        )  # fmt: skip
    down = sorted(name for name, state in facts.managers.items() if state != "ready")
    if down:
        yield judge.find(
            "warning", f"{len(down)} of {len(facts.managers)} managers are not ready: {', '.join(down)}",
            why=_spare(len(facts.managers), len(down)), do="start them; or demote and remove those that are gone",
            proof="docker node ls",
        )  # fmt: skip
    if len(facts.managers) == 2:
        yield judge.find(
            "warning", "there are two managers", why="when either of them fails, nothing can be changed any more",
            do="promote a third: docker node promote NODE", proof="docker node ls",
        )  # fmt: skip


def _spare(managers: int, down: int) -> str:
    left = managers - down - (managers // 2 + 1)
    return (
        f"{left} more may fail before nothing can be changed any more" if left > 0
        else "when one more fails, nothing can be changed any more"
    )  # fmt: skip
