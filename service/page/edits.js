// What an edit of a constitution changed, by meaning.

import { h } from "./dom.js";
import { line, said, pieces, signed } from "./text.js";

const plain = (x) => (typeof x === "string" ? x : x === null || x === undefined ? "" : JSON.stringify(x));

export function edit(found) {
  if (found.old_hash === found.new_hash && !found.changes.length) return h("p", { class: "muted" }, "Both mean the same.");
  const about = found.around.map((f) => h("li", {}, h("b", {}, f.name), ": ", h("del", {}, line(plain(f.old), 300)), " ", h("ins", {}, line(plain(f.new), 300))));
  return h("div", {}, about.length > 0 && h("ul", { class: "plain" }, about), found.changes.map(change));
}

function change(c) {
  const asked = c.stages.length ? `asks anew: ${c.stages.join(", ")}` : "no question changes";
  return h("section", { class: "panel" }, h("h3", {}, `${c.kind}: `, line(c.id, 80), c.became && [" → ", line(c.became, 80)]), h("p", { class: "muted small" }, asked, c.inherited && "; inherited"),
    c.fields.map((f) => h("div", {}, h("div", { class: "muted small" }, f.name), words(plain(f.old), plain(f.new)))));
}

function words(before, after) {
  const marked = pieces(before, after);
  if (!marked) return [said(before), said(after)];
  // Where nothing is left of the old words, marks alone would run together.
  if (before && after && !marked.some(([op, t]) => op === "same" && t.trim())) return said(before + after, [h("del", {}, signed(before)), " → ", h("ins", {}, signed(after))]);
  return said(before + after, marked.map(([op, t]) => (op === "same" ? signed(t) : h(op === "out" ? "del" : "ins", {}, signed(t)))));
}
