"""Rules of others inside namespaces of ours, where packets of the mesh and of tasks come through: those that drop them.

A container with NET_ADMIN may have a firewall of its own, so they are only told of, never touched.
"""

import json
import shutil
from collections.abc import Mapping
from typing import Any

from hivemesh.kernel import nft
from hivemesh.kernel.foreign import OURS, run, verdict_of


def stopping(namespace: str) -> list[str]:
    """Where rules of others drop or reject, as `table inet theirs, chain input`; a question to the kernel where there
    are none. Raises `OSError`, or `Unavailable` where `nft` cannot say."""
    others = {key for key in nft.tables(namespace) if not key[1].startswith(OURS)}
    if not others or shutil.which("nft") is None:
        return []
    listed = json.loads(run(["ip", "netns", "exec", namespace, "nft", "-j", "list", "ruleset"]))["nftables"]
    return places(listed, others)


def places(listed: list[Mapping[str, Any]], tables: set[tuple[str, str]]) -> list[str]:
    """The chains of these tables (family, name) that drop anything, in `nft -j list ruleset`. Pure."""
    found: dict[str, None] = {}
    for entry in listed:
        rule, chain = entry.get("rule"), entry.get("chain")
        of = rule or chain
        if not of or (of["family"], of["table"]) not in tables:
            continue
        stops = rule and any(verdict_of(part)[0] == "stop" for part in rule["expr"])
        if stops or (chain and chain.get("policy") == "drop"):
            found[f"table {of['family']} {of['table']}, chain {rule['chain'] if rule else of['name']}"] = None
    return list(found)
