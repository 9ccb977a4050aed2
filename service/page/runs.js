// The list of runs, alive while one of them is.

import { bar, count, fixed, h, link, redraw, show, state, table, to } from "./dom.js";
import { every, get, may, query } from "./api.js";

const ACTIVE = ["queued", "running", "stopping"];

export async function view({ place, at, signal, naming }) {
  naming("Runs");
  const chosen = new Set();
  const compare = h("button", { type: "button", disabled: true, onclick: () => { location.hash = to("compare", ...chosen); } }, "Compare two");
  const rows = h("div"), after = at.query.get("after") || "";
  show(place, h("div", { class: "row" }, may("run") && h("a", { class: "button main", href: "#/new" }, "New run"), compare), rows);

  const box = (name) => h("input", { type: "checkbox", "aria-label": `Choose ${name} to compare`, checked: chosen.has(name), onchange: (event) => {
    if (event.target.checked) chosen.add(name); else chosen.delete(name);
    compare.disabled = chosen.size !== 2;
  } });
  let before = "";
  async function load() {
    const page = await get("/v1/runs" + query({ limit: 50, after }), signal);
    const text = JSON.stringify(page);
    // What has not changed is left as it is: a reader's place and choice stay.
    if (text !== before) redraw(rows, page.runs.length ? list(page.runs, box) : empty(), page.next && link("#/runs" + query({ after: page.next }), "Older runs"));
    before = text;
    return page.runs.some((r) => ACTIVE.includes(r.state));
  }
  let busy = await load(), calm = 0;
  every(1000, signal, async () => {
    if (busy || ++calm % 5 === 0) busy = await load();
  });
}

function empty() {
  return h("p", { class: "muted" }, "There is no run in this workspace yet. ", may("run") && link("#/new", "Start one"), ".");
}

function list(runs, box) {
  const head = ["", "Run", "State", "Prompts", ["", "n"], ["Kept", "n"], ["Per second", "n"], "Most dropped for", "Constitution", "Made"];
  const made = table(head, runs.map((r) => {
    const p = r.progress, drop = Object.entries(p?.drops || {}).sort((a, b) => b[1] - a[1])[0];
    return [box(r.name), link(to("runs", r.name), r.name), state(r.state),
      p ? bar(p.total ? p.done / p.total : 0, `prompts of ${r.name}`) : r.stage, p ? `${count(p.done)} of ${count(p.total)}` : "", p ? count(p.kept) : "",
      p && ACTIVE.includes(r.state) ? fixed(p.rate, 1) : "", drop ? `${drop[0]} (${count(drop[1])})` : "", r.constitution,
      r.created ? r.created.replace("T", " ").replace("Z", "") : r.by];
  }), "");
  // On a phone the name, state and progress are what is left.
  for (const row of made.querySelectorAll("tr")) for (const i of [0, 6, 7, 8, 9]) row.children[i].classList.add("less");
  made.firstChild.classList.add("wide");
  return made;
}
