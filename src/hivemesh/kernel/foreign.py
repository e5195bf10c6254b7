"""Other firewalls of this machine: what they would drop of what is forwarded to and from our bridges passes them.

An accept in a chain of ours decides nothing for the chains of others at the same hook: theirs are asked too, and one
drop is enough. So where a chain of theirs ends by dropping (Docker's and ufw's policy, firewalld's last rule), it gets
one accept per bridge and direction, just in front of that end: whatever they drop or let through on purpose stays as it
is. The rules carry our name, and are all that we ever write into, or take out of, a table of somebody else.

Seen through `nft` (firewalld, and iptables as most distributions have it) and `iptables-legacy`.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivemesh.kernel import nft
from hivemesh.kernel.api import HOST
from hivemesh.model.errors import Unavailable

OURS = "hivemesh"
"""The comment of our rules, and the name of our own tables."""
LEGACY = {"iptables-legacy": "ip_tables_names", "ip6tables-legacy": "ip6_tables_names"}
"""Commands, and where the kernel says which of their tables there are."""
_FAMILIES = ("ip", "ip6", "inet")
_TIMEOUT = 10.0
_DEEPEST = 8

Way = tuple[str, str]
"""`in` or `out`, and the bridge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """As much of a rule as counts here. `always`: it has no condition."""

    handle: str = ""
    ours: Way | None = None
    always: bool = False
    verdict: str = ""
    """`stop` for drop and reject, `accept`, `return`, `jump`, or empty."""
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarding:
    """A chain of somebody else that every forwarded packet meets, and those it jumps to."""

    where: str
    """In words: `table ip filter, chain FORWARD`."""
    policy: str
    rules: Sequence[Rule]
    chains: Callable[[str], Sequence[Rule]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Remove those rules, then put accepts for `missing` in front of rule number `before`; None: at the end."""

    remove: tuple[Rule, ...]
    missing: tuple[Way, ...]
    before: int | None


def edit(chain: Forwarding, bridges: Collection[str]) -> Edit:
    """What lets our bridges pass. Pure; a chain that ends by letting all pass needs nothing."""
    end = next((n for n, rule in enumerate(chain.rules) if ends(chain, rule)), None)
    stops = end is not None or chain.policy == "drop"
    wanted = [(way, bridge) for bridge in sorted(bridges) for way in ("in", "out")] if stops else []
    present, wrong = set[Way](), list[Rule]()
    for number, rule in enumerate(chain.rules):
        if rule.ours is None:
            continue
        if rule.ours in wanted and rule.ours not in present and (end is None or number < end):
            present.add(rule.ours)
        else:
            wrong.append(rule)
    return Edit(remove=tuple(wrong), missing=tuple(way for way in wanted if way not in present), before=end)


def ends(chain: Forwarding, rule: Rule, depth: int = 0) -> bool:
    """Whether no packet gets past the rule, but for those that an earlier rule there let through or dropped."""
    if not rule.always:
        return False
    if rule.verdict == "stop":
        return True
    if rule.verdict != "jump" or depth > _DEEPEST:
        return False
    for inner in chain.chains(rule.target):
        if ends(chain, inner, depth + 1):
            return True
        if inner.always and inner.verdict in ("accept", "return"):
            return False
    return False


# --- what there is, and what changes ----------------------------------------------------------------------------------


def state() -> tuple[object, ...]:
    """Equal while nobody changed a rule that `nft` shows; while `iptables-legacy` has rules, never: it tells nobody.

    Costs one question to the kernel.
    """
    return (nft.generation(HOST), *((object(),) if legacy_commands() else ()))


def let_pass(bridges: Collection[str]) -> list[str]:
    """Make the chains of others let pass what is forwarded from and to `bridges`, and hold no other rule of ours.

    Returns where something was added. Raises `Unavailable` when they cannot be read or changed.
    """
    return [*_nft(bridges), *(where for command in legacy_commands() for where in _iptables(command, bridges))]


# --- nftables ---------------------------------------------------------------------------------------------------------


def _nft(bridges: Collection[str]) -> list[str]:
    if not any(name != OURS for _, name in nft.tables(HOST)):
        return []
    if shutil.which("nft") is None:
        raise Unavailable(
            "other tables of nftables are on this machine, and `nft` to look at them is missing: install it"
        )
    found, script = [], []
    for entry in listed("chains"):
        chain = entry.get("chain", {})
        family, table, name = (str(chain.get(key, "")) for key in ("family", "table", "name"))
        if chain.get("hook") != "forward" or family not in _FAMILIES or table == OURS:
            continue
        prefix = f"{family} {table}"
        read = reader(prefix)
        theirs = Forwarding(
            where=f"table {prefix}, chain {name}", policy=chain.get("policy", "accept"), rules=read(name), chains=read
        )
        change = edit(theirs, bridges)
        script += [f"delete rule {prefix} {name} handle {rule.handle}" for rule in change.remove]
        verb, place = "add", ""
        if change.before is not None:
            verb, place = "insert", f"position {theirs.rules[change.before].handle} "
        for way, bridge in change.missing:
            script.append(
                f'{verb} rule {prefix} {name} {place}{way[0]}ifname "{bridge}" counter accept comment "{OURS}"'
            )
        found += [theirs.where] if change.missing else []
    if script:
        run(["nft", "-f", "-"], "\n".join(script))
    return found


def reader(prefix: str) -> Callable[[str], Sequence[Rule]]:
    """The rules of chains of one table, each read once."""
    known: dict[str, Sequence[Rule]] = {}

    def read(chain: str) -> Sequence[Rule]:
        if chain not in known:
            entries = listed("chain", *prefix.split(), chain)
            known[chain] = [_nft_rule(entry["rule"]) for entry in entries if "rule" in entry]
        return known[chain]

    return read


def listed(*what: str) -> list[dict[str, Any]]:
    """What `nft -j list` says. Raises `Unavailable`."""
    found: list[dict[str, Any]] = json.loads(run(["nft", "-j", "list", *what]))["nftables"]
    return found


def _nft_rule(rule: Mapping[str, Any]) -> Rule:
    parts = [e for e in rule["expr"] if not e.keys() & {"counter", "log"} and not _is_comment(e)]
    verdict, target = verdict_of(parts[-1]) if parts else ("", "")
    ours = None
    if rule.get("comment") == OURS and len(parts) == 2 and "match" in parts[0]:
        key, bridge = parts[0]["match"]["left"].get("meta", {}).get("key"), parts[0]["match"]["right"]
        ours = ("in" if key == "iifname" else "out", bridge) if isinstance(bridge, str) else None
    return Rule(handle=str(rule["handle"]), ours=ours, always=len(parts) == 1, verdict=verdict, target=target)


def _is_comment(expression: Mapping[str, Any]) -> bool:
    xt = expression.get("xt")
    return isinstance(xt, dict) and xt.get("name") == "comment"


def verdict_of(expression: Mapping[str, Any]) -> tuple[str, str]:
    """Of one expression of a rule, as `nft -j` lists it: see `Rule`."""
    xt = expression.get("xt")
    if expression.keys() & {"drop", "reject"} or (isinstance(xt, dict) and xt.get("name") in ("REJECT", "DROP")):
        return "stop", ""
    for verdict in ("accept", "return"):
        if verdict in expression:
            return verdict, ""
    for verdict in ("jump", "goto"):
        if verdict in expression:
            return "jump", expression[verdict]["target"]
    return "", ""


# --- iptables-legacy --------------------------------------------------------------------------------------------------


def legacy_commands() -> list[str]:
    """Those whose filter table is in the kernel: asking by the command itself would put it there."""
    found = []
    for command, names in LEGACY.items():
        try:
            tables = Path("/proc/net", names).read_text().split()
        except FileNotFoundError:
            continue
        if "filter" in tables and shutil.which(command) is not None:
            found.append(command)
    return found


def _iptables(command: str, bridges: Collection[str]) -> list[str]:
    policy, chains = legacy_chains(run([command, "-w", "2", "-S"]).splitlines())
    theirs = Forwarding(
        where=f"{command}, chain FORWARD",
        policy=policy,
        rules=chains.get("FORWARD", ()),
        chains=lambda name: chains.get(name, ()),
    )
    change = edit(theirs, bridges)
    # The end moves by the rules of ours in front of it that go, and by those that come
    place = change.before
    if place is not None:
        place -= sum(theirs.rules.index(rule) < place for rule in change.remove)
    for rule in change.remove:
        assert rule.ours is not None
        run([command, "-w", "2", "-D", "FORWARD", *_legacy_match(rule.ours)])
    for number, way in enumerate(change.missing):
        where = ["-A", "FORWARD"] if place is None else ["-I", "FORWARD", str(place + number + 1)]
        run([command, "-w", "2", *where, *_legacy_match(way)])
    return [theirs.where] if change.missing else []


def _legacy_match(way: Way) -> list[str]:
    return [f"-{way[0][0]}", way[1], "-m", "comment", "--comment", OURS, "-j", "ACCEPT"]


def legacy_chains(lines: Iterable[str]) -> tuple[str, dict[str, list[Rule]]]:
    """The policy of FORWARD, and the rules of all chains, from `iptables -S`."""
    policy, chains = "accept", dict[str, list[Rule]]()
    for line in lines:
        words = line.split()
        if words[:2] == ["-P", "FORWARD"]:
            policy = words[2].lower()
        if words[:1] == ["-A"]:
            chains.setdefault(words[1], []).append(_legacy_rule(words[2:]))
    return policy, chains


def _legacy_rule(words: Sequence[str]) -> Rule:
    jump = next((n for n, word in enumerate(words) if word in ("-j", "-g")), None)
    target = words[jump + 1] if jump is not None else ""
    known = {"DROP": "stop", "REJECT": "stop", "ACCEPT": "accept", "RETURN": "return", "LOG": "", "": ""}
    ours = None
    if f"--comment {OURS} " in " ".join(words) + " " and words[0] in ("-i", "-o"):
        ours = ("in" if words[0] == "-i" else "out", words[1])
    verdict = known.get(target, "jump")
    return Rule(ours=ours, always=jump == 0, verdict=verdict, target=target if verdict == "jump" else "")


def run(command: Sequence[str], text: str = "") -> str:
    """What a firewall's tool prints. Raises `Unavailable` with its words."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout
