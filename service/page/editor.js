// A text field for YAML with line numbers and marks on lines that something is said of.

import { h } from "./dom.js";

export function editor({ value, label, rows, oninput }) {
  const area = h("textarea", { class: "code", rows: String(rows), spellcheck: "false", autocapitalize: "off", autocomplete: "off", wrap: "off", "aria-label": label });
  area.value = value;
  const numbers = h("pre", { "aria-hidden": "true" });
  let marked = new Set();
  function number() {
    const n = area.value.split("\n").length;
    numbers.textContent = Array.from({ length: n }, (_, i) => (marked.has(i + 1) ? `▸${i + 1}` : `${i + 1}`)).join("\n");
    numbers.scrollTop = area.scrollTop;
  }
  area.addEventListener("scroll", () => { numbers.scrollTop = area.scrollTop; });
  area.addEventListener("input", () => { number(); oninput(); });
  number();
  return {
    element: h("div", { class: "editor" }, numbers, area),
    area,
    get value() { return area.value; },
    set value(text) { area.value = text; number(); },
    mark(lines) { marked = new Set(lines); number(); },
    /** Puts the cursor on a line and selects it. */
    select(line) {
      const lines = area.value.split("\n");
      const from = lines.slice(0, line - 1).reduce((n, x) => n + x.length + 1, 0);
      area.focus();
      area.setSelectionRange(from, from + (lines[line - 1] || "").length);
      area.scrollTop = Math.max(0, (line - 5) * (area.scrollHeight / lines.length));
    },
  };
}
