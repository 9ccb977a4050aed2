// The way to the service: JSON requests with the session's token, problems as errors, event streams.

export const session = { name: "", roles: [], csrf: "", keys: false };
export const may = (role) => session.roles.includes(role);

export class Problem extends Error {
  constructor(status, detail, errors) {
    super(detail);
    this.status = status;
    this.errors = errors || [];
  }
}

export async function call(method, path, body, signal) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET" && session.csrf) headers["X-CSRF-Token"] = session.csrf;
  const answer = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  let said = {};
  try { said = await answer.json(); } catch { /* a proxy's page */ }
  throw new Problem(answer.status, said.detail || `${answer.status} ${answer.statusText}`, said.errors);
}

export const get = (path, signal) => call("GET", path, undefined, signal);
export const post = (path, body, signal) => call("POST", path, body, signal);

export function query(values) {
  const made = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const one of [value].flat()) if (one !== "" && one !== null && one !== undefined) made.append(name, one);
  }
  const text = made.toString();
  return text ? `?${text}` : "";
}

/** Follows a job's events until it ends or the view is left. */
export function follow(path, signal, on) {
  const source = new EventSource(path);
  for (const kind of ["start", "stage", "progress", "warning", "end"]) {
    source.addEventListener(kind, (event) => {
      if (kind === "end") source.close();
      on(kind, JSON.parse(event.data));
    });
  }
  signal.addEventListener("abort", () => source.close());
  return source;
}

/** Calls `work` every `ms` until the view is left; never twice at once, never while the page is hidden. */
export function every(ms, signal, work) {
  const step = async () => {
    if (signal.aborted) return;
    if (!document.hidden) {
      try { await work(); } catch (error) { if (!(error instanceof Problem) && error.name !== "AbortError") console.warn(error); }
    }
    if (!signal.aborted) timer = setTimeout(step, ms);
  };
  let timer = setTimeout(step, ms);
  signal.addEventListener("abort", () => clearTimeout(timer));
}
