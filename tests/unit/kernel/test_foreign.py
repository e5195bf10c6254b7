"""Where an accept of ours goes in somebody else's chain: as late as it still counts."""

from collections.abc import Mapping, Sequence

from hivemesh.kernel.foreign import Edit, Forwarding, Rule, Way, edit, legacy_chains

BRIDGE = "hm_gwbridge"
BOTH: tuple[Way, ...] = (("in", BRIDGE), ("out", BRIDGE))


def forwarding(text: str, *, accepts: Sequence[Way] = (), at: int = 0) -> Forwarding:
    """As `iptables -S` would show it, with ours put in front of rule number `at`."""
    policy, chains = legacy_chains(text.strip().splitlines())
    rules = list(chains.get("FORWARD", ()))
    rules[at:at] = [Rule(ours=way, verdict="accept") for way in accepts]
    known: Mapping[str, Sequence[Rule]] = chains
    return Forwarding(where="", policy=policy, rules=rules, chains=lambda name: known.get(name, ()))


def placed(text: str) -> int | None:
    change = edit(forwarding(text), [BRIDGE])
    assert change.missing == BOTH
    return change.before


NOTHING = Edit(remove=(), missing=(), before=None)
DROPPED = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -i docker0 -j ACCEPT\n-A DOCKER-USER -j RETURN"


def test_a_chain_that_lets_all_pass_is_left_alone() -> None:
    assert edit(forwarding("-P FORWARD ACCEPT\n-A FORWARD -s 203.0.113.6/32 -j DROP"), [BRIDGE]) == NOTHING
    assert edit(forwarding("-P FORWARD ACCEPT\n-A FORWARD -j A\n-A A -j ACCEPT\n-A A -j DROP"), [BRIDGE]) == NOTHING


def test_a_policy_that_drops_is_met_by_accepts_at_the_end_behind_what_users_drop() -> None:
    assert placed(DROPPED) is None
    assert placed("-P FORWARD DROP\n-A FORWARD -j A\n-A A -s 203.0.113.6/32 -j DROP") is None


def test_a_rule_that_ends_all_is_met_by_accepts_in_front_of_it() -> None:
    assert placed("-P FORWARD ACCEPT\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j REJECT --reject-with x") == 1
    within = "-A FORWARD -j A\n-A A -i lo -j ACCEPT\n-A A -j B\n-A B -m limit --limit 3/min -j LOG\n-A B -j DROP"
    assert placed(f"-P FORWARD ACCEPT\n-A FORWARD -i lo -j ACCEPT\n{within}") == 1


def test_chains_that_lead_in_a_circle_end_nothing() -> None:
    assert placed("-P FORWARD DROP\n-A FORWARD -j A\n-A A -j B\n-A B -j A") is None


def test_what_is_there_stays_and_what_came_too_late_or_is_no_bridge_any_more_goes() -> None:
    assert edit(forwarding(DROPPED, accepts=BOTH, at=2), [BRIDGE]) == NOTHING
    ends = "-P FORWARD DROP\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j DROP"
    late = edit(forwarding(ends, accepts=BOTH, at=2), [BRIDGE])
    assert (len(late.remove), late.missing, late.before) == (2, BOTH, 1)
    gone = edit(forwarding(DROPPED, accepts=BOTH, at=0), ["br-1"])
    assert (len(gone.remove), gone.missing) == (2, (("in", "br-1"), ("out", "br-1")))
    twice = edit(forwarding(DROPPED, accepts=BOTH + BOTH, at=0), [BRIDGE])
    assert (len(twice.remove), twice.missing) == (2, ())
    assert len(edit(forwarding("-P FORWARD ACCEPT", accepts=BOTH), []).remove) == 2


def test_rules_of_ours_are_known_by_comment_and_bridge() -> None:
    _, chains = legacy_chains(
        [
            "-A FORWARD -i hm_gwbridge -m comment --comment hivemesh -j ACCEPT",
            "-A FORWARD -o hm_gwbridge -m comment --comment hivemesh -j ACCEPT",
            '-A FORWARD -o eth0 -m comment --comment "hivemesh too" -j ACCEPT',
        ]
    )
    assert [rule.ours for rule in chains["FORWARD"]] == [*BOTH, None]
