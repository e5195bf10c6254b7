// What is known of the chosen one, and what a trace found.

import { make, rate, wrong } from "./words.js";

const KINDS = {
  outside: "outside", service: "service", machine: "node", sandbox: "task's sandbox", ingress: "sandbox of the node",
  overlay: "network on this node", host: "the machine's own namespace", device: "link", lane: "network", stop: "end of a tunnel",
};

export class Panel {
  constructor(element, calls) {
    this.element = element;
    this.calls = calls; // onclose, ontrace(which, item), onhop(hop), onway(number), onopen(item)
  }

  hide() {
    this.element.hidden = true;
  }

  item(item, { traffic, from }) {
    const facts = (item.facts ?? []).map(([key, text]) => [
      make("dt", {}, key), make("dd", key === "problem" ? { class: "problem" } : {}, text),
    ]);
    for (const [name, [received, sent]] of traffic) {
      facts.push([make("dt", {}, name), make("dd", {}, `↓ ${rate(received)}  ↑ ${rate(sent)}`)]);
    }
    const actions = make("div", { class: "actions" });
    if (item.source) actions.append(make("button", { id: "trace-from", onclick: () => this.calls.ontrace("from", item) }, "trace from here"));
    if (item.target) {
      const words = from ? `trace from ${from.title}` : "trace to here";
      actions.append(make("button", { id: "trace-to", onclick: () => this.calls.ontrace("to", item) }, words));
    }
    if (item.kind === "machine") actions.append(make("button", { id: "open", onclick: () => this.calls.onopen(item) }, "open or close"));
    this.#fill(this.#top(item.title, KINDS[item.kind] ?? item.kind), actions, make("dl", {}, ...facts.flat()));
  }

  aiming(item) {
    this.#fill(this.#top(`From ${item.title} to …`, "trace"),
      make("p", {}, "Choose a service or a task: click it, or go there with the arrow keys and press t."));
  }

  waiting(from, to) {
    this.#fill(this.#top(`${from.title} → ${to.title}`, "trace"), make("p", {}, "Looking at the kernels on the way …"));
  }

  failed(from, to, words) {
    this.#fill(this.#top(`${from.title} → ${to.title}`, "trace"), make("p", { class: "verdict bad", role: "alert" }, words));
  }

  /** `shown` is the number of the way that is drawn. */
  trace(from, to, found, shown) {
    const parts = [this.#top(`${from.title} → ${to.title}`, `trace, ${found.protocol}`)];
    const end = found.end ?? [];
    const hops = [...found.begin, ...found.ways.flatMap((way) => way.hops), ...end];
    const broken = hops.find((hop) => hop.facts.some((fact) => !fact.agrees)) ?? hops.find((hop) => wrong(hop).length);
    const unseen = found.ways.find((way) => way.unseen)?.unseen;
    if (broken) {
      const [fact] = wrong(broken);
      parts.push(make("div", { class: "verdict bad", role: "alert" },
        make("b", {}, `${fact.what} at ${where(broken)}: `), `${fact.kernel}, planned is ${fact.plan}. `,
        fact.cause ? `${fact.cause}. ` : "", make("code", {}, fact.proof)));
    } else if (unseen) {
      parts.push(make("div", { class: "verdict warn" }, `What could be seen is as planned; ${unseen}`));
    } else {
      parts.push(make("div", { class: "verdict" }, "Everything on the way is as planned, there and back."));
    }
    if (found.said) parts.push(make("p", { class: "said" }, found.said));
    if (found.begin.length) parts.push(this.#hops(found.begin, 0));
    found.ways.forEach((way, number) => parts.push(
      make("h3", {}, make("button", { "aria-pressed": String(number === shown), onclick: () => this.calls.onway(number) },
        `to ${way.backend}`)),
      ...(way.said ? [make("p", { class: "said" }, way.said)] : []),
      this.#hops(way.hops, found.begin.length)));
    if (end.length) parts.push(this.#hops(end, found.begin.length + (found.ways[shown]?.hops.length ?? 0)));
    (found.notes ?? []).forEach((note) => parts.push(make("p", { class: "said" }, note)));
    this.#fill(...parts);
  }

  #hops(hops, before) {
    const list = make("ol", { class: "hops" }, ...hops.map((hop) => {
      const differing = wrong(hop);
      const seen = hop.probe?.agrees ? [make("span", { class: "where" }, `probe: ${hop.probe.kernel}`)] : [];
      return make("li", { class: differing.length ? "bad" : "good", tabindex: "0", onclick: () => this.calls.onhop(hop),
        title: hop.facts.map((fact) => `${fact.what}: ${fact.kernel}\n  ${fact.proof}`).join("\n") },
      make("div", {}, hop.title, make("span", { class: "where" }, where(hop)), ...seen,
        ...differing.map((fact) => make("span", { class: "differs" }, `${fact.what}: ${fact.kernel}, planned ${fact.plan}`))));
    }));
    list.style.counterReset = `hop ${before}`;
    return list;
  }

  #top(title, kind) {
    return make("div", { class: "top" },
      make("div", {}, make("h2", {}, title), make("span", { class: "kind" }, kind)),
      make("button", { title: "Close (Esc)", "aria-label": "Close", onclick: this.calls.onclose }, "×"));
  }

  #fill(...parts) {
    this.element.hidden = false;
    this.element.replaceChildren(...parts);
  }
}

function where(hop) {
  return `${hop.node} · ${hop.namespace || "host"}`;
}
