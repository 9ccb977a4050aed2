// Models: what was trained in the workspace, and the reports of stages and probes that lie there.

import { count, duration, h, show, table } from "./dom.js";
import { get, query } from "./api.js";

export async function view({ place, signal, naming }) {
  naming("Models");
  const { trainings, reports } = await get("/v1/reports", signal);
  const file = (path, said) => h("a", { href: "/v1/reports/file" + query({ path }), target: "_blank", rel: "noopener" }, said);
  const served = await get("/v1/models", signal);
  show(place,
    h("h2", {}, "Trained here"), trainings.length ? table(["Folder", "Kind", ["Steps", "n"], ["Rows", "n"], "Took", "Figures, mean of the last tenth", ""], trainings.map((t) => [t.folder, t.kind, count(t.steps), count(t.rows), duration(t.seconds),
      Object.entries(t.figures).map(([k, v]) => `${k} ${v === null ? "–" : Number(v.toPrecision(3))}`).join(", "), t.curves && file(t.curves, "curves")]))
      : h("p", { class: "muted" }, "No folder of tenet train lies in this workspace."),
    h("h2", {}, "Reports of stages and probes"), reports.length ? table(["Report", "Folder"], reports.map((r) => [file(r.path, r.title), r.path.replace(/\/?report\.html$/, "")]))
      : h("p", { class: "muted" }, "None yet: tenet inspect, tenet report and tenet agree write them."),
    h("h2", {}, "Served by /v1/chat/completions"), h("ul", { class: "plain" }, served.data.map((m) => h("li", {}, h("code", {}, m.id)))));
}
