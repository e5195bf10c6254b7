"""The topology page in a real browser: a lab's, and one of a swarm of fifty nodes. Screenshots are kept in .test/."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Collection, Iterator
from pathlib import Path
from typing import cast

import pytest
from aiohttp import web
from world import spec

import chrome
from hivemesh.daemon.web import create_app
from hivemesh.lab.lab import Lab, LabSettings
from hivemesh.model.ids import NodeID
from hivemesh.web.compose import compose
from hivemesh.web.hub import Hub
from hivemesh.web.page import page_routes
from hivemesh.wire.topology import Picture, Pulse
from hivemesh.wire.trace import Question, Trace
from labs import a_lab
from sights import Swarm, sights

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(chrome.command() is None, reason="there is no Chromium (apt-get install chromium)"),
]
SHOTS = Path(__file__).parents[2] / ".test" / "screenshots"
PORT = "http://127.0.0.1:2378"


def box(kind: str, title: str) -> str:
    """The element of an item, in the page."""
    boxes = f"[...document.querySelectorAll('.item.{kind}')]"
    return f"{boxes}.find(e => e.querySelector('.title')?.textContent === '{title}')"


def click(page: chrome.Page, kind: str, title: str) -> None:
    page.until(box(kind, title))
    page.js("document.querySelectorAll('[data-aim]').forEach(e => delete e.dataset.aim)")
    page.js(f"{box(kind, title)}.dataset.aim = 1")
    page.click("[data-aim]")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three nodes that run commands, with services on two networks."""
    with a_lab(LabSettings(engine="process")) as lab:
        first = lab.nodes[0]
        create = ["hivemesh", "service", "create", "--detach", "--quiet", "localhost/whoami"]
        for network in ("front", "back"):
            first.exec("hivemesh", "network", "create", "--driver", "overlay", network)
        for name, replicas, more in (
            ("web", 2, ["--publish", "8080:80", "--network", "front"]),
            ("api", 2, ["--network", "front", "--network", "back"]),
            ("db", 1, ["--network", "back"]),
        ):
            options = ["--name", name, "--replicas", str(replicas), *more]
            first.exec(*create[:-1], *options, create[-1])
        yield lab


@pytest.fixture(scope="module")
def opened(lab: Lab) -> Iterator[chrome.Page]:
    with chrome.browser(lab.nodes[0].spec.netns) as page:
        page.size(1500, 860)
        yield page


@pytest.fixture
def page(opened: chrome.Page) -> chrome.Page:
    """The lab's page, opened anew, with all tasks on it."""
    opened.complaints.clear()
    opened.go(f"{PORT}/")
    for title in ("web.1", "web.2", "api.1", "api.2", "db.1"):
        opened.until(f"({box('sandbox', title)})?.classList.contains('good')")
    opened.until("document.querySelectorAll('.machine.good').length === 3")
    return opened


def test_page_draws_the_lab_with_nothing_from_elsewhere_and_no_complaint(lab: Lab, page: chrome.Page) -> None:
    assert page.js("document.querySelectorAll('.service').length") == 3
    page.until("document.querySelectorAll('.machine .health')[0].textContent.includes('B/s')")
    fetched = page.js("performance.getEntriesByType('resource').map(e => new URL(e.name).origin)")
    assert set(fetched) == {PORT}
    page.screenshot(SHOTS / "lab.png")
    page.size(1500, 860, dark=True)
    assert page.js("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    page.screenshot(SHOTS / "lab-dark.png")
    page.size(1500, 860)
    assert page.complaints == []


def test_page_follows_a_service_that_is_scaled_without_moving_what_stays(lab: Lab, page: chrome.Page) -> None:
    page.js(f"window.kept = {box('machine', 'n1')}")
    lab.nodes[0].exec("hivemesh", "service", "scale", "--detach", "db=3")
    for title in ("db.2", "db.3"):
        page.until(f"({box('sandbox', title)})?.classList.contains('good')")
    assert page.js(f"window.kept === {box('machine', 'n1')}")
    assert page.js("document.querySelector('#summary').textContent").startswith("3/3 nodes3 services7/7")
    lab.nodes[0].exec("hivemesh", "service", "scale", "--detach", "db=1")
    page.until(f"!({box('sandbox', 'db.2')}) && !({box('sandbox', 'db.3')})")


def test_page_says_at_once_that_a_node_fell_silent_and_forgets_it_when_it_is_back(lab: Lab, page: chrome.Page) -> None:
    lab.node("n3").kill_daemon()
    try:
        page.until(f"{box('machine', 'n3')}.classList.contains('warn')")
        page.until(f"{box('machine', 'n3')}.textContent.includes('broke off')")
        assert page.js(f"[...{box('machine', 'n3')}.querySelectorAll('.health')].map(e => e.textContent)") == ["", ""]
        page.screenshot(SHOTS / "killed.png")
    finally:
        lab.restart_daemon("n3")
    page.until(f"{box('machine', 'n3')}.classList.contains('good')")
    assert page.complaints == []


def test_service_that_is_clicked_shows_its_path(page: chrome.Page) -> None:
    click(page, "service", "web")
    page.until("document.getElementById('panel').textContent.includes('2 of 2 serve')")
    assert page.js(f"{box('sandbox', 'web.1')}.classList.contains('lit')")
    assert not page.js(f"{box('sandbox', 'db.1')}.classList.contains('lit')")
    assert page.js(
        "[...document.querySelectorAll('.lane.lit .note')].map(e => e.textContent.split(' ')[0]).sort()"
    ) == [
        "front",
        "ingress",
    ]
    page.screenshot(SHOTS / "service.png")
    page.press("Escape")
    page.until("document.getElementById('panel').hidden")


@pytest.mark.parametrize("number", [1, 2])
def test_trace_runs_by_clicks_from_a_task_on_whichever_node(page: chrome.Page, number: int) -> None:
    click(page, "sandbox", f"api.{number}")
    page.until("document.getElementById('trace-from')")
    page.click("#trace-from")
    click(page, "service", "db")
    page.until("document.querySelector('#panel .verdict')")
    assert "as planned, there and back" in page.js("document.querySelector('.verdict').textContent")
    assert page.js("document.querySelectorAll('#view .step').length") >= 3
    page.screenshot(SHOTS / f"trace-{number}.png")
    assert page.complaints == []


def test_way_is_drawn_up_to_where_it_breaks_with_cause_and_proof(page: chrome.Page) -> None:
    """The answer is bent on its way to the page: agents repair what a test could break here."""
    page.js("""(() => {
        const ask = window.fetch;
        window.fetch = async (...given) => {
            const found = await (await ask(...given)).json();
            const hop = found.ways[0].hops[1];
            Object.assign(hop.facts[0], {what: "forwarding entry", plan: "198.51.100.13", kernel: "missing",
                                         agrees: false, cause: "somebody removed it", proof: "bridge fdb show"});
            return new Response(JSON.stringify(found));
        };
    })()""")
    click(page, "sandbox", "api.1")
    page.until("document.getElementById('trace-from')")
    page.click("#trace-from")
    click(page, "service", "db")
    page.until("document.querySelector('#panel .verdict.bad')")
    words = page.js("document.querySelector('.verdict').textContent")
    assert "forwarding entry" in words
    assert "somebody removed it. bridge fdb show" in words
    assert page.js("document.querySelectorAll('#view .way.bad').length") == 1
    assert page.js("document.querySelectorAll('#view .step.bad').length") == 1
    page.until(
        "document.getAnimations().every(each => each.playState !== 'running' || each.effect.getTiming().iterations > 1)"
    )
    page.screenshot(SHOTS / "broken.png")


def test_probe_that_was_lost_breaks_the_way_where_the_kernel_is_as_planned(page: chrome.Page) -> None:
    page.js("""(() => {
        const ask = window.fetch;
        window.fetch = async (...given) => {
            const found = await (await ask(...given)).json();
            const hop = found.ways[0].hops[2];
            hop.probe = {what: "the probe", plan: "comes through", kernel: "did not come", agrees: false,
                         cause: "something between drops it", proof: "tcpdump -ni eth0 udp port 4789"};
            return new Response(JSON.stringify(found));
        };
    })()""")
    click(page, "sandbox", "api.1")
    page.until("document.getElementById('trace-from')")
    page.click("#trace-from")
    click(page, "service", "db")
    page.until("document.querySelector('#panel .verdict.bad')")
    words = page.js("document.querySelector('.verdict').textContent")
    assert "did not come, planned is comes through. something between drops it. tcpdump" in words
    assert page.js("document.querySelectorAll('#view .step.bad').length") == 1


def test_trace_of_a_published_port_needs_no_mouse(page: chrome.Page) -> None:
    page.js("document.getElementById('sheet').focus()")
    page.press("ArrowDown")
    page.until("document.querySelector('.item.picked')")
    for _ in range(12):
        if page.js("document.querySelector('.item.picked').classList.contains('outside')"):
            break
        page.press("ArrowUp")
    page.press("f")
    for key in ("/", "w", "e", "b"):
        page.press(key, key)
    page.press("Enter")
    page.until("document.querySelector('#panel .verdict')")
    assert "as planned" in page.js("document.querySelector('.verdict').textContent")
    assert page.js("document.querySelector('.hops').textContent").startswith("published port 8080/tcp")


def test_time_can_be_held_and_goes_on(page: chrome.Page) -> None:
    page.until("Number(document.getElementById('time').max) >= 2")
    page.press("[")
    page.until("document.getElementById('state').textContent === 'held'")
    held = page.js("document.getElementById('time').value")
    page.until(f"Number(document.getElementById('time').max) > Number({held}) + 1")
    assert page.js("document.getElementById('time').value") == held
    page.press(" ")
    page.until("document.getElementById('state').textContent === 'live'")


def test_worker_says_where_the_page_is(lab: Lab) -> None:
    answer = lab.node("n2").exec("curl", "--silent", f"{PORT}/topology.json").stdout
    assert "open the page, or ask, on one of them" in answer


# --- a large swarm ----------------------------------------------------------------------------------------------------


class Large:
    """Fifty nodes and a thousand tasks, as if their nodes told of them; then one service is gone."""

    def __init__(self) -> None:
        self.world = Swarm(50)
        for number in range(10):
            self.world.create_network(f"net{number}")
        for number in range(20):
            self.world.create(spec(f"svc{number}", 50, networks=[f"net{number % 10}"]))
        for _ in range(4):
            self.world.agents()
        self.changed = asyncio.Event()

    def drawn(self, opened: Collection[NodeID] = (), detailed: bool | None = None) -> Picture:
        return compose(self.world.view, sights(self.world.view), opened=opened, detailed=detailed)

    async def picture(self, *, detailed: bool | None = None) -> Picture:
        return self.drawn(detailed=detailed)

    async def follow(
        self, opened: Collection[NodeID] = (), *, detailed: bool | None = None
    ) -> AsyncGenerator[Picture | Pulse, None]:
        picture = self.drawn(opened, detailed)
        yield picture
        yield Pulse(at=time.time(), nodes={}, rates={link.id: (1e5, 1e6) for link in picture.links if link.meter})
        await self.changed.wait()
        self.world.remove("svc7")
        for _ in range(3):
            self.world.agents()
        yield self.drawn(opened, detailed)
        await asyncio.Event().wait()


@contextlib.contextmanager
def served(large: Large) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """The address of a page of that swarm, served on loopback by a thread."""

    async def no_trace(node: NodeID, question: Question) -> Trace:
        raise AssertionError("nobody asked for a trace")

    loop = asyncio.new_event_loop()
    runner = web.AppRunner(create_app(page_routes(lambda: cast(Hub, large), no_trace)), handler_cancellation=True,
                           shutdown_timeout=0.1)  # fmt: skip

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}", loop
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_fifty_nodes_and_a_thousand_tasks_are_drawn_and_stay_where_they_are() -> None:
    large = Large()
    with served(large) as (address, loop), chrome.browser() as page:
        page.size(1500, 860)
        page.go(f"{address}/")
        page.until("document.querySelectorAll('.sandbox').length === 1000")
        page.until("document.querySelectorAll('#view .drop').length > 0")
        took = page.js("performance.getEntriesByName('first scene')[0].startTime")
        (SHOTS / "large.txt").write_text(f"the first picture stood {took:.0f} ms after the page was asked for\n")
        page.screenshot(SHOTS / "large.png")
        where = f"(() => {{ const b = ({box('machine', 'n50')}).getBoundingClientRect(); return [b.x, b.y] }})()"
        before = page.js(where)
        page.js(f"window.kept = {box('machine', 'n50')}")
        loop.call_soon_threadsafe(large.changed.set)
        page.until("document.querySelectorAll('.sandbox').length === 950")
        assert page.js(f"window.kept === {box('machine', 'n50')}")
        assert page.js("document.querySelectorAll('.machine').length") == 50
        assert before[0] > 0
        assert page.complaints == []
