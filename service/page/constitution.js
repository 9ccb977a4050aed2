// Constitutions: the list, and one being edited: lint as it is typed, diff, preview of flips, save as a new version.

import { count, facts, field, fixed, h, later, link, percent, select, show, state, table, tell, to } from "./dom.js";
import { follow, get, may, post, query } from "./api.js";
import { differences, line, problem, said } from "./text.js";
import { edit as edits } from "./edits.js";
import { editor } from "./editor.js";

export async function list({ place, signal, naming }) {
  naming("Constitutions");
  const { constitutions } = await get("/v1/constitutions", signal);
  show(place, table(["Name", "Versions", ["Principles", "n"], "Serves", "Hash"], constitutions.map((c) => [link(to("constitutions", c.name), c.name), c.saved ? c.versions.map((v) => `v${v}`).join(" ") : "packaged",
    c.error ? h("span", { class: "bad" }, c.error) : count(c.principles), line(c.serves, 140), h("code", {}, c.hash.slice(0, 8))])));
}

export async function edit({ place, at, signal, naming }) {
  const name = at.parts[0], version = at.query.get("version") || "";
  naming(name);
  const whole = await get(`/v1/constitutions/${encodeURIComponent(name)}` + query({ version }), signal);
  const base = version ? `${name}.v${version}` : name;
  const told = h("div", { "aria-live": "polite", id: "lint" }), changes = h("div"), flips = h("div"), wrong = h("div");
  const field_ = editor({ value: whole.text, label: "Constitution (YAML)", rows: 26, oninput: later(300, () => checked()) });
  const save = h("input", { value: whole.saved ? name : `my-${name}`, pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}", required: true });
  const limit = h("input", { type: "number", min: "1", max: "1000", value: "20" });
  const saving = h("button", { class: "main" }, "Save as a new version");
  let asking = null;

  async function checked() {
    asking?.abort();
    asking = new AbortController();
    const mine = asking;
    const text = field_.value;
    if (!text.trim()) { show(told, h("p", { class: "muted" }, "Nothing is written yet.")); return; }
    try {
      const found = await post("/v1/constitutions/lint", { text }, mine.signal);
      if (signal.aborted) return;
      field_.mark(found.findings.map((f) => f.line));
      saving.disabled = found.errors > 0;
      show(told, h("h2", {}, "Lint: ", found.errors ? h("span", { class: "bad" }, `${found.errors} errors, `) : "", `${found.warnings} warnings`),
        h("ul", { class: "plain findings" }, found.findings.map((f) => finding(f, field_))));
      if (found.errors) show(changes);
      else {
        const diff = await post("/v1/constitutions/diff", { old: { name: base }, new: { text } }, mine.signal);
        if (!signal.aborted) show(changes, h("h2", {}, `Against ${base} as saved`), edits(diff));
      }
    } catch (error) { if (error.name !== "AbortError" && !signal.aborted) show(changes, problem(error)); }
  }

  const keep = h("form", { class: "row end", onsubmit: async (event) => {
    event.preventDefault();
    show(wrong);
    try {
      const made = await post("/v1/constitutions", { name: save.value, text: field_.value });
      tell(`Saved as ${made.name}.v${made.version}`);
      location.hash = to("constitutions", made.name) + query({ version: made.version });
    } catch (error) { show(wrong, problem(error)); }
  } }, field("Name", save), saving);
  const look = h("form", { class: "row end", onsubmit: async (event) => {
    event.preventDefault();
    show(wrong);
    try {
      const job = await post("/v1/previews", { old: { name: base }, new: { text: field_.value }, limit: Number(limit.value) });
      watch(job, flips, signal);
    } catch (error) { show(wrong, problem(error)); }
  } }, field("On N prompts", limit), h("button", {}, "Preview flips"));

  show(place, facts([["hash", h("code", {}, whole.hash.slice(0, 12))], ["principles", whole.constitution.principles.length],
    ["version", whole.versions.length > 0 && select(whole.versions.map((v) => [String(v), `v${v}`]), version || String(whole.versions.at(-1)), { "aria-label": "Version", onchange: (e) => { location.hash = to("constitutions", name) + query({ version: e.target.value }); } })],
    ["", whole.saved ? "" : "packaged: an edit is saved under another name"]]),
  may("run") && h("div", { class: "row end" }, keep, look), wrong,
  h("div", { class: "cols uneven" }, h("div", {}, field_.element), h("div", {}, told)), flips, changes);
  await checked();
}

function finding(f, area) {
  return h("li", {}, h("button", { type: "button", onclick: () => area.select(f.line) }, `line ${f.line}`), " ", h("span", { class: f.level === "error" ? "bad" : "warn" }, f.rule), " ", f.what, f.fix && h("div", { class: "muted small" }, f.fix));
}

function watch(job, place, signal) {
  const path = `/v1/previews/${encodeURIComponent(job.name)}`, stage = h("span", { class: "muted" });
  const stop = h("button", { type: "button", onclick: () => post(`${path}/cancel`) }, "Stop");
  show(place, h("h2", {}, "Preview"), h("div", { class: "row", role: "status" }, state(job.state), stage, stop));
  follow(`${path}/events`, signal, async (kind, event) => {
    if (kind === "stage") stage.textContent = event.stage;
    if (kind !== "end") return;
    const found = await get(path, signal);
    const r = found.result;
    show(place, h("h2", {}, "Preview"), !r && h("p", { class: "row" }, state(found.state), found.reason), r && result(r, path));
  });
}

function result(r, path) {
  const share = (x) => (x.value === null ? "–" : `${percent(x.value)} (${percent(x.low)} to ${percent(x.high)}; n ${count(x.n)})`);
  return [h("p", { id: "verdict" }, r.verdict), facts([["labels changed", share(r.labels.changed)], ["flipped A to B or B to A", share(r.labels.flipped)], ["revisions changed", share(r.revisions.changed)], ["calls", `${count(r.asked)} asked, ${count(r.reused)} stored`]]),
    h("p", {}, h("a", { href: `${path}/report`, target: "_blank", rel: "noopener" }, "The whole report")),
    r.flips.slice(0, 30).map(flip), r.flips.length > 30 && h("p", { class: "muted" }, `${count(r.flips.length - 30)} more in the report.`)];
}

function flip(f) {
  const word = (name, s) => [h("h3", {}, `${name}: ${s.label}`, h("span", { class: "muted small" }, s.p_a === null || s.p_a === undefined ? "" : ` p of A ${fixed(s.p_a)}`)),
    h("div", { class: "muted small" }, (s.votes || []).map((v) => `${v.principle} ${v.order || ""}: ${v.label}`).join(", "), s.why && [" ", line(s.why, 200)])];
  const texts = (s) => {
    if (typeof s.a !== "string" || typeof s.b !== "string") return [];
    const marked = differences(s.a, s.b, 0.3);
    return ["a", "b"].map((k, i) => h("div", {}, h("div", { class: "muted small" }, k.toUpperCase()), said(s[k], marked && marked[i])));
  };
  return h("article", { class: "panel" }, h("div", { class: "muted small" }, `${f.place}${f.same_texts ? ", the same texts under both" : ""}`), said(f.prompt), f.same_texts && h("div", { class: "cols" }, texts(f.old)),
    h("div", { class: "cols" }, h("div", {}, word("before", f.old), !f.same_texts && texts(f.old)), h("div", {}, word("after", f.new), !f.same_texts && texts(f.new))));
}
