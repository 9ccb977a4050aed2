// A new run: the recipe is checked as it is typed, with what it would cost.

import { count, field, h, later, show, table, to } from "./dom.js";
import { get, post } from "./api.js";
import { problem } from "./text.js";
import { editor } from "./editor.js";

const RECIPE = `# What the bundled toy model makes of its own prompts; every setting: tenet schema recipe
prompts:
  path: prompts.jsonl
  dedup: near
constitution: nano
models:
  nano: {kind: vllm, model: "nano:assistant"}
respond:
  samples: 2
  sampling: {max_tokens: 160}
revise:
  rounds: 2
  principles: 5
  sampling: {max_tokens: 200, temperature: 0.3}
pairs:
  - {kind: samples}
  - {kind: initial_vs_revision, per_prompt: 2}
judge: {kind: pairwise, order: both, principles: 8}
keep: {margin: 0.02}
`;

export async function view({ place, at, signal, naming }) {
  naming("New run");
  const from = at.query.get("from");
  const given = from ? (await get(`/v1/runs/${encodeURIComponent(from)}`, signal)).recipe : RECIPE;
  const name = h("input", { pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}", placeholder: "made up from the time", autocomplete: "off" });
  const limit = h("input", { type: "number", min: "1", value: from ? "" : "50" });
  const prompts = h("textarea", { rows: "3", placeholder: "in place of the recipe's file" });
  const start = h("button", { class: "main", disabled: true }, "Start");
  const told = h("div", { "aria-live": "polite" }), wrong = h("div");
  const recipe = editor({ value: given, label: "Recipe (YAML)", rows: 22, oninput: later(300, () => check()) });

  const body = () => {
    const lines = prompts.value.split("\n").map((x) => x.trim()).filter(Boolean);
    return { recipe: recipe.value, ...(limit.value && { limit: Number(limit.value) }), ...(lines.length && { prompts: lines }) };
  };
  let asking = null;
  async function check() {
    asking?.abort();
    asking = new AbortController();
    signal.addEventListener("abort", () => asking.abort());
    start.disabled = true;
    try {
      const found = await post("/v1/recipes/check", body(), asking.signal);
      start.disabled = !found.valid;
      recipe.mark(found.errors.map((e) => Number(/line (\d+)/.exec(e.where)?.[1])).filter(Boolean));
      show(told, found.valid ? plan(found.plan) : [h("h2", {}, "That is not a recipe yet"), h("ul", { class: "plain findings" }, found.errors.map((e) => fault(e, recipe)))]);
    } catch (error) { if (error.name !== "AbortError") show(told, problem(error)); }
  }
  for (const x of [limit, prompts]) x.addEventListener("input", later(300, () => check()));

  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    start.disabled = true;
    try {
      const made = await post("/v1/runs", { ...body(), ...(name.value && { name: name.value }) });
      location.hash = to("runs", made.name);
    } catch (error) { show(wrong, problem(error)); start.disabled = false; }
  } },
  h("div", { class: "row end" }, field("Name", name), field("First N prompts", limit), start), wrong,
  h("div", { class: "cols" }, h("div", {}, recipe.element, h("details", {}, h("summary", {}, "Prompts of your own"), field("One a line", prompts))), told));
  show(place, form);
  show(told, h("p", { class: "muted" }, "Checking …"));
  await check();
}

function fault(e, recipe) {
  const at = Number(/line (\d+)/.exec(e.where)?.[1]);
  return h("li", {}, at ? h("button", { type: "button", onclick: () => recipe.select(at) }, e.where) : h("b", {}, e.where), " ", h("span", { class: "bad" }, e.what), e.fix && h("div", { class: "muted small" }, e.fix));
}

function plan(p) {
  return [h("h2", {}, "What it would do"), h("ul", {}, [p.constitution, ...p.lines].map((x) => h("li", {}, x))),
    table(["Stage", "Model", ["Calls", "n"], ["Tokens in", "n"], ["Tokens out, at most", "n"]], p.stages.map((s) => [s.name, s.model, count(s.calls), count(s.tokens_in), count(s.tokens_out)])),
    h("h2", {}, "What it would ask"), p.examples.slice(0, 12).map((e) => h("details", {}, h("summary", {}, e.title), h("div", { class: "said" }, e.text)))];
}
