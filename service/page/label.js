// Labelling: blind, by keyboard, and nothing that a rater said is lost on the way.

import { bar, count, duration, facts, field, h, link, show, table, tell, to, typing } from "./dom.js";
import { every, get, may, post, query, session } from "./api.js";
import { conversation, differences, line, problem, said } from "./text.js";

const KEYS = { 1: "left", 2: "right", 3: "tie" };
const SAID = { left: "left is better", right: "right is better", tie: "a tie" };

export async function choose({ place, at, signal, naming }) {
  naming("Label");
  const { sets } = await get("/v1/labels", signal);
  const rows = may("read") ? await Promise.all(sets.map((s) => get(`/v1/labels/${encodeURIComponent(s)}/progress`, signal))) : sets.map((set) => ({ set }));
  show(place, sets.length
    ? may("read")
      ? table(["Set", "Labels", ["", "n"], "From", "Raters", ""], rows.map((s) => [link(to("label", s.set), s.set), bar(s.wanted ? s.labels / s.wanted : 0, `labels of ${s.set}`), `${count(s.labels)} of ${count(s.wanted)}`, s.run,
        s.raters.map((r) => `${r.rater} ${r.labels}`).join(", "), link(to("agreement", s.set), "agreement")]))
      : h("ul", { class: "plain" }, sets.map((s) => h("li", {}, link(to("label", s), s))))
    : h("p", { class: "muted" }, "There is no set of pairs to label yet."),
  may("run") && creation(at.query.get("run") || ""));
}

function creation(run) {
  const input = (name, value, more = {}) => h("input", { name, value, ...more });
  const wrong = h("div");
  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(event.target));
    const body = { name: given.name, run: given.run, n: Number(given.n), overlap: Number(given.overlap), raters: Number(given.raters), attention: Number(given.attention), instructions: given.instructions, reveal: "reveal" in given };
    try { await post("/v1/labels", body); location.hash = to("label", given.name); } catch (error) { show(wrong, problem(error)); }
  } },
  h("div", { class: "row end" }, field("Name", input("name", "", { required: true, pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}" })), field("Run", input("run", run, { required: true })), field("Pairs, at most", input("n", "100", { type: "number", min: "1" })),
    field("Share that several label", input("overlap", "0.25", { type: "number", min: "0", max: "1", step: "any" })), field("How many label those", input("raters", "3", { type: "number", min: "1" })),
    field("Share of attention checks", input("attention", "0.05", { type: "number", min: "0", max: "0.5", step: "any" }))),
  field("What raters are told", h("textarea", { name: "instructions", rows: "2" })),
  h("div", { class: "row" }, field("Show the judge's word once a rater is done", h("input", { type: "checkbox", name: "reveal" }), { class: "check" }), h("button", { class: "main" }, "Make the set")), wrong);
  return h("details", { open: run !== "" }, h("summary", {}, "New set from a run"), form);
}

export async function work(view) {
  const { place, at, naming } = view, set = at.parts[0];
  naming(`Label ${set}`);
  const rater = session.name || at.query.get("rater") || "";
  if (rater) return await labelling(view, set, rater);
  let last = "";
  try { last = localStorage.getItem("tenet rater") || ""; } catch { /* storage is off */ }
  const name = h("input", { name: "rater", required: true, pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}", value: last, autocomplete: "username" });
  show(place, h("form", { class: "row end", onsubmit: (event) => {
    event.preventDefault();
    try { localStorage.setItem("tenet rater", name.value); } catch { /* storage is off */ }
    location.hash = to("label", set) + query({ rater: name.value });
  } }, field("Who labels?", name), h("button", { class: "main" }, "Begin")));
  name.focus();
}

/** Labels that the service has not confirmed yet, kept over a reload. */
function queue(set, rater) {
  const key = `tenet unsaved ${set} ${rater}`;
  const read = () => { try { return JSON.parse(localStorage.getItem(key) || "[]"); } catch { return []; } };
  let waiting = read();
  const keep = () => { try { if (waiting.length) localStorage.setItem(key, JSON.stringify(waiting)); else localStorage.removeItem(key); } catch { /* storage is off */ } };
  return {
    get size() { return waiting.length; },
    add(label) { waiting = [...waiting.filter((x) => x.item !== label.item), label]; keep(); },
    /** Sends what waits, in order; a label that the service refuses is taken out and told. */
    async send(path) {
      while (waiting.length) {
        const label = waiting[0];
        try { await post(path, label); } catch (error) {
          if (!error.status || error.status === 429 || error.status >= 500) throw error;
          waiting = waiting.filter((x) => x !== label);
          keep();
          throw error;
        }
        waiting = waiting.filter((x) => x !== label);
        keep();
      }
    },
  };
}

async function labelling({ place, signal }, set, rater) {
  const path = `/v1/labels/${encodeURIComponent(set)}`, who = query(session.name ? {} : { rater });
  const unsaved = queue(set, rater);
  const top = h("div", { class: "row" }), pair = h("div"), foot = h("div", { class: "labelbar" }), wrong = h("div"), people = h("div");
  show(place, top, wrong, pair, foot, people);
  let open = null, shown = null, given = 0, left = 0, since = 0, told = "", mine = [], at = -1, busy = false;

  async function history() {
    mine = [];
    for (let after = 0; after !== null;) {
      const page = await get(`${path}/mine` + query({ ...(session.name ? {} : { rater }), limit: 200, after }), signal);
      mine.push(...page.labels);
      after = page.next;
    }
  }

  async function next() {
    const found = await post(`${path}/next${who}`, undefined, signal);
    [open, given, left, told] = [found.pair, found.given, found.left, found.instructions];
    at = -1;
    if (!open) await history();
    draw(open);
  }

  function draw(what) {
    shown = what;
    since = performance.now();
    show(top, h("span", {}, rater), bar(given + left ? given / (given + left) : 1, "labelled"), h("span", { class: "muted" }, `${count(given)} labelled, ${count(left)} may still come`),
      h("span", { id: "saved", class: unsaved.size ? "bad" : "muted" }, unsaved.size ? `${unsaved.size} not saved yet, trying again` : given ? "all saved" : ""));
    if (!what) { show(pair, done()); show(foot); return; }
    const marked = differences(what.left, what.right, 0.3), before = at >= 0 ? mine[at].label : "";
    const side = (name, text, i) => h("section", {}, h("h2", {}, name), said(text, marked && marked[i], { id: name.toLowerCase() }));
    show(pair, told && h("details", {}, h("summary", {}, "What to look for"), said(told)), at >= 0 && h("p", { class: "warn" }, `You said: ${SAID[before]}. Another key changes it; j goes on.`),
      h("section", {}, h("h2", {}, "Prompt"), conversation(what.prompt)), h("div", { class: "cols" }, side("Left", what.left, 0), side("Right", what.right, 1)));
    const button = (key, said, label) => h("button", { type: "button", "aria-pressed": before === label ? "true" : undefined, onclick: () => give(label) }, h("kbd", {}, key), " ", said);
    show(foot, h("div", { class: "row" }, button("1", "Left is better", "left"), button("2", "Right is better", "right"), button("3", "Tie", "tie"),
      h("button", { type: "button", onclick: undo }, h("kbd", {}, "u"), " Undo"), h("button", { type: "button", onclick: () => step(-1) }, h("kbd", {}, "k"), " Back"), h("button", { type: "button", onclick: () => step(1) }, h("kbd", {}, "j"), " On")));
  }

  function done() {
    const judged = mine.some((m) => m.judge);
    const same = mine.filter((m) => m.judge === m.label).length, known = mine.filter((m) => m.judge).length;
    if (!mine.length) return h("p", {}, "There is no pair for you in this set: each has the labels it wants.");
    return [h("h2", {}, "Nothing is left for you"), h("p", {}, `You gave ${count(given)} labels. Thank you.`), judged && h("p", {}, `The judge says the same on ${count(same)} of ${count(known)}.`),
      table(["Prompt", "You", ...(judged ? ["Judge"] : [])], mine.map((m) => [line(m.prompt.at(-1).content, 100), SAID[m.label], ...(judged ? [m.judge ? SAID[m.judge] : "–"] : [])])),
      may("read") && link(to("agreement", set), "See the agreement")];
  }

  async function one(work) {
    if (busy) return; // a key that is held down gives one label
    busy = true;
    show(wrong);
    try { await work(); } catch (error) {
      if (signal.aborted) return;
      if (error.status) show(wrong, problem(error)); else draw(shown);
    } finally { busy = false; }
  }

  const give = (label) => one(async () => {
    if (!shown) return;
    const spent = at >= 0 ? {} : { seconds: Math.min(86400, Math.round(performance.now() - since) / 1000) };
    unsaved.add({ item: shown.item, label, ...spent });
    await unsaved.send(`${path}/labels${who}`);
    if (at >= 0) { mine[at].label = label; await move(1); } else await next();
  });
  const undo = () => one(async () => { open = await post(`${path}/undo${who}`); await next(); tell("Taken back"); });
  const step = (by) => one(() => move(by));
  async function move(by) {
    if (at < 0 && by > 0) return;
    if (at < 0) { await history(); at = mine.length; }
    const to = at + by;
    if (to < 0) { if (at === mine.length) at = -1; return; }
    if (to >= mine.length) { at = -1; draw(open); } else { at = to; draw(mine[at]); }
  }

  document.addEventListener("keydown", (event) => {
    if (typing(event) || event.repeat) return;
    if (event.key in KEYS) give(KEYS[event.key]);
    else if (event.key === "u") undo();
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
  }, { signal });
  every(2000, signal, async () => { if (unsaved.size && !busy) await one(async () => { await unsaved.send(`${path}/labels${who}`); await next(); }); });
  if (may("read")) {
    const others = async () => {
      const p = await get(`${path}/progress`, signal);
      show(people, h("details", {}, h("summary", {}, `All raters: ${count(p.labels)} of ${count(p.wanted)} labels`), table(["Rater", ["Labels", "n"], ["Checks passed", "n"], ["A pair takes", "n"]],
        p.raters.map((r) => [r.rater, count(r.labels), r.checks ? `${r.passed} of ${r.checks}` : "–", duration(r.seconds)]))), facts([]));
    };
    await others();
    every(5000, signal, async () => { if (!people.firstChild?.open) await others(); });
  }
  try { await unsaved.send(`${path}/labels${who}`); } catch { /* it is tried again in a moment */ }
  await next();
}
