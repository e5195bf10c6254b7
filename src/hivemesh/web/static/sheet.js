// The picture: elements come ready from the daemon. Those that stay keep their place in the document, so that they move
// instead of jumping; this module knows pan, zoom, traffic, what is chosen, and the way of a trace.

import { draw, rate, seconds } from "./words.js";

const MOST_DROPS = 160; // lines with moving drops: more would keep a processor busy
const FAR = 0.42; // scale below which small print is left out
const CLOSEST = 3;

export class Sheet {
  constructor(svg, view, { onpick, onopen }) {
    this.svg = svg;
    this.view = view;
    this.items = new Map();
    this.links = new Map();
    this.size = { width: 1, height: 1 };
    this.place = { x: 0, y: 0, k: 1 };
    this.touched = false;
    this.picked = null;
    this.known = new Map(); // id -> element as it came
    this.drops = draw("g");
    this.rates = draw("g");
    this.trace = draw("g");
    this.onpick = onpick;
    this.onopen = onopen;
    this.#listen();
    new ResizeObserver(() => this.touched || this.#glide()).observe(svg);
  }

  // --- what is there

  show(scene) {
    const first = this.known.size === 0;
    const sized = scene.width !== this.size.width || scene.height !== this.size.height;
    this.items = new Map(scene.items.map((item) => [item.id, item]));
    this.links = new Map(scene.links.map((link) => [link.id, link]));
    this.size = scene;
    const came = new DOMParser().parseFromString(
      `<svg xmlns="http://www.w3.org/2000/svg">${scene.drawing}</svg>`, "image/svg+xml").documentElement;
    const seen = new Set();
    for (const layer of [...came.children]) {
      const name = layer.dataset.layer;
      let here = this.view.querySelector(`:scope > g[data-layer="${name}"]`);
      if (!here) {
        here = draw("g", { "data-layer": name });
        this.view.append(here);
      }
      for (const element of [...layer.children]) {
        seen.add(element.id);
        this.#take(element, here, first);
      }
    }
    for (const [id, { element }] of this.known) {
      if (!seen.has(id)) {
        element.remove();
        this.known.delete(id);
      }
    }
    this.view.append(this.drops, this.rates, this.trace);
    if (sized && !this.touched) this.fit();
    this.#light();
    if (first) requestAnimationFrame(() => requestAnimationFrame(() => this.view.classList.remove("still")));
  }

  #take(element, layer, first) {
    const text = element.outerHTML;
    const before = this.known.get(element.id);
    if (before === undefined) {
      const adopted = document.importNode(element, true);
      if (!first) adopted.classList.add("fresh");
      layer.append(adopted);
      this.known.set(element.id, { element: adopted, text });
      return;
    }
    if (before.text === text) return;
    for (const { name, value } of element.attributes) before.element.setAttribute(name, value);
    before.element.replaceChildren(...[...element.childNodes].map((child) => document.importNode(child, true)));
    before.text = text;
  }

  element(id) {
    return this.known.get(id)?.element;
  }

  // --- traffic

  beat(pulse) {
    const busiest = Object.entries(pulse.rates)
      .filter(([id]) => this.known.has(id))
      .sort(([, a], [, b]) => b[0] + b[1] - a[0] - a[1]);
    const flowing = new Map(busiest.filter(([, [i, o]]) => i + o >= 1).slice(0, MOST_DROPS));
    for (const id of this.links.keys()) {
      const element = this.element(id);
      if (!element || !this.links.get(id).meter) continue;
      const [i, o] = pulse.rates[id] ?? [0, 0];
      const level = i + o > 0 ? Math.min(3.2, Math.max(0, Math.log10(i + o) - 2.5) * 0.4) : 0;
      element.style.strokeWidth = level ? 1.4 + level : "";
    }
    const kept = new Map([...this.drops.children].map((drop) => [drop.dataset.of, drop]));
    for (const [id, drop] of kept) if (!flowing.has(id)) drop.remove();
    for (const [id, [i, o]] of flowing) {
      const path = this.element(id);
      const drop = kept.get(id) ?? draw("path", { "data-of": id });
      const hue = [...path.classList].find((name) => name.startsWith("hue-"));
      drop.setAttribute("class", `drop${i > o ? " back" : ""}${path.classList.contains("lit") ? " lit" : ""}`);
      drop.setAttribute("d", path.getAttribute("d"));
      drop.style.stroke = hue ? `var(--${hue})` : "var(--line)";
      drop.style.animationDuration = `${Math.max(0.35, 1.9 - 0.25 * Math.log10(i + o + 1)).toFixed(2)}s`;
      if (!drop.parentNode) this.drops.append(drop);
    }
    const labels = busiest.filter(([id, [i, o]]) => this.links.get(id).kind === "tunnel" && i + o >= 100);
    this.rates.replaceChildren(...labels.map(([id, [i, o]]) => {
      const [x, y] = this.element(id).getAttribute("d").slice(1).split(" ")[0].split(",").map(Number);
      const lit = this.element(id).classList.contains("lit") ? " lit" : "";
      return draw("text", { class: `rate${lit}`, x: x + 6, y: y + 36 }, rate(i + o));
    }));
    for (const [id, health] of Object.entries(pulse.nodes)) this.#health(this.element(id), health);
  }

  #health(element, { words = "", repairs = 0, lag = 0, behind = 0, received = 0, sent = 0 }) {
    const [traffic, state] = element?.querySelectorAll(":scope > .health") ?? [];
    if (!state) return;
    // of a node that nobody hears, the picture itself says why, and what was measured last holds no more
    const unheard = element.classList.contains("warn") || element.classList.contains("bad");
    traffic.textContent = words || unheard ? "" : `↓ ${rate(received)}  ↑ ${rate(sent)}`;
    const parts = [behind > 1 ? `behind ${seconds(behind)}` : lag ? `lag ${seconds(lag)}` : "",
      repairs ? `${repairs} repaired` : ""];
    state.textContent = unheard ? "" : words || parts.filter(Boolean).join(" · ");
  }

  // --- what is chosen

  pick(id) {
    this.picked = id !== null && this.items.has(id) ? id : null;
    this.#light();
    if (this.picked !== null) this.#bring(this.items.get(this.picked));
  }

  aim(id) {
    for (const element of this.view.querySelectorAll(".aimed")) element.classList.remove("aimed");
    if (id) this.element(id)?.classList.add("aimed");
  }

  find(text) {
    const wanted = text.trim().toLowerCase();
    const found = [];
    for (const [id, item] of this.items) {
      const hit = wanted && item.kind !== "lane" && item.kind !== "stop" && item.kind !== "device" &&
        [item.title, item.note, item.target, ...(item.facts ?? []).map((fact) => fact[1])]
          .some((part) => part?.toLowerCase().includes(wanted));
      this.element(id)?.classList.toggle("found", Boolean(hit));
      if (hit) found.push(item);
    }
    found.sort((a, b) => (a.title.toLowerCase().startsWith(wanted) ? 0 : 1) - (b.title.toLowerCase().startsWith(wanted) ? 0 : 1));
    return found;
  }

  /** What belongs to the chosen one: a service's whole path, a network with all on it, a task with its ways. */
  related(id) {
    const lit = new Set([id]);
    const item = this.items.get(id);
    if (!item || item.kind === "machine") return null;
    const all = [...this.links.values()];
    const add = (link) => { lit.add(link.id).add(link.source).add(link.target); };
    const networks = new Set(item.networks ?? (item.network ? [item.network] : []));
    const nodes = new Set();
    const tasks = new Set();
    if (item.kind === "service") {
      for (const link of all) if (link.service === item.service && (link.kind === "vip" || link.kind === "publish")) {
        add(link);
        if (link.kind === "vip") tasks.add(link.target);
      }
    } else if (item.kind === "sandbox" || item.kind === "ingress") {
      tasks.add(id);
      for (const link of all) if (link.target === id && link.kind === "vip") add(link);
    } else if (item.kind === "device" || item.kind === "stop" || item.kind === "host" || item.kind === "outside") {
      if (item.parent) lit.add(item.parent);
      for (const link of all) if (link.source === id || link.target === id ||
        this.items.get(link.source)?.parent === id || this.items.get(link.target)?.parent === id) add(link);
    }
    const overlay = item.kind === "overlay" || item.kind === "lane";
    for (const task of tasks) nodes.add(this.items.get(task)?.node);
    for (const other of this.items.values()) {
      if (item.kind === "service" && other.kind === "ingress" && item.door) {
        tasks.add(other.id);
        lit.add(other.id);
        nodes.add(other.node);
      }
    }
    for (const link of all) {
      const from = this.items.get(link.source);
      if (link.kind === "veth" && (tasks.has(from?.parent) || overlay) && networks.has(link.network)) add(link);
      if ((link.kind === "port" || link.kind === "tunnel") && networks.has(link.network) && (overlay || nodes.has(from?.node))) add(link);
      if (link.kind === "lane" && networks.has(link.network)) lit.add(link.id);
    }
    for (const other of this.items.values()) {
      if (other.kind === "lane" && networks.has(other.network)) lit.add(other.id);
      if (other.kind === "overlay" && networks.has(other.network) && (overlay || nodes.has(other.node))) lit.add(other.id);
      if (other.kind === "sandbox" && overlay && other.networks?.some((network) => networks.has(network))) lit.add(other.id);
    }
    for (const one of [...lit]) {
      const parent = this.items.get(one)?.parent;
      if (parent) lit.add(parent);
    }
    return lit;
  }

  #light() {
    const lit = this.picked === null ? null : this.related(this.picked);
    this.view.classList.toggle("chosen", lit !== null);
    for (const [id, { element }] of this.known) {
      element.classList.toggle("lit", Boolean(lit?.has(id)));
      element.classList.toggle("picked", id === this.picked);
    }
    for (const drop of this.drops.children) drop.classList.toggle("lit", Boolean(lit?.has(drop.dataset.of)));
  }

  // --- the way of a trace

  /** `steps`: { item, title, bad } in order. Between machines the way goes down to the machines' own network and up. */
  way(steps) {
    this.trace.replaceChildren();
    const places = [];
    steps.forEach((step, n) => {
      const item = this.items.get(step.item);
      const last = places.at(-1);
      if (!item) return;
      if (last?.item === item) {
        last.until = n + 1;
        last.bad ||= step.bad;
      } else places.push({ item, from: n + 1, until: n + 1, bad: step.bad });
    });
    if (!places.length) return;
    const broken = places.findIndex((place) => place.bad);
    this.#path(broken < 0 ? places : places.slice(0, broken + 1), broken >= 0);
    const taken = new Map();
    for (const { item, from, until, bad } of places) {
      const text = from === until ? `${from}` : `${from}–${until}`;
      const width = 10 + 7 * text.length;
      const used = taken.get(item) ?? 0;
      taken.set(item, used + width + 4);
      const mark = draw("g", { class: `step${bad ? " bad" : ""}`, transform: `translate(${item.x + 2 + used} ${item.y - 13})` });
      mark.append(draw("rect", { width, height: 16, rx: 8 }), draw("text", { x: width / 2, y: 11.5 }, text),
        draw("title", {}, steps.slice(from - 1, until).map((step) => step.title).join("\n")));
      this.trace.append(mark);
    }
  }

  #path(places, bad) {
    const points = places.map(({ item }) => ({ x: item.x + item.w / 2, y: item.y + item.h / 2, node: item.node }));
    let d = `M${points[0].x},${points[0].y}`;
    for (let n = 1; n < points.length; n += 1) {
      const [a, b] = [points[n - 1], points[n]];
      const lanes = [a, b].map(({ node }) => this.items.get(`stop/${node}/`)?.y);
      if (a.node !== b.node && lanes[0] && lanes[1]) {
        const [ya, yb] = lanes.map((y) => y + 3.5);
        d += ` L${a.x},${ya} L${b.x},${yb} L${b.x},${b.y}`;
      } else {
        const middle = (a.y + b.y) / 2;
        d += Math.abs(a.y - b.y) > 40 ? ` C${a.x},${middle} ${b.x},${middle} ${b.x},${b.y}` : ` L${b.x},${b.y}`;
      }
    }
    const line = draw("path", { class: `way${bad ? " bad" : ""}`, d });
    this.trace.append(line);
    line.style.setProperty("--length", line.getTotalLength());
  }

  // --- place

  fit() {
    const { clientWidth, clientHeight } = this.svg;
    if (!clientWidth || this.size.width <= 1) return;
    const k = Math.min(clientWidth / this.size.width, clientHeight / this.size.height, 1.6);
    this.#put((clientWidth - this.size.width * k) / 2, Math.max(0, (clientHeight - this.size.height * k) / 2), k);
  }

  /** Fit, but smoothly: what was looked at is followed with the eyes. */
  #glide() {
    this.view.classList.toggle("gliding", this.known.size > 0);
    this.fit();
    clearTimeout(this.gliding);
    this.gliding = setTimeout(() => this.view.classList.remove("gliding"), 350);
  }

  #put(x, y, k) {
    this.place = { x, y, k };
    this.view.setAttribute("transform", `translate(${x} ${y}) scale(${k})`);
    this.view.classList.toggle("far", k < FAR);
  }

  zoom(factor, cx = this.svg.clientWidth / 2, cy = this.svg.clientHeight / 2) {
    const { x, y, k } = this.place;
    const next = Math.min(CLOSEST, Math.max(0.04, k * factor));
    this.touched = true;
    this.#put(cx - ((cx - x) * next) / k, cy - ((cy - y) * next) / k, next);
  }

  /** Move the sheet just so far that the item can be seen. */
  #bring(item) {
    const { x, y, k } = this.place;
    const { clientWidth, clientHeight } = this.svg;
    const left = x + item.x * k, top = y + item.y * k, right = left + item.w * k, bottom = top + item.h * k;
    const wide = Math.min(item.w * k, clientWidth), high = Math.min(item.h * k, clientHeight);
    const dx = left < 0 ? 20 - left : right > clientWidth ? clientWidth - 20 - left - wide : 0;
    const dy = top < 0 ? 20 - top : bottom > clientHeight ? clientHeight - 20 - top - high : 0;
    if (dx || dy) {
      this.touched = true;
      this.#put(x + dx, y + dy, k);
    }
  }

  /** From box to box: the nearest one in that direction. */
  step(dx, dy) {
    const boxes = [...this.items.values()].filter((item) => !["stop", "joint", "lane"].includes(item.kind));
    const here = this.items.get(this.picked);
    if (!here) return boxes[0]?.id ?? null;
    const [hx, hy] = [here.x + here.w / 2, here.y + here.h / 2];
    let best = null;
    let least = Infinity;
    for (const box of boxes) {
      const [x, y] = [box.x + box.w / 2 - hx, box.y + box.h / 2 - hy];
      const along = x * dx + y * dy;
      const aside = Math.abs(x * dy) + Math.abs(y * dx);
      if (box.id === here.id || along <= 1 || aside > along * 2.5) continue;
      if (along + 2 * aside < least) {
        least = along + 2 * aside;
        best = box.id;
      }
    }
    return best ?? here.id;
  }

  #listen() {
    const held = new Map();
    let moved = 0;
    const idAt = (event) => event.target.closest?.(".item")?.id ?? null;
    this.svg.addEventListener("pointerdown", (event) => {
      held.set(event.pointerId, event);
      moved = 0;
    });
    this.svg.addEventListener("pointermove", (event) => {
      const before = held.get(event.pointerId);
      if (!before) return;
      const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
      moved += Math.abs(dx) + Math.abs(dy);
      if (moved > 4 && !this.svg.hasPointerCapture(event.pointerId)) {
        this.svg.setPointerCapture(event.pointerId);
        this.svg.classList.add("held");
      }
      if (moved > 4 && held.size === 1) {
        this.touched = true;
        this.#put(this.place.x + dx, this.place.y + dy, this.place.k);
      } else if (held.size === 2) {
        const other = [...held].find(([id]) => id !== event.pointerId)[1];
        const span = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
        const box = this.svg.getBoundingClientRect();
        this.zoom(span(event) / Math.max(1, span(before)), (event.clientX + other.clientX) / 2 - box.left,
          (event.clientY + other.clientY) / 2 - box.top);
      }
      held.set(event.pointerId, event);
    });
    const release = (event) => {
      held.delete(event.pointerId);
      this.svg.classList.remove("held");
    };
    this.svg.addEventListener("pointerup", release);
    this.svg.addEventListener("pointercancel", release);
    this.svg.addEventListener("click", (event) => moved <= 4 && this.onpick(idAt(event)));
    this.svg.addEventListener("dblclick", (event) => {
      const id = idAt(event);
      const item = this.items.get(id);
      if (item) this.onopen(item);
    });
    this.svg.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = this.svg.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
  }
}
