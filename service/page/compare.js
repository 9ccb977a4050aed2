// Two runs side by side: settings, constitution, what became of the same prompts, labels that changed.

import { count, facts, fixed, h, link, show, table, to } from "./dom.js";
import { get } from "./api.js";
import { line } from "./text.js";
import { edit } from "./edits.js";

export async function view({ place, at, signal, naming }) {
  const [first, second] = at.parts;
  naming("Two runs");
  show(place, h("p", { class: "muted" }, "Reading both runs …"));
  const found = await get(`/v1/runs/${encodeURIComponent(first)}/compare/${encodeURIComponent(second)}`, signal);
  const kinds = ["same", "changed", "first only", "second only"];
  show(place,
    h("div", { class: "row" }, link(to("runs", first), first), "→", link(to("runs", second), second), link(to("compare", second, first), "the other way round")),
    facts([...Object.entries(found.prompts).map(([k, n]) => [`prompts, ${k}`, count(n)]), ...Object.entries(found.labels).map(([k, n]) => [`labels, ${k}`, count(n)])]),
    h("h2", {}, "Settings that differ"), found.settings.length ? h("ul", { class: "plain" }, found.settings.map((s) => h("li", {}, h("code", {}, s)))) : h("p", { class: "muted" }, "None."),
    h("h2", {}, "Rows"), table(["Stage", ...kinds.map((k) => [k, "n"])], Object.entries(found.rows).map(([stage, n]) => [stage, ...kinds.map((k) => count(n[k]))])),
    h("h2", {}, `Labels that changed: ${count(found.changes.length + found.changes_left_out)}`),
    found.changes.length > 0 && table(["Prompt", "Pair", "Before", "After", ["p of A before", "n"], ["after", "n"]],
      found.changes.map((c) => [line(c.prompt), c.key, c.before, c.after, fixed(c.p_before), fixed(c.p_after)])),
    found.changes_left_out > 0 && h("p", { class: "muted" }, `${count(found.changes_left_out)} more: tenet runs diff lists all.`),
    h("h2", {}, "Constitution"), edit(found.constitution));
}
