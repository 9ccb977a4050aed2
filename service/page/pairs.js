// The rows of a run, with filters that stand in the address, and one prompt's whole chain.

import { count, field, fixed, h, link, percent, select, show, table, to, typing } from "./dom.js";
import { get, query } from "./api.js";
import { changed, conversation, differences, line, said } from "./text.js";

const STAGES = [["", "all records"], ["pairs", "judged pairs"], ["preference", "preferences"], ["judged", "judged, not kept"], ["dropped", "dropped"], ["candidate", "replies"], ["prompt", "prompts"], ["score", "scores"]];
const FILTERS = ["stage", "principle", "min_margin", "max_margin", "reason", "dropped_at", "q", "prompt_id"];
const PATIENCE = 20; // pages that a search looks through before it asks whether to go on

export async function choose({ place, signal, naming }) {
  naming("Pairs");
  const { runs } = await get("/v1/runs?limit=200", signal);
  show(place, h("p", {}, "Of which run?"), h("ul", { class: "plain" }, runs.map((r) => h("li", {}, link(to("pairs", r.name) + "?stage=pairs", r.name), " ", h("span", { class: "muted" }, r.state)))),
    runs.length === 0 && h("p", { class: "muted" }, "There is no run yet."));
}

const filters = (at) => Object.fromEntries(FILTERS.map((k) => [k, at.query.get(k) || ""]).filter(([, v]) => v));
const asked = (f) => ({ ...f, stage: f.stage === "pairs" ? ["preference", "judged"] : f.stage });

export async function list({ place, at, signal, naming }) {
  const run = at.parts[0], f = filters(at);
  naming(`Pairs of ${run}`);
  const rows = h("div", { class: "list" }), foot = h("div", { class: "row", "aria-live": "polite" });
  show(place, form(run, f), rows, foot);
  let after = at.query.get("after") || "", found = 0;

  async function more() {
    for (let i = 0; i < PATIENCE; i++) {
      show(foot, h("span", { class: "muted" }, "Searching …"));
      const page = await get(`/v1/runs/${encodeURIComponent(run)}/rows` + query({ ...asked(f), limit: 50, after }), signal);
      for (const row of page.rows) rows.append(preview(run, row, f));
      found += page.rows.length;
      after = page.next;
      if (after === null || found >= 50) break;
    }
    const button = after !== null && h("button", { type: "button", onclick: () => { found = 0; more(); } }, "More");
    show(foot, h("span", { class: "muted" }, `${count(rows.childElementCount)} shown${after === null ? ", these are all" : ""}.`), button,
      rows.childElementCount > 0 && h("span", { class: "muted small less" }, h("kbd", {}, "j"), " ", h("kbd", {}, "k"), " move, ", h("kbd", {}, "Enter"), " opens"));
  }
  document.addEventListener("keydown", (event) => {
    if (typing(event) || !"jk".includes(event.key)) return;
    const here = document.activeElement.closest?.(".list a");
    const next = here ? (event.key === "j" ? here.nextElementSibling : here.previousElementSibling) : rows.firstElementChild;
    next?.focus();
  }, { signal });
  await more();
}

function form(run, f) {
  const text = (name, said, more = {}) => field(said, h("input", { name, value: f[name] || "", ...more }));
  return h("form", { class: "row end", role: "search", "aria-label": "Filters", onsubmit: (event) => {
    event.preventDefault();
    location.hash = to("pairs", run) + query(Object.fromEntries(new FormData(event.target)));
  } },
  field("Records", select(STAGES, f.stage || "", { name: "stage", onchange: (event) => event.target.form.requestSubmit() })),
  text("q", "Text"), text("principle", "Principle"), text("reason", "Dropped for"), text("dropped_at", "Dropped at", { size: 10 }),
  text("min_margin", "Least |p − 0.5|", { type: "number", min: "0", max: "0.5", step: "any" }), text("max_margin", "Most", { type: "number", min: "0", max: "0.5", step: "any" }),
  h("button", {}, "Filter"), Object.keys(f).length > 0 && link(to("pairs", run), "Clear"));
}

function preview(run, row, f) {
  const r = row.record;
  const what = {
    preference: () => [`${r.chosen} over ${r.chosen === "A" ? "B" : "A"}, p ${fixed(r.p_chosen)}`, r.comparison.prompt.messages.at(-1).content],
    judged: () => [`${r.verdict.label}${r.verdict.p_a === null ? "" : `, p of A ${fixed(r.verdict.p_a)}`}`, r.comparison.prompt.messages.at(-1).content],
    dropped: () => [`${r.unit} dropped at ${r.stage}: ${r.reason}`, r.detail || ""],
    candidate: () => [`${r.revisions.length} revisions`, r.revisions.at(-1)?.text ?? r.response.text],
    prompt: () => ["", r.messages.at(-1).content],
  }[row.stage] || (() => ["", ""]);
  const [told, text] = what();
  return h("a", { class: "line", href: to("pairs", run, row.ordinal) + query(f) }, h("span", { class: "muted small" }, `${row.ordinal} · ${row.stage}${told && " · "}`), h("span", { class: "small" }, line(told, 120)), h("div", {}, line(text, 200)));
}

export async function chain({ place, at, signal, naming }) {
  const [run, ordinal] = at.parts, f = filters(at), path = `/v1/runs/${encodeURIComponent(run)}`;
  naming(`${run}, prompt ${ordinal}`);
  const { rows } = await get(`${path}/prompts/${encodeURIComponent(ordinal)}`, signal);
  const of = (stage) => rows.filter((r) => r.stage === stage).map((r) => r.record);
  const pairs = rows.filter((r) => r.stage === "preference" || r.stage === "judged"), drops = of("dropped");
  const prompt = of("prompt")[0] || pairs[0]?.record.comparison.prompt;

  const address = (n) => to("pairs", run, n) + query(f);
  async function next() {
    let after = `${ordinal}.999999999`;
    for (let i = 0; i < PATIENCE && after !== null; i++) {
      const page = await get(`${path}/rows` + query({ ...asked(f), limit: 1, after }), signal);
      if (page.rows.length) { location.hash = address(page.rows[0].ordinal); return; }
      after = page.next;
    }
  }
  const back = () => { if (Number(ordinal) > 0) location.hash = address(Number(ordinal) - 1); };
  document.addEventListener("keydown", (event) => {
    if (typing(event)) return;
    if (event.key === "j") next();
    if (event.key === "k") back();
  }, { signal });
  show(place,
    h("div", { class: "row" }, link(to("pairs", run) + query(f), "All"), h("button", { type: "button", onclick: back }, "Previous ", h("kbd", {}, "k")), h("button", { type: "button", onclick: next }, "Next that fits ", h("kbd", {}, "j"))),
    prompt && h("section", {}, h("h2", {}, "Prompt"), conversation(prompt.messages), prompt.tags?.length > 0 && h("p", { class: "muted small" }, `tags: ${prompt.tags.join(", ")}`)),
    pairs.length > 0 && h("section", {}, h("h2", {}, "Pairs"), pairs.map(pair)),
    h("section", {}, h("h2", {}, "Replies, critiques and revisions"), h("div", { class: "cols" }, of("candidate").map(timeline))),
    drops.length > 0 && h("section", {}, h("h2", {}, "Dropped"), table(["What", "At", "Why", "Of"], drops.map((d) => [d.unit, d.stage, line(d.reason, 200), line(d.detail || "", 300)]))),
    of("score").length > 0 && h("section", {}, h("h2", {}, "Scores"), of("score").map((s) => h("pre", { class: "said" }, JSON.stringify(s, null, 1)))));
}

function pair(row) {
  const r = row.record, c = r.comparison, v = r.verdict;
  const marked = differences(c.a, c.b);
  const word = row.stage === "preference" ? `${r.chosen} is preferred, p ${fixed(r.p_chosen)}` : `not kept: ${v.label}`;
  const side = (name, text, from, i) => h("div", {}, h("h3", {}, name, from && h("span", { class: "muted small" }, ` ${from}`), r.chosen === name && h("span", { class: "good small" }, " chosen")), said(text, marked && marked[i]));
  return h("article", { class: "panel" }, h("h3", {}, word, r.key && h("span", { class: "muted small" }, ` ${r.key}`)),
    h("p", { class: "muted small" }, `p of A ${fixed(v.p_a, 3)}; `, v.consistent === null ? "one order only, or a vote that cannot be read" : v.consistent ? "both slot orders say the same" : "the slot orders disagree", v.why && [". ", line(v.why, 300)]),
    h("div", { class: "cols" }, side("A", c.a, c.a_from, 0), side("B", c.b, c.b_from, 1)),
    !marked && h("p", { class: "muted small" }, "Too long for word differences."), votes(v), members(v));
}

const ORDERS = [["ab", "A first"], ["ba", "B first"], [null, "each alone"]];

/** A line for each question, with what it was answered in either slot order. */
function votes(v) {
  if (!v.votes.length) return null;
  const orders = ORDERS.filter(([o]) => v.votes.some((x) => x.order === o)), questions = new Map();
  for (const x of v.votes) {
    const key = JSON.stringify([x.principle, x.member, x.sample]);
    questions.set(key, [...(questions.get(key) || []), x]);
  }
  const some = (pick) => v.votes.some(pick), scored = some((x) => x.scores);
  const extra = [[some((x) => x.member), "Member", (all) => all[0].member], [some((x) => x.sample), "Sample", (all) => all[0].sample],
    [some((x) => x.rationale), "Rationale", (all) => all.filter((x) => x.rationale).map((x) => said(x.rationale))],
    [some((x) => x.why || x.fault), "Note", (all) => line(all.flatMap((x) => [x.why, x.fault]).filter(Boolean).join("; "), 300)]].filter(([on]) => on);
  const head = orders.flatMap(([, name]) => [`${name}: says`, ["p of A", "n"], ["log p A", "n"], ["log p B", "n"], ...(scored ? [["scores", "n"]] : [])]);
  const cells = (x) => (x ? [x.label, fixed(x.p_a, 3), ...(x.logprobs ? x.logprobs.map((l) => fixed(l, 3)) : ["–", "–"]), ...(scored ? [x.scores ? x.scores.map((n) => fixed(n)).join(" / ") : "–"] : [])]
    : ["not asked", "", "", "", ...(scored ? [""] : [])]);
  const rows = [...questions.values()];
  const made = table(["Principle", ...head, ...extra.map(([, name]) => name)],
    rows.map((all) => [all[0].principle || "(none)", ...orders.flatMap(([o]) => cells(all.find((x) => x.order === o))), ...extra.map(([, , cell]) => cell(all))]), "Each principle's vote in either slot order; log-probabilities in nats");
  for (const [i, row] of [...made.querySelectorAll("tbody tr")].entries()) {
    if (new Set(rows[i].map((x) => x.label)).size > 1) for (let k = 0; k < orders.length; k++) row.children[1 + k * (scored ? 5 : 4)].classList.add("off");
  }
  return made;
}

function members(v) {
  return v.members.length > 0 && table(["Member", "Says", ["p of A", "n"], ["Weight", "n"], "Model", "Note"], v.members.map((m) => [m.name, m.label, percent(m.p_a), fixed(m.weight), m.model, m.why]), "The panel");
}

function timeline(c) {
  let before = c.response.text;
  const steps = c.revisions.map((r) => {
    const item = [r.critique && h("li", {}, h("div", { class: "what" }, `round ${r.round}, critique under ${r.critique.principles.join(", ")}`), said(r.critique.text)),
      h("li", {}, h("div", { class: "what" }, `round ${r.round}, revision`, r.flags.length > 0 && h("span", { class: "warn" }, ` ${r.flags.join(", ")}`), r.text === before && " (nothing changed)"), changed(before, r.text))];
    before = r.text;
    return item;
  });
  return h("article", {}, h("h3", {}, `Sample ${c.response.index}`, h("span", { class: "muted small" }, ` by ${c.response.model}`)),
    h("ol", { class: "timeline" }, h("li", {}, h("div", { class: "what" }, "reply", c.response.finish === "length" && h("span", { class: "warn" }, " cut at the longest length")), said(c.response.text)), steps));
}
