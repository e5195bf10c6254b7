"""Repairs are counted and told; a fight over one object fills neither events nor memory."""

import asyncio

import pytest

from hivemesh.agent import repairs
from hivemesh.agent.repairs import SHOWN, Repair, Repairs


async def test_a_fight_is_told_in_gathered_events_and_counted_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairs, "APART", 0.01)
    heard = list[Repair]()
    made = Repairs()
    made.on_repair(heard.append)
    for number in range(100):
        made.note("host", "", [f"rule {number} was missing"])
    made.note("sandbox", "abc", ["a link was missing"])
    assert [(repair.namespace, repair.count) for repair in heard] == [("", 1), ("abc", 1)]
    async with asyncio.timeout(5):
        while len(heard) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert heard[2].count == 99
    assert heard[2].words.startswith("rule 1 was missing; rule 2 was missing")
    assert heard[2].words.endswith(f"; and {99 - SHOWN} more")
    assert made.counts == {"host": 100, "sandbox": 1}
    async with asyncio.timeout(5):
        while made._held:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    made.note("host", "", ["rule 100 was missing"])
    assert (len(heard), heard[-1].words) == (4, "rule 100 was missing")
