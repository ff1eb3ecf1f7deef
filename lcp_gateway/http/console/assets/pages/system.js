// System: is the gateway ready, and are its parts well.
import { readHealth, useLoad } from "../api.js";
import { duration } from "../format.js";
import { html } from "../html.js";
import { Empty, Figure, Head, Loaded, Name, Panel, Sum, Table, Tone } from "../ui.js";

const EVERY_MS = 10_000;

export default function System({ ctx }) {
  const health = useLoad("/readyz", { read: readHealth, live: ["health", "catalog"], every: EVERY_MS });
  // Behind a proxy /readyz says no more than the status: the tasks are in the operator's overview too.
  const overview = useLoad("/api/admin/overview", { live: ["health"], every: EVERY_MS });
  return html`
    <${Head} title="System" note=${`lcp-gateway ${ctx.info.version}${ctx.info.network ? ` on ${ctx.info.network}` : ""}`} />
    <${Loaded} from=${health}>${(said) => {
      const data = { lnd: overview.data?.lnd, ...overview.data?.health, ...said };
      return html`<div class="stack">
      <dl class="figures">
        <${Figure} name="State" note=${data.reasons.join("; ") || "requests can be bought"}><${Tone} tone=${data.status === "ready" ? "good" : "bad"}>${data.status === "ready" ? "ready" : "not ready"}<//><//>
        <${Figure} name="Daemon" note=${data.daemon?.transport}><${Tone} tone=${data.daemon?.reachable === false ? "bad" : data.daemon ? "good" : "none"}>${data.daemon ? (data.daemon.reachable ? "reachable" : "away") : "not known"}<//><//>
        <${Figure} name="Peers" note=${data.snapshot_age_s === undefined ? "" : `seen ${duration(data.snapshot_age_s)} ago`}>${data.peers ?? "–"}<//>
        <${Figure} name="Requests now">${data.jobs_in_flight ?? "–"}<//>
      </dl>
      <div class="grid-2">
        <${Panel} title="Background tasks"><${Tasks} tasks=${data.tasks} /><//>
        <div class="stack">
          <${Panel} title="lnd"><${Lnd} lnd=${data.lnd} /><//>
          <${Panel} title="Nodes"><${Nodes} nodes=${data.nodes} /><//>
        </div>
      </div>
      <p class="note">Measurements over time are at <code>/metrics</code>, for Prometheus; a Grafana dashboard and alerts come with the gateway (docs/operations.md).</p>
    </div>`;
    }}<//>`;
}

/** A state of a part in words, whatever its shape: a word, or an object with one. */
function wordOf(value) {
  if (value === true) return ["good", "well"];
  if (value === false) return ["bad", "down"];
  const word = typeof value === "string" ? value : (value?.state ?? value?.status ?? JSON.stringify(value));
  return [["running", "ok", "up", "idle", "waiting"].includes(word) ? "good" : "warn", word];
}

function Tasks({ tasks }) {
  const rows = Object.entries(tasks ?? {});
  const columns = [
    { name: "Task", cell: ([name]) => name.replaceAll("_", " ") },
    { name: "State", cell: ([, value]) => { const [tone, word] = wordOf(value); return html`<${Tone} tone=${tone}>${word}<//>`; } },
    { name: "Detail", clip: true, hide: "phone", cell: ([, value]) => html`<span class="note">${detailOf(value)}</span>` },
  ];
  return html`<${Table} caption="Background tasks" columns=${columns} rows=${rows} rowKey=${([name]) => name} empty=${html`<${Empty} title="None is reported" />`} />`;
}

function detailOf(value) {
  if (value === null || typeof value !== "object") return "";
  return Object.entries(value).filter(([name, part]) => name !== "state" && name !== "status" && part !== null && part !== "" && part !== 0)
    .map(([name, part]) => `${name.replaceAll("_", " ")}: ${typeof part === "object" ? JSON.stringify(part) : part}`).join(", ");
}

function Lnd({ lnd }) {
  if (!lnd) return html`<${Empty} title="Not known"><p>No lnd is configured (<code>lnd_grpc_addr</code>): its balance and its payments cannot be looked up.</p><//>`;
  return html`<dl class="facts">${Object.entries(lnd).map(([name, value]) => html`<dt key=${name}>${name.replace(/_msat$/, "").replaceAll("_", " ")}</dt><dd>${
    value === null ? html`<span class="none">not known</span>` : name.endsWith("_msat") ? html`<${Sum} msat=${value} />` : typeof value === "boolean" ? (value ? "yes" : "no") : String(value)
  }</dd>`)}</dl>`;
}

function Nodes({ nodes }) {
  const rows = Object.entries(nodes ?? {});
  const columns = [
    { name: "Node", clip: true, cell: ([name]) => html`<${Name}>${name}<//>` },
    { name: "State", cell: ([, node]) => html`<${Tone} tone=${node.up ? "good" : "bad"}>${node.up ? "up" : "away"}<//>` },
    { name: "Models", right: true, cell: ([, node]) => node.models },
  ];
  return html`<${Table} caption="Nodes" columns=${columns} rows=${rows} rowKey=${([name]) => name} empty=${html`<${Empty} title="No nodes"><p>Other servers can be added as <code>nodes</code> in the settings.</p><//>`} />`;
}
