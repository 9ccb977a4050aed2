// Builds elements. Whatever is a string becomes a text node: there is no way from a text to markup in this page.

export function h(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "share") made.style.setProperty("--share", String(value));
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  put(made, children);
  return made;
}

export function put(parent, children) {
  for (const child of [children].flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    parent.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return parent;
}

export function show(parent, ...children) {
  parent.replaceChildren();
  return put(parent, children);
}

/** Shows new children; who stood on one of the old ones by keyboard stands on the new one in its place. */
export function redraw(parent, ...children) {
  const stops = () => [...parent.querySelectorAll("a, button, input, select, summary, [tabindex]")];
  const at = stops().indexOf(document.activeElement);
  show(parent, ...children);
  if (at >= 0) stops()[at]?.focus({ preventScroll: true });
  return parent;
}

/** A table: `head` are texts, or [text, "n"] for a column of numbers; cells may be nodes. */
export function table(head, rows, caption = "") {
  const kinds = head.map((x) => (Array.isArray(x) ? x[1] : ""));
  const made = h("table", {},
    caption && h("caption", {}, caption),
    h("thead", {}, h("tr", {}, head.map((x, i) => h("th", { scope: "col", class: kinds[i] || undefined }, Array.isArray(x) ? x[0] : x)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => h("td", { class: kinds[i] || undefined }, cell))))));
  // A region that scrolls can be reached by keyboard.
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || head.flat().filter((x) => x !== "n").join(", ") }, made);
}

export function bar(share, label) {
  const part = Math.max(0, Math.min(1, share || 0));
  const made = h("div", { class: "bar", role: "img", "aria-label": `${label}: ${Math.round(part * 100)}%` });
  made.append(h("i", { share: part }));
  return made;
}

/** Rows of (name, share, figure). */
export function bars(rows) {
  return h("div", { class: "bars" }, rows.map(([name, share, figure]) => [h("div", {}, name), bar(share, name.textContent || name), h("div", { class: "n" }, figure)]));
}

export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, v]) => v !== "" && v !== false && v !== null && v !== undefined).map(([k, v]) => h("div", {}, k && h("dt", {}, k), h("dd", {}, v))));
}

export function field(name, control, more = {}) {
  return h("label", more, name, control);
}

export function select(options, value, attributes = {}) {
  return h("select", attributes, options.map((o) => {
    const [key, said] = Array.isArray(o) ? o : [o, o];
    return h("option", { value: key, selected: key === value }, said);
  }));
}

const BAD = ["failed", "crashed", "interrupted"];
export function state(name) {
  const kind = name === "whole" ? "good" : BAD.includes(name) ? "bad" : ["short", "stopped"].includes(name) ? "warn" : "";
  return h("span", { class: `state ${kind}`.trim() }, name);
}

export const count = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en"));
export const fixed = (x, digits = 2) => (x === null || x === undefined ? "–" : x.toFixed(digits));
export const percent = (x, digits = 1) => (x === null || x === undefined ? "–" : `${(100 * x).toFixed(digits)}%`);
export const link = (href, ...said) => h("a", { href }, said);
export const to = (...parts) => "#/" + parts.map(encodeURIComponent).join("/");

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.round(seconds);
  return s < 90 ? `${s} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
}

/** Calls `work` once nothing came for `ms`. */
export function later(ms, work) {
  let timer = 0;
  return (...given) => { clearTimeout(timer); timer = setTimeout(() => work(...given), ms); };
}

export function tell(text) {
  const place = document.getElementById("told");
  place.textContent = text;
  setTimeout(() => { if (place.textContent === text) place.textContent = ""; }, 5000);
}

/** Whether a key press is meant for a field or a browser's command, and not for the page. */
export function typing(event) {
  return event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
}
