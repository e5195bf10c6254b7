"""nftables as values: tables, chains, rules and maps, their netlink form, and what a listing says of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Expr:
    """One expression of a rule: its kernel name and its attributes (type, bytes or nested attributes)."""

    name: str
    attrs: tuple["Attr", ...]


Attr = tuple[int, "bytes | tuple[Attr, ...]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Expressions run in order; the comment is shown by `nft list`."""

    exprs: tuple[Expr, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """Where a base chain is called from: type (filter, nat, route), hook name, priority, and device in netdev."""

    type: str
    hook: str
    priority: int
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain; without a hook it is reached by jump or goto."""

    name: str
    rules: tuple[Rule, ...] = ()
    hook: Hook | None = None


@dataclass(frozen=True, slots=True)
class Goto:
    """A verdict map's value: continue in that chain and do not come back."""

    chain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """A set (no value type) or map; `key` and `value` name nft data types, several key parts are concatenated.

    Elements are in kernel form: each key part padded to 4 bytes, values as bytes or `Goto` for value `verdict`.
    """

    name: str
    key: tuple[str, ...]
    value: tuple[str, ...] = ()
    elements: Mapping[bytes, "bytes | Goto | None"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of ours: whatever is inside is ours. Family is inet, ip, ip6 or netdev."""

    family: str
    name: str
    chains: tuple[Chain, ...] = ()
    maps: tuple[Map, ...] = ()
