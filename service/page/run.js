// One run: what it does while it does it, what became of its prompts, what it cost, and its files.

import { bars, count, duration, facts, fixed, h, link, redraw, show, state, table, tell, to } from "./dom.js";
import { follow, get, may, post, query } from "./api.js";
import { problem } from "./text.js";

const ACTIVE = ["queued", "running", "stopping"];

export async function view({ place, at, signal, naming }) {
  const name = at.parts[0], path = `/v1/runs/${encodeURIComponent(name)}`;
  naming(name);
  const head = h("div", { "aria-live": "polite" }), live = h("div"), rest = h("div"), wrong = h("div");
  show(place, head, wrong, live, rest);
  let run = await get(path, signal), busy = false, again = false, said = "";
  const warnings = [];

  const act = (what, said) => h("button", { type: "button", onclick: async () => {
    show(wrong);
    try { run = await post(`${path}/${what}`); draw(); if (what === "resume") watch(); } catch (error) { show(wrong, problem(error)); }
  } }, said);

  function draw() {
    const active = ACTIVE.includes(run.state), mine = run.by === "service" && may("run");
    const now = JSON.stringify([run.state, run.stage, run.reason, warnings, run.records.outcome > 0]);
    if (now !== said) redraw(head, h("div", { class: "row" }, state(run.state), run.stage && h("span", { class: "muted" }, run.stage),
      h("a", { class: "button", href: to("pairs", name) }, "Pairs"),
      mine && active && run.state !== "stopping" && act("cancel", "Stop"),
      mine && active && act("cancel?now=true", "Stop at once"),
      mine && !active && run.state !== "whole" && act("resume", "Resume"),
      mine && run.recipe && link("#/new" + query({ from: name }), "Start another from this recipe"),
      may("run") && run.records.outcome > 0 && link("#/label" + query({ run: name }), "Have its pairs labelled")),
    run.reason && h("p", { class: "warn" }, run.reason), warnings.map((w) => h("p", { class: "warn" }, w)));
    said = now; // a button that is being pressed must not be taken away for every event
    redraw(live, progress(run, name));
  }

  // The stream tells when something happened; the counts are asked for, at most one request at a time.
  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      do {
        again = false;
        run = await get(path, signal);
        draw();
      } while (again && !signal.aborted);
    } catch (error) { if (!signal.aborted) show(wrong, problem(error)); } finally { busy = false; }
  }

  function watch() {
    follow(`${path}/events`, signal, async (kind, event) => {
      if (kind === "warning" && !warnings.includes(event.text)) warnings.push(event.text);
      await refresh();
      if (kind === "end" && !signal.aborted) { tell(`${name}: ${event.state}`); await ended(); }
    });
  }

  async function ended() {
    const { files } = await get(`${path}/files`, signal);
    show(rest, files.length > 0 && [h("h2", {}, "Files"), table(["File", ["Rows", "n"], ["KiB", "n"]], files.map((f) =>
      [h("a", { href: `${path}/files/${encodeURIComponent(f.name)}`, download: "" }, f.name), f.rows === null ? "" : count(f.rows), count(Math.ceil(f.bytes / 1024))]))],
    run.recipe && h("details", {}, h("summary", {}, "Recipe"), h("pre", { class: "said", tabindex: "0" }, run.recipe)));
  }

  draw();
  if (ACTIVE.includes(run.state)) watch(); else await ended();
}

function progress(run, name) {
  const p = run.progress, r = run.records, planned = run.estimate?.stages || [];
  const judged = (r.preference || 0) + (r.judged || 0);
  const made = sum(run.drops.pair) + (r.preference || 0); // every pair ends as a preference or dropped
  const replies = planned.find((s) => s.name === "respond")?.calls || 0;
  const calls = planned.reduce((n, s) => n + s.calls, 0), paid = Object.values(run.usage).reduce((n, u) => n + u.calls, 0);
  const of = (n, all) => (all ? `${count(n)} of ${count(all)}` : count(n));
  const rows = [];
  if (p) rows.push(["Prompts ended", p.total ? p.done / p.total : 0, of(p.done, p.total)]);
  rows.push(["Replies, revised", replies ? (r.candidate || 0) / replies : r.candidate ? 1 : 0, of(r.candidate || 0, replies)]);
  rows.push(["Pairs judged", made ? judged / made : 0, of(judged, made)]);
  rows.push(["Preferences kept", judged ? (r.preference || 0) / judged : 0, of(r.preference || 0, judged)]);
  if (calls) rows.push(["Calls paid", paid / calls, `${count(paid)}, planned ${count(calls)}`]);
  const a = run.agreement;
  return [
    facts([["rate", p && ACTIVE.includes(run.state) ? `${fixed(p.rate, 1)} prompts/s` : ""], ["left", p && p.eta_s !== null && ACTIVE.includes(run.state) ? duration(p.eta_s) : ""],
      ["took", run.seconds === null ? "" : duration(run.seconds)], ["constitution", run.constitution && h("span", {}, run.constitution, " ", h("code", {}, run.constitution_hash.slice(0, 8)))],
      ["both orders agree", a.both_orders ? `${count(a.consistent)} of ${count(a.both_orders)}` : ""],
      ["first slot chosen", a.readable_votes ? `${count(a.first_slot)} of ${count(a.readable_votes)} votes` : ""],
      ["longer chosen", a.uneven ? `${count(a.longer_chosen)} of ${count(a.uneven)}` : ""], ["starts", run.attempts > 1 ? run.attempts : ""]]),
    h("div", { class: "cols" },
      h("section", {}, h("h2", {}, "Stages"), bars(rows)),
      h("section", {}, h("h2", {}, "Dropped, by reason"), drops(run, name))),
    Object.keys(run.usage).length > 0 && h("section", {}, h("h2", {}, "Cost"), table(["Engine", ["Calls", "n"], ["Prompt tokens", "n"], ["of these cached", "n"], ["Reply tokens", "n"]],
      Object.entries(run.usage).map(([engine, u]) => [engine, count(u.calls), count(u.prompt_tokens), count(u.cached_tokens), count(u.completion_tokens)]))),
  ];
}

const sum = (tree) => Object.values(tree || {}).reduce((n, x) => n + (typeof x === "number" ? x : sum(x)), 0);

function drops(run, name) {
  const rows = [];
  for (const [unit, stages] of Object.entries(run.drops)) for (const [stage, reasons] of Object.entries(stages)) for (const [reason, n] of Object.entries(reasons)) rows.push([unit, stage, reason, n]);
  if (!rows.length) return h("p", { class: "muted" }, "Nothing was dropped.");
  const most = Math.max(...rows.map((x) => x[3]));
  rows.sort((x, y) => y[3] - x[3]);
  return bars(rows.map(([unit, stage, reason, n]) => [link(to("pairs", name) + query({ stage: "dropped", reason, dropped_at: stage }), `${unit}: ${reason} (${stage})`), n / most, count(n)]));
}
