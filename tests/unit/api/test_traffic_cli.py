"""`hivemesh flows` and `hivemesh top`, by an API whose machine has seen some traffic."""

import io
import json
import sys
from typing import Any

from api_harness import Result, Served, manager_api
from rich.console import Console

from hivemesh.cli.top import Picture, Row, table
from hivemesh.wire.feed import (
    BackendCount,
    Counts,
    End,
    Entry,
    Flow,
    Lost,
    PortRefusals,
    ServiceCount,
    Unheard,
    VipCount,
)

WEB_1 = End(address="10.0.0.5", port=8080, service="web", task="t1", name="web.1")
FLOWS: tuple[Entry, ...] = (
    Flow(
        at=1_700_000_000.25,
        node="n1",
        place="ingress",
        protocol="tcp",
        source=End(address="192.0.2.7", port=40000),
        target=End(address="172.18.0.2", port=8080, service="web"),
        verdict="balanced",
        backend=WEB_1,
    ),
    Flow(
        at=1_700_000_000.5,
        node="n2",
        place="sandbox",
        protocol="udp",
        source=End(address="fd00::8", port=50000, service="app", name="app.1"),
        target=End(address="fd00::4", port=53),
        verdict="direct",
    ),
    Lost(node="n2", count=7),
    Unheard(node="n3", reason="it is down"),
)


def counts(at: float, times: int) -> Counts:
    return Counts(
        at=at,
        node="n1",
        backends=(
            BackendCount(service="web", protocol="tcp", port=8080, backend="10.0.0.5", name="web.1",
                         connections=10 * times, toward=1000 * times, back=2000 * times),
        ),
        refusals=(PortRefusals(service="web", protocol="tcp", port=8080, refused=times),),
        vips=(VipCount(service="db", network="back", connections=4 * times),),
        services=(ServiceCount(service="db", network="back", received=50 * times, sent=60 * times, dropped=2 * times),),
    )  # fmt: skip


async def run(api: Served, *words: str) -> Result:
    return await api.run(sys.executable, "-m", "hivemesh.cli", *words)


async def test_flows_show_names_of_both_ends_and_what_was_lost() -> None:
    async with manager_api() as api:
        api.machine.traffic = FLOWS
        result = await run(api, "flows", "-f")
        first, second = (line.split(None, 1)[1] for line in result.out.splitlines())
        assert first == "n1  tcp   192.0.2.7:40000 -> web (172.18.0.2:8080) => web.1 (10.0.0.5:8080)  balanced"
        assert second == "n2  udp   app.1 ([fd00::8]:50000) -> [fd00::4]:53  direct"
        assert "lost 7 (on n2" in result.err
        assert "node n3 tells nothing: it is down" in result.err

        result = await run(api, "flows", "-f", "--json", "--service", "app")
        found = [json.loads(line) for line in result.out.splitlines()]
        assert [entry["type"] for entry in found] == ["flow", "lost", "unheard"]
        assert found[0]["source"] == {"address": "fd00::8", "port": 50000, "service": "app", "name": "app.1"}


async def test_top_shows_what_grew_per_second() -> None:
    async with manager_api() as api:
        api.machine.traffic = (counts(100.0, 1), counts(102.0, 5), Unheard(node="n3", reason="it is down"))
        result = await run(api, "top", "--once", "--json")
        picture: dict[str, Any] = json.loads(result.out)
        rows = {(row["service"], row["door"], row["backend"]): row for row in picture["rows"]}
        assert rows.keys() == {("web", "8080/tcp", ""), ("web", "8080/tcp", "web.1"), ("db", "back", "")}
        whole = rows["web", "8080/tcp", ""]
        assert (whole["connections"], whole["received"], whole["sent"], whole["refused"]) == (20, 2000, 4000, 2)
        back = rows["db", "back", ""]
        assert (back["connections"], back["received"], back["sent"], back["dropped"]) == (8, 100, 120, 4)
        shown = (await run(api, "top", "--once")).out
        assert "web.1" in shown
        assert "4.0 kB" in shown


async def test_daemon_that_began_anew_shows_no_negative_rates() -> None:
    async with manager_api() as api:
        api.machine.traffic = (counts(100.0, 5), counts(101.0, 1))
        picture = json.loads((await run(api, "top", "--once", "--json")).out)
        assert {row["connections"] for row in picture["rows"]} == {0.0}


def test_top_in_a_low_terminal_keeps_what_is_busy_and_says_what_is_missing() -> None:
    rows = [Row(service=f"s{number}", door="80/tcp") for number in range(30)]
    rows += [Row(service="web", door="8080/tcp", connections=3), Row(service="web", door="8080/tcp", backend="web.1")]
    rows += [Row(service="web", door="8080/tcp", backend=f"web.{'n' * 25}", connections=3)]
    console = Console(width=80, height=24, record=True, file=io.StringIO())
    console.print(table(Picture(rows=tuple(rows), nodes=("n1",)), 24))
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if "web" in line] == ["web", f"web.{'n' * 12}"]
    assert any(line.strip() == "15 more" for line in lines)


async def test_top_without_counts_says_why() -> None:
    async with manager_api() as api:
        api.machine.traffic = (Unheard(node="n3", reason="it is down"),)
        result = await run(api, "top", "--once")
        assert (result.code, result.out) == (1, "")
        assert "no node tells what it counts: n3 tells nothing: it is down" in result.err


async def test_feed_for_what_is_no_time_is_refused() -> None:
    async with manager_api() as api:
        for text in ("soon", "-1", "nan", "inf"):
            status, _, body = await api.http("GET", f"/hivemesh/flows?for={text}")
            assert (status, body["message"]) == (400, f"invalid for {text!r}: give seconds")
