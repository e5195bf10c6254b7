"""What became of probes, hop by hop: the third witness beside plan and kernel. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from hivemesh.trace.judge import within
from hivemesh.trace.probes import Shots
from hivemesh.wire.trace import PROBE, Fact, Hop, Passage, Sighting, Trace, Way

SeenBy = Mapping[str, Sequence[Sighting]]
"""Sightings by the name of the node; one that did not tell is missing."""
FEW = 1
"""So many lost probes are no finding, if others came: networks lose packets."""


def with_probes(trace: Trace, whole: Shots | None, ways: Sequence[Shots], seen: SeenBy, here: str, home: str) -> Trace:
    """The trace with what its probes did. `whole`: those to the target itself; `ways`: to the first backends, in the
    order of the trace's ways, from the node `here`; `home`: the node that sent the former."""
    told = [_way(way, shots, seen, here) for way, shots in zip(trace.ways, ways, strict=False)]
    told += trace.ways[len(ways) :]
    if whole is None:
        return msgspec.structs.replace(trace, ways=tuple(told))
    numbers = whole.main
    everything = [sighting for sightings in seen.values() for sighting in sightings]
    met = [{s.number for s in everything if not s.back and s.destination == way.backend} & numbers for way in told]
    told = [msgspec.structs.replace(way, met=len(who)) for way, who in zip(told, met, strict=True)]
    back = _answers(whole, seen.get(home, ()))
    answered = {number for number, kind in back.items() if kind in _ANSWERS}
    begin, end = _around(trace, seen, whole, set().union(*met))
    lost = numbers - back.keys()
    sent = "1 probe" if len(numbers) == 1 else f"{len(numbers)} probes"
    said = f"{sent} to {_where(whole)}: {len(answered)} answered"
    said += f", {len(numbers & back.keys()) - len(answered)} refused" if back.keys() - answered else ""
    said += f", {len(lost)} without an answer" if lost else ""
    return msgspec.structs.replace(
        trace,
        begin=tuple(begin),
        end=tuple(end),
        ways=tuple(told),
        said=said,
        sent=len(numbers),
        answered=len(answered),
    )


def _around(trace: Trace, seen: SeenBy, whole: Shots, met: Collection[int]) -> tuple[Sequence[Hop], Sequence[Hop]]:
    """What all ways share. Those that came to the balancer should go on to a backend, and their answers back."""
    answers = whole.aim.protocol != "udp"
    begin = _follow(trace.begin, seen, whole.main, whole, must_answer=answers)
    last = next((i for i in reversed(range(len(begin))) if begin[i].probe is not None), None)
    if last is None:
        return begin, trace.end
    hop = begin[last]
    here = came(hop, seen[hop.node], whole.main)
    if hop.probe is not None and hop.probe.agrees and here - set(met) and len(here - set(met)) > (FEW if met else 0):
        text = f"{len(here - set(met))} of {len(here)} seen, and led to no backend"
        cause = "they were led to no backend: another firewall in there drops them, or the balancer has nobody for them"
        begin[last] = _told(hop, "goes on to a backend", text, cause, good=False, shots=whole)
    return begin, _follow(trace.end, seen, here & set(met), whole, must_answer=answers)


_ANSWERS = ("syn-ack", "datagram", "echo")


def _where(shots: Shots) -> str:
    aim = shots.aim
    host = f"[{aim.destination}]" if aim.destination.version == 6 and aim.port else str(aim.destination)
    return f"{host}:{aim.port}" if aim.port else host


def _answers(shots: Shots, sightings: Iterable[Sighting]) -> dict[int, str]:
    """How each was answered first, as the sender's namespace saw it."""
    numbers = shots.main | shots.small | shots.large
    mine = [s for s in sightings if s.back and s.far is None and s.namespace == shots.aim.namespace]
    return {s.number: s.kind for s in sorted(mine, key=lambda s: s.at, reverse=True) if s.number in numbers}


def _way(way: Way, shots: Shots, seen: SeenBy, here: str) -> Way:
    aim = shots.aim
    hops = _follow(way.hops, seen, shots.main, shots, must_answer=aim.protocol != "udp")
    hops = _refused(hops, seen, shots)
    answers = _answers(shots, seen.get(here, ()))
    answered = [number for number in sorted(shots.main) if number in answers]
    if aim.wide and not any(hop.probe is not None and not hop.probe.agrees for hop in hops):
        if aim.protocol == "udp" and not answered:
            hops = _echoes_back(hops, seen, shots)
        hops = _wide(hops, seen, shots, answers)
    said = "not answered, as UDP servers need not" if aim.protocol == "udp" else "not answered"
    if answered:
        first = answered[0]
        took = _took(seen.get(here, ()), aim.namespace, first)
        word = "answered" if answers[first] in _ANSWERS else "refused"
        said = f"{word} in {took * 1000:.1f} ms"
    if answered and len(answered) < len(shots.main):
        said += f", {len(shots.main) - len(answered)} of {len(shots.main)} lost"
    if not answered and shots.main and shots.main <= shots.failed.keys():
        said = f"could not be sent: {shots.failed[min(shots.main)]}"
    return msgspec.structs.replace(way, hops=tuple(hops), said=said)


def _took(sightings: Iterable[Sighting], namespace: str, number: int) -> float:
    """Seconds from the probe's leaving to its answer."""
    mine = [s for s in sightings if s.namespace == namespace and s.number == number and s.far is None]
    begun = min((s.at for s in mine if not s.back), default=0.0)
    return min((s.at for s in mine if s.back), default=begun) - begun


# --- following --------------------------------------------------------------------------------------------------------


def came(hop: Hop, sightings: Iterable[Sighting], numbers: Collection[int]) -> set[int]:
    """Which of `numbers` showed at the hop's passage."""
    passage = hop.passage
    return (
        set() if passage is None else {s.number for s in sightings if s.number in numbers and _shows(hop, passage, s)}
    )


def _shows(hop: Hop, passage: Passage, seen: Sighting) -> bool:
    return (
        seen.namespace == hop.namespace
        and seen.back == passage.back
        and seen.far == passage.tunnel
        and (passage.link in ("", seen.link))
        and (passage.out is None or passage.out == seen.out)
        and (seen.back or seen.kind != "reset")  # ours, which ends what a server began
    )


def _follow(hops: Sequence[Hop], seen: SeenBy, sent: Collection[int], shots: Shots, *, must_answer: bool) -> list[Hop]:
    """Each hop with its witness: what came to the one before should come to it."""
    found: list[Hop] = []
    due, before, backwards, lost = set(sent), None, False, False
    for hop in hops:
        if hop.passage is None or hop.node not in seen:
            found.append(hop)
            continue
        there = came(hop, seen[hop.node], due)
        if hop.passage.back and not backwards:
            backwards = True
            if not must_answer:
                due = there
        if not due and not lost:
            found.append(hop)
            continue
        missing = due - there
        good = bool(there) and len(missing) <= FEW
        text = "not seen" if not there else f"{len(there)} of {len(due)} seen" if missing else "seen"
        cause = ""
        if not good and not lost:
            cause = _cause(before, hop, seen, due, shots)
        found.append(_told(hop, "comes through", text, cause, good=good, shots=shots))
        lost = lost or not good
        due, before = there or due, hop
    return found


def _told(hop: Hop, plan: str, text: str, cause: str, *, good: bool, shots: Shots) -> Hop:
    fact = Fact(
        what=PROBE,
        plan=plan,
        kernel=text,
        agrees=good,
        proof=capture(hop, shots),
        cause="" if good else cause,
    )
    return msgspec.structs.replace(hop, probe=fact)


def _refused(hops: Sequence[Hop], seen: SeenBy, shots: Shots) -> list[Hop]:
    """Who got the probe and said no."""
    found = list(hops)
    at = next((i for i in reversed(range(len(found))) if (p := found[i].passage) is not None and not p.back), None)
    if at is None or found[at].probe is None or not found[at].probe.agrees:  # type: ignore[union-attr]
        return found
    hop = found[at]
    said = [
        s for s in seen.get(hop.node, ())
        if s.namespace == hop.namespace and s.back and s.out and s.number in shots.main and s.kind in ("reset", "error")
    ]  # fmt: skip
    if said and hop.probe is not None:
        words = "seen, and reset" if said[0].kind == "reset" else f"seen, and answered: {said[0].error}"
        cause = "nobody listens at that port, or a firewall inside rejects it"
        fact = msgspec.structs.replace(
            hop.probe, plan="is answered", kernel=words, agrees=False, cause=cause,
            proof=f"{within(hop.namespace)}ss -ln{'t' if shots.aim.protocol == 'tcp' else 'u'}",
        )  # fmt: skip
        found[at] = msgspec.structs.replace(hop, probe=fact)
    return found


def _echoes_back(hops: Sequence[Hop], seen: SeenBy, shots: Shots) -> list[Hop]:
    """A silent server shows nothing of the way back: the echo does."""
    found = []
    for hop in hops:
        if hop.passage is not None and hop.passage.back and hop.probe is None and hop.node in seen:
            there = came(hop, seen[hop.node], shots.small)
            if there:
                hop = _told(hop, "comes through", "an echo's answer seen", "", good=True, shots=shots)
        found.append(hop)
    return found


def _wide(hops: Sequence[Hop], seen: SeenBy, shots: Shots, answers: Mapping[int, str]) -> list[Hop]:
    """Where large packets are lost though small ones pass; only if the target answers echoes at all."""
    size = shots.aim.wide
    sent = shots.large - shots.failed.keys()
    if not any(answers.get(number) == "echo" for number in shots.small):
        return list(hops)
    if not sent and shots.large:
        reason = next(shots.failed[number] for number in sorted(shots.large))
        first = next((i for i, hop in enumerate(hops) if hop.probe is not None), None)
        return [
            _told(h, f"packets of {size} bytes leave", f"cannot be sent: {reason}", _NARROW, good=False, shots=shots)
            if i == first else h
            for i, h in enumerate(hops)
        ]  # fmt: skip
    found = list(hops)
    due = set(sent)
    before: Hop | None = None
    for at, hop in enumerate(hops):
        if hop.passage is None or hop.node not in seen:
            continue
        there = came(hop, seen[hop.node], due)
        if not there:
            text = f"seen, but none of {size} bytes"
            cause = f"large packets are lost {_since(before, hop)}: {_NARROW}"
            found[at] = _told(hop, f"comes through, also with {size} bytes", text, cause, good=False, shots=shots)
            break
        due, before = there, hop
    return found


def _since(before: Hop | None, hop: Hop) -> str:
    if before is not None and before.node != hop.node:
        return f"between {before.node} and {hop.node}"
    passage = hop.passage
    if passage is not None and passage.tunnel is not None and not passage.out:
        # nobody there said what came through: that answer may be too large for the way as well
        return f"between {passage.tunnel} and {hop.node}"
    return "here"


_NARROW = "a link or path on the way has a smaller MTU than the networks need"


# --- causes -----------------------------------------------------------------------------------------------------------


def _cause(before: Hop | None, hop: Hop, seen: SeenBy, due: Collection[int], shots: Shots) -> str:
    """Why probes that came to `before` did not come to `hop`, most likely."""
    passage = hop.passage
    assert passage is not None
    mine = [s for s in seen[hop.node] if s.number in due and s.back == passage.back]
    complaint = next(
        (s for sightings in seen.values() for s in sightings if s.kind == "error" and s.number in due), None
    )
    said = f"; {complaint.source} says: {complaint.error}" if complaint is not None else ""
    failed = next((shots.failed[number] for number in sorted(due) if number in shots.failed), "")
    if failed:
        return f"the kernel does not send it: {failed}"
    tunnels = f"UDP {shots.vxlan}"
    astray = sorted({s.link for s in mine if s.namespace == hop.namespace and s.out and s.far is None} - {passage.link})
    what = "the answer" if passage.back else "it"
    if passage.tunnel is not None and passage.out:
        others = sorted({str(s.far) for s in mine if s.far is not None and s.out and s.far != passage.tunnel})
        if others:
            return (
                f"{what} goes to {', '.join(others)} instead: a forwarding entry or route of another leads there{said}"
            )
        return f"a firewall on {hop.node} drops {tunnels} on its way out, or nothing leads to {passage.tunnel}{said}"
    if passage.tunnel is not None:
        between = f" between {before.node} and {hop.node}" if before is not None else ""
        return (
            f"{what} left in the tunnel and never came to {hop.node}: {tunnels} is blocked{between} (a firewall or "
            f"security group on the way), or lost there{said}"
        )
    if passage.out:
        if astray:
            return f"{what} left by {', '.join(astray)} instead: another route or rule there leads it astray{said}"
        if passage.back and before is not None and before.namespace == hop.namespace:
            return (
                f"the packet arrived and got no answer: a firewall or the reverse path filter in there drops it{said}"
            )
        if passage.back or (before is not None and before.namespace == hop.namespace):
            return f"{what} was dropped in {hop.namespace or 'the host'}, between the links{said}"
        return f"the kernel dropped it before the link: a firewall's rule, or nobody has the next MAC address{said}"
    if before is not None and before.passage is not None and before.passage.tunnel is not None:
        return (
            f"{what} came to the link of {hop.node} and not out of the tunnel: a firewall there drops {tunnels}, its "
            f"reverse path filter does, or the tunnel has other numbers{said}"
        )
    place = before.namespace or "the host" if before is not None else "the sender"
    return f"{what} did not get from {place} to {hop.namespace or 'the host'}: a bridge or firewall drops it{said}"


def capture(hop: Hop, shots: Shots) -> str:
    """What a person would type to see probes, or their absence."""
    passage, aim = hop.passage, shots.aim
    if passage is not None and passage.tunnel is not None:
        return f"tcpdump -ni any udp port {shots.vxlan} and host {passage.tunnel}"
    link = passage.link if passage is not None and passage.link else "any"
    what = "icmp or icmp6" if aim.protocol == "icmp" or not aim.port else aim.protocol
    return f"{within(hop.namespace)}tcpdump -ni {link} {what}"
