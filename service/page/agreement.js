// The report of `tenet agree` on a label set, alive as labels come in.

import { count, field, h, link, select, show, table, to } from "./dom.js";
import { every, get, query } from "./api.js";
import { problem, said } from "./text.js";

const RULES = { tie: ["three-class", "half", "drop"], swap: ["both", "mean", "first", "signed-sum"], invalid: ["wrong", "tie", "drop"], gold: ["majority", "each", "leave-one-out"] };
const NAMES = { tie: "Ties", swap: "Slot orders", invalid: "Unreadable verdicts", gold: "Gold label" };

export async function choose({ place, signal, naming }) {
  naming("Agreement");
  const { sets } = await get("/v1/labels", signal);
  show(place, sets.length ? h("ul", { class: "plain" }, sets.map((s) => h("li", {}, link(to("agreement", s), s)))) : h("p", { class: "muted" }, "There is no label set yet: ", link("#/label", "make one"), "."));
}

export async function view({ place, at, signal, naming }) {
  const set = at.parts[0], path = encodeURIComponent(set);
  naming(`Agreement on ${set}`);
  const rules = Object.fromEntries([...Object.keys(RULES), "min_attention"].map((k) => [k, at.query.get(k) || ""]));
  const asked = query({ ...rules, resamples: 200 }), full = query(rules);
  const form = h("form", { class: "row end", "aria-label": "Rules", onchange: () => form.requestSubmit(), onsubmit: (event) => {
    event.preventDefault();
    location.hash = to("agreement", set) + query(Object.fromEntries(new FormData(form)));
  } }, Object.entries(RULES).map(([k, options]) => field(NAMES[k], select(options, rules[k] || options[0], { name: k }))),
  field("Least share of checks passed", h("input", { type: "number", name: "min_attention", min: "0", max: "1", step: "any", value: rules.min_attention })));
  const head = h("div", { class: "row", role: "status" }), body = h("div");
  show(place, form, head, body);
  let seen = "";

  async function load() {
    const p = await get(`/v1/labels/${path}/progress`, signal);
    const now = JSON.stringify(p.raters);
    if (now === seen) return;
    show(head, h("span", {}, `${count(p.labels)} of ${count(p.wanted)} labels by ${count(p.raters.length)} raters`), h("span", { class: "muted" }, "follows the labels as they come in"),
      p.labels > 0 && [h("a", { href: `/v1/agreement/${path}/report${full}`, target: "_blank", rel: "noopener" }, "The report as one page"), h("a", { href: `/v1/labels/${path}/votes`, download: "" }, "Votes")]);
    try {
      const report = p.labels ? await get(`/v1/agreement/${path}/sections${asked}`, signal) : null;
      if (report) show(body, h("p", { class: "muted small" }, report.rules), report.sections.map((s) => h("section", {}, h("h2", {}, s.title), s.blocks.map(block))));
      else show(body, h("p", { class: "muted" }, "No label has come in yet. ", link(to("label", set), "Label"), "."));
      seen = now;
    } catch (error) { if (!signal.aborted) show(body, problem(error)); }
  }
  await load();
  every(2000, signal, load);
}

const SHOWN = {
  Text: (b) => h("p", { class: b.note ? "muted small" : undefined }, b.text),
  Heading: (b) => h("h3", {}, b.text),
  Table: (b) => table(b.head.map((x, i) => (i < b.texts ? x : [x, "n"])), b.rows),
  // As an image, so that nothing in a drawing can run.
  Plot: (b) => h("figure", {}, h("img", { alt: b.caption, src: "data:image/svg+xml;charset=utf-8," + encodeURIComponent(b.svg) }), h("figcaption", {}, b.caption)),
  Case: (b) => h("article", { class: "panel" }, h("h3", {}, b.title), h("p", { class: "muted small" }, b.facts), b.prompt !== null && [said(b.prompt), h("div", { class: "cols" }, ["a", "b"].map((k) => h("div", {}, h("h3", {}, k.toUpperCase()), said(b[k]))))]),
};

function block(b) {
  return SHOWN[b.kind] ? SHOWN[b.kind](b) : h("p", { class: "muted" }, `(${b.kind}: see the report as one page)`);
}
