// The topology page: follows the swarm, shows what is chosen, runs traces.

import { Panel } from "./panel.js";
import { Sheet } from "./sheet.js";
import { Recorder } from "./time.js";
import { clock, make, wrong } from "./words.js";

const $ = (id) => document.getElementById(id);
const DETAILS = ["", "full", "compact"];
const THEMES = ["system", "light", "dark"];
const RETRY = 1500; // milliseconds

let scene = null;
let pulse = null;
let source = null;
let detail = "";
let held = -1; // the frame that is shown; -1: live
let from = null; // where a trace begins
let shown = null; // the steps of the way that is drawn
let trace = null; // { begin, end, found }
const opened = new Set();
const record = new Recorder();

const view = $("view");
view.classList.add("still");
const sheet = new Sheet($("sheet"), view, { onpick: pick, onopen: open });
const panel = new Panel($("panel"), { onclose: clear, ontrace: aim, onhop: visit, onway: way, onopen: open });

// --- following

function connect() {
  source?.close();
  const query = new URLSearchParams();
  if (detail) query.set("detail", detail);
  if (opened.size) query.set("open", [...opened].join(","));
  const stream = new EventSource(`/topology/stream?${query}`);
  source = stream;
  stream.addEventListener("scene", (event) => {
    scene = JSON.parse(event.data);
    if (held < 0) render(scene, null);
    if (!performance.getEntriesByName("first scene").length) performance.mark("first scene");
    status();
  });
  stream.addEventListener("pulse", (event) => {
    pulse = JSON.parse(event.data);
    const dropped = record.add(scene, pulse);
    if (held >= 0) held = Math.max(0, held - dropped);
    else sheet.beat(pulse);
    slider();
    status();
  });
  stream.onerror = () => {
    stream.close();
    if (source !== stream) return;
    status("no answer");
    explain();
    setTimeout(() => source === stream && connect(), RETRY);
  };
}

/** Why there is no stream, in the daemon's own words. */
async function explain() {
  try {
    const answer = await fetch("/topology.json");
    if (!answer.ok) notice((await answer.json()).message);
  } catch {
    notice("The daemon does not answer. Trying again …");
  }
}

function notice(words) {
  $("notice").textContent = words;
  $("notice").hidden = !words;
}

function render(what, beat) {
  sheet.show(what);
  document.title = `${what.swarm} · hivemesh`;
  $("summary").replaceChildren(...what.summary.map(([name, number]) => make("li", {}, make("b", {}, number), ` ${name}`)));
  if (beat ?? pulse) sheet.beat(beat ?? pulse);
  if (shown) sheet.way(shown);
  if (from) sheet.aim(from.id);
  notice("");
}

function status(words) {
  const state = words ? "away" : held >= 0 ? "held" : "live";
  $("live").className = `is-${state}`;
  $("live").setAttribute("aria-pressed", String(held < 0));
  $("state").textContent = words ?? (held >= 0 ? "held" : "live");
  if (!words) notice("");
}

// --- time

function slider() {
  const last = record.frames.length - 1;
  const input = $("time");
  input.disabled = last < 1;
  input.max = String(Math.max(last, 0));
  input.value = String(held < 0 ? last : held);
  const frame = record.frames[held < 0 ? last : held];
  if (frame) $("moment").textContent = held < 0 ? clock(frame.pulse.at) : `${clock(frame.pulse.at)}, ${last - held} s ago`;
}

function hold(frame) {
  const last = record.frames.length - 1;
  if (last < 0) return;
  held = frame >= last ? -1 : Math.max(0, frame);
  const { scene: then, pulse: beat } = held < 0 ? { scene, pulse } : record.frames[held];
  render(then, beat);
  slider();
  status();
}

$("time").addEventListener("input", (event) => hold(Number(event.target.value)));
$("live").addEventListener("click", () => hold(held < 0 ? record.frames.length - 2 : Infinity));

// --- choosing

function pick(id) {
  const item = sheet.items.get(id);
  if (from && item?.target && item.id !== from.id) {
    aim("to", item);
    return;
  }
  if (!item) {
    clear();
    return;
  }
  shown = null;
  sheet.way([]);
  sheet.pick(id);
  panel.item(item, { traffic: trafficOf(item), from });
}

function clear() {
  from = shown = null;
  sheet.aim(null);
  sheet.way([]);
  sheet.pick(null);
  panel.hide();
  $("sheet").focus({ preventScroll: true });
}

function trafficOf(item) {
  const rates = (held < 0 ? pulse : record.frames[held].pulse)?.rates ?? {};
  return [...sheet.links.values()]
    .filter((link) => rates[link.id] && (link.source === item.id || sheet.items.get(link.source)?.parent === item.id))
    .map((link) => [sheet.items.get(link.source)?.title ?? link.kind, rates[link.id]]);
}

function open(item) {
  const node = item.node;
  if (!node) return;
  if (!opened.delete(node)) opened.add(node);
  connect();
}

// --- traces

function aim(which, item) {
  if (which === "from") {
    from = item;
    shown = null;
    sheet.way([]);
    sheet.pick(null);
    sheet.aim(item.id);
    panel.aiming(item);
    return;
  }
  run(from ?? sheet.items.get("outside") ?? item, item);
}

async function run(begin, end) {
  const outside = begin.source === "outside";
  if (outside && !end.door) {
    panel.failed(begin, end, "From outside only published ports can be reached: choose a service that publishes one, or begin at a task.");
    return;
  }
  panel.waiting(begin, end);
  const [target, protocol] = outside ? end.door.split("/") : [end.target];
  // Clients may ask any node: the one where the first task is not shows most of the mesh
  const node = begin.node ?? [...sheet.items.values()].find((item) => item.kind === "machine")?.node;
  try {
    const answer = await fetch("/trace", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ node, question: { source: outside ? "" : begin.source, target, protocol: protocol ?? "tcp" } }),
    });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.message);
    trace = { begin, end, found };
    from = null;
    sheet.aim(null);
    sheet.pick(null);
    const telling = [isBroken, (one) => one.hops.some((hop) => hop.node !== one.hops[0].node), () => true];
    way(Math.max(0, ...telling.map((told) => found.ways.findIndex(told)).filter((number) => number >= 0).slice(0, 1)));
  } catch (error) {
    panel.failed(begin, end, error.message);
    from = null;
    sheet.aim(null);
  }
}

const differs = (hop) => wrong(hop).length > 0;
const isBroken = (way) => way.hops.some(differs);

/** Draw one of the ways that a trace found. */
function way(number) {
  const { begin, end, found } = trace;
  shown = [...found.begin, ...(found.ways[number]?.hops ?? []), ...(found.end ?? [])]
    .map((hop) => ({ item: itemOf(hop), title: hop.title, bad: differs(hop) }));
  panel.trace(begin, end, found, number);
  sheet.way(shown);
}

function itemOf(hop) {
  const machine = [...sheet.items.values()].find((item) => item.kind === "machine" && item.title === hop.node);
  return machine ? `${machine.id}/${hop.namespace}` : "";
}

function visit(hop) {
  const id = itemOf(hop);
  if (sheet.items.has(id)) sheet.pick(id);
}

// --- tools and keys

function turn(list, value) {
  return list[(list.indexOf(value) + 1) % list.length];
}

function changeDetail() {
  detail = turn(DETAILS, detail);
  $("detail").textContent = `detail: ${detail || "auto"}`;
  connect();
}

function changeTheme(next) {
  const root = document.documentElement;
  const theme = next ?? turn(THEMES, root.dataset.theme ?? "system");
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  $("theme").textContent = `theme: ${theme}`;
  localStorage.setItem("theme", theme);
}

function fit() {
  sheet.touched = false;
  sheet.fit();
}

$("detail").addEventListener("click", changeDetail);
$("theme").addEventListener("click", () => changeTheme());
$("fit").addEventListener("click", fit);
$("help").addEventListener("click", () => $("keys").showModal());
$("find").addEventListener("input", (event) => sheet.find(event.target.value));
$("find").addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    const [first] = sheet.find(event.target.value);
    if (first) pick(first.id);
    $("sheet").focus();
  }
  if (event.key === "Escape") {
    event.target.value = "";
    sheet.find("");
    $("sheet").focus();
  }
  event.stopPropagation();
});

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const chosen = () => sheet.items.get(sheet.picked);
const KEYS = {
  "/": () => $("find").focus(),
  "+": () => sheet.zoom(1.25),
  "=": () => sheet.zoom(1.25),
  "-": () => sheet.zoom(0.8),
  0: fit,
  d: changeDetail,
  l: () => changeTheme(),
  f: () => chosen()?.source && aim("from", chosen()),
  t: () => chosen()?.target && aim("to", chosen()),
  "?": () => $("keys").showModal(),
  " ": () => hold(held < 0 ? record.frames.length - 2 : Infinity),
  "[": () => hold((held < 0 ? record.frames.length - 1 : held) - 1),
  "]": () => held >= 0 && hold(held + 1),
  Escape: clear,
  Enter: () => chosen() && (chosen().kind === "machine" ? open(chosen()) : pick(sheet.picked)),
};

document.addEventListener("pointerdown", () => $("sheet").classList.remove("by-keys"));
document.addEventListener("keydown", (event) => {
  $("sheet").classList.add("by-keys");
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const inside = event.target.closest?.("button, input, select, li");
  const arrow = ARROWS[event.key];
  if (arrow && !inside) {
    const next = sheet.step(...arrow);
    if (next !== null) {
      if (from) { // on the way to a target nothing is chosen yet
        sheet.pick(next);
      } else pick(next);
    }
    event.preventDefault();
    return;
  }
  if (inside && (event.key === " " || event.key === "Enter")) {
    if (inside.tagName === "LI") inside.click();
    return;
  }
  const action = KEYS[event.key];
  if (action) {
    action();
    event.preventDefault();
  }
});

changeTheme(localStorage.getItem("theme") ?? "system");
connect();
