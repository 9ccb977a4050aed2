// Shows what models and people wrote: as text, whatever it is, with word differences and signs that hide made visible.

import { h, put } from "./dom.js";

const LONG = 20_000;
const CELLS = 4_000_000;
// Signs that turn the direction of what follows, or are not to be seen.
const SIGNS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

/** Text with each sign of direction in an isolate of its own, where it ends with itself; not a character is lost. */
export function signed(text) {
  const made = [];
  let at = 0;
  for (const found of text.matchAll(SIGNS)) {
    if (made.length > 2000) break;
    made.push(text.slice(at, found.index));
    const code = "U+" + found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    made.push(h("bdi", { class: "sign", "data-code": code }, found[0]));
    at = found.index + found[0].length;
  }
  made.push(text.slice(at));
  return made.filter((x) => x !== "");
}

/** A block of text. Very long ones are cut until somebody asks for the rest. */
export function said(text, parts = null, attributes = {}) {
  const box = h("div", { class: "said", dir: "auto", ...attributes });
  if (text === "") return put(box, h("span", { class: "muted" }, "(empty)"));
  if (text.length <= LONG) return put(box, parts || signed(text));
  let cut = LONG;
  if (/[\ud800-\udbff]/.test(text[cut - 1])) cut += 1; // never between the halves of a character
  put(box, signed(text.slice(0, cut)));
  const more = h("button", { type: "button", onclick: () => { box.replaceChildren(...put(h("div"), signed(text)).childNodes); box.focus(); } },
    `Show all ${text.length.toLocaleString("en")} characters`);
  box.tabIndex = 0;
  return put(box, [" … ", more]);
}

/** A line of text, for lists and cells. */
export function line(text, most = 160) {
  const one = text.slice(0, 4 * most).replace(/\s+/g, " ").trim();
  const characters = Array.from(one);
  const cut = characters.length > most;
  return h("bdi", { class: "inline" }, signed(cut ? characters.slice(0, most).join("") + "…" : one));
}

/**
 * Two lists of nodes: the first with what only it says marked, and the second. Null where that would take too long, or
 * where less than `least` of the longer text is the same, so that marks would say nothing.
 */
export function differences(first, second, least = 0) {
  const marked = pieces(first, second);
  if (!marked) return null;
  const same = marked.reduce((n, [op, t]) => n + (op === "same" ? t.trim().length : 0), 0);
  if (same < least * Math.max(first.length, second.length)) return null;
  // One mark for both sides: neither reply is the right one.
  const side = (mine) => marked.filter(([op]) => op === "same" || op === mine).map(([op, t]) => (op === "same" ? signed(t) : h("mark", {}, signed(t)))).flat();
  return [side("out"), side("in")];
}

/** [op, text] pieces that turn one text into the other by words: same, out, in. */
export function pieces(first, second) {
  if (first.length + second.length > 2 * LONG) return null;
  const a = first.match(/\s+|\S+/g) || [], b = second.match(/\s+|\S+/g) || [];
  let start = 0, tail = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (tail < a.length - start && tail < b.length - start && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const n = a.length - start - tail, m = b.length - start - tail;
  if (n * m > CELLS) return null;
  const made = [];
  const add = (op, text) => { if (made.length && made.at(-1)[0] === op) made.at(-1)[1] += text; else made.push([op, text]); };
  for (let i = 0; i < start; i++) add("same", a[i]);
  const width = m + 1, longest = new Uint32Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) {
    longest[i * width + j] = a[start + i] === b[start + j] ? longest[(i + 1) * width + j + 1] + 1
      : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  }
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[start + i] === b[start + j]) { add("same", a[start + i]); i++; j++; }
    else if (j >= m || (i < n && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) add("out", a[start + i++]);
    else add("in", b[start + j++]);
  }
  for (let k = a.length - tail; k < a.length; k++) add("same", a[k]);
  return made;
}

/** What changed from one text to the next, in one block. */
export function changed(before, after) {
  const marked = pieces(before, after);
  const tags = { out: "del", in: "ins" };
  return said(after, marked && marked.map(([op, t]) => (op === "same" ? signed(t) : h(tags[op], {}, signed(t)))));
}

/** A conversation; a single question stands by itself. */
export function conversation(messages) {
  return messages.map((m) => [messages.length > 1 && h("div", { class: "muted small" }, m.role), said(m.content)]);
}

/** A problem as the service told it. */
export function problem(error) {
  const faults = (error.errors || []).map((f) => h("li", {}, f.where && h("b", {}, `${f.where}: `), f.what, f.fix && h("span", { class: "muted" }, ` (${f.fix})`)));
  return h("div", { class: "panel", role: "alert" }, h("p", { class: "bad" }, faults.length ? "That cannot be used." : error.message), faults.length > 0 && h("ul", {}, faults));
}
