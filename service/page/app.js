// Where the page begins: the session, and which view an address means. Views live in modules of their own.

import { h, link, show } from "./dom.js";
import { call, get, Problem, session } from "./api.js";
import { problem } from "./text.js";
import * as agreement from "./agreement.js";
import * as compare from "./compare.js";
import * as constitution from "./constitution.js";
import * as label from "./label.js";
import * as models from "./models.js";
import * as pairs from "./pairs.js";
import * as run from "./run.js";
import * as runs from "./runs.js";
import * as start from "./start.js";

const main = document.getElementById("main");
let left = new AbortController(), began = false;

const VIEWS = {
  runs: (at) => (at.parts.length ? run.view : runs.view),
  new: () => start.view,
  compare: () => compare.view,
  pairs: (at) => (at.parts.length > 1 ? pairs.chain : at.parts.length ? pairs.list : pairs.choose),
  label: (at) => (at.parts.length ? label.work : label.choose),
  constitutions: (at) => (at.parts.length ? constitution.edit : constitution.list),
  agreement: (at) => (at.parts.length ? agreement.view : agreement.choose),
  models: () => models.view,
};

function address() {
  const [path, rest = ""] = location.hash.replace(/^#\/?/, "").split("?");
  let parts = path.split("/").filter(Boolean);
  try { parts = parts.map(decodeURIComponent); } catch { parts = []; }
  return { name: parts[0] || "runs", parts: parts.slice(1), query: new URLSearchParams(rest) };
}

async function go() {
  left.abort();
  left = new AbortController();
  const signal = left.signal, at = address();
  const choose = Object.hasOwn(VIEWS, at.name) ? VIEWS[at.name] : null;
  for (const a of document.querySelectorAll("#nav a")) {
    const mine = a.hash === `#/${at.name}` || (a.hash === "#/runs" && ["new", "compare"].includes(at.name));
    if (mine) a.setAttribute("aria-current", "page"); else a.removeAttribute("aria-current");
  }
  const place = h("div");
  const title = h("h1", { tabindex: "-1" }, "…");
  const naming = (text) => { title.textContent = text; document.title = `${text} · tenet`; };
  show(main, title, place);
  main.setAttribute("aria-busy", "true");
  try {
    if (!choose) throw new Problem(404, "There is no such page.");
    await choose(at)({ place, at, signal, naming });
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === 401) return void logIn();
    naming(title.textContent === "…" ? "That did not work" : title.textContent);
    show(place, problem(error));
  }
  if (!signal.aborted) main.setAttribute("aria-busy", "false");
  // After a step inside the page a screen reader goes on at the new heading; a page that was just opened begins at its top.
  if (began && !signal.aborted && !main.contains(document.activeElement)) title.focus({ preventScroll: true });
  began = true;
}

function who() {
  show(document.getElementById("who"), session.keys && session.name && [session.name,
    h("button", { type: "button", onclick: async () => { await call("DELETE", "/v1/session"); location.reload(); } }, "Log out")]);
}

function logIn() {
  document.title = "Log in · tenet";
  main.setAttribute("aria-busy", "false");
  const key = h("input", { type: "password", name: "key", autocomplete: "current-password", required: true });
  const wrong = h("div");
  const form = h("form", { class: "row end", onsubmit: async (event) => {
    event.preventDefault();
    try {
      Object.assign(session, await call("POST", "/v1/session", { key: key.value }));
      who();
      go();
    } catch (error) { show(wrong, problem(error)); key.select(); }
  } }, h("label", {}, "Key", key), h("button", { class: "main" }, "Log in"));
  show(main, h("h1", {}, "Log in"), h("p", {}, "A key is made by ", h("code", {}, "tenet keys create NAME --role run"), "."), form, wrong);
  key.focus();
}

document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
window.addEventListener("hashchange", go);

try {
  Object.assign(session, await get("/v1/session"));
  who();
  await go();
} catch (error) {
  if (error.status === 401) logIn();
  else show(main, h("h1", {}, "The service does not answer"), h("p", {}, error.message), link("#/runs", "Try again"));
}
