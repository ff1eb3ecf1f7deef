// Providers: peers and nodes, what they offer, how they did, what they owe.
import { useLoad } from "../api.js";
import { duration } from "../format.js";
import { html } from "../html.js";
import { Amount, Empty, Go, Head, Id, Loaded, Name, Panel, Table, Tone } from "../ui.js";
import { Badges } from "./model-router.js";

export default function Providers({ ctx }) {
  const providers = useLoad("/api/providers", { live: ["catalog", "health", "purchase"] });
  return html`
    <${Head} title="Providers" note="Who answers requests: Lightning peers, and the servers that you configured as nodes." />
    <${Loaded} from=${providers}>${(data) => html`
      ${data.daemon && !data.daemon.reachable && html`<p class="strip"><strong>The daemon is away.</strong> ${data.daemon.problem ?? "It does not answer."} Peers cannot be asked until it is back; nodes go on.</p>`}
      <${Panel}><${ProviderTable} rows=${data.data}
        empty=${html`<${Empty} title="No providers yet"><p>Connect the daemon to a peer that sells compute, or add an OpenAI-compatible server under <code>nodes</code> in the settings${ctx.info.demo ? "" : ", or run with --embedded to try"}.</p><//>`} /><//>`}<//>`;
}

export function ProviderTable({ rows, empty, caption = "Providers", noun = "Provider" }) {
  const columns = [
    { name: noun, clip: true, cell: (row) => html`<${Go} to="activity" query=${{ peer: row.id }}>${row.kind === "lcp" ? html`<${Id} id=${row.id} />` : html`<${Name}>${row.name}<//>`}<//> <${Badges} names=${row.badges} />` },
    { name: "State", cell: (row) => html`<${Up} row=${row} />` },
    { name: "Models", right: true, hide: "phone", cell: (row) => html`<span title=${row.models.slice(0, 50).join(", ")}>${row.models.length}</span>` },
    { name: "Running", right: true, hide: "phone", cell: (row) => row.in_flight },
    { name: "First byte", right: true, hide: "phone", cell: (row) => duration(row.first_byte_s) || html`<span class="none">–</span>` },
    { name: "Tokens/s", right: true, hide: "phone", cell: (row) => (row.tokens_per_s ? Math.round(row.tokens_per_s) : html`<span class="none">–</span>`) },
    { name: "Price, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.price_msat ?? row.list_price_msat} />` },
    { name: "Delivered", right: true, cell: (row) => count(row.delivered) },
    { name: "Not delivered", right: true, cell: (row) => count(row.undelivered) },
    { name: "Lost, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.lost_msat} />` },
    { name: "Exposure, sat", right: true, hide: "phone", cell: (row) => html`<span title=${row.exposure_limit_msat ? `limit ${row.exposure_limit_msat} msat` : "no limit"}><${Amount} msat=${row.exposure_msat} /></span>` },
  ];
  return html`<${Table} caption=${caption} columns=${columns} rows=${rows} empty=${empty} />`;
}

const count = (number) => (number === null || number === undefined ? html`<span class="none">–</span>` : number);

function Up({ row }) {
  if (!row.up) return html`<${Tone} tone="bad">away<//>${row.problem && html` <small class="note">${row.problem}</small>`}`;
  if (row.breaker !== "closed")
    return html`<${Tone} tone="warn">${row.breaker === "trial" ? "on trial" : `resting${row.resting_s ? `, ${duration(row.resting_s)} more` : ""}`}<//>`;
  if (!row.ready) return html`<${Tone} tone="warn">not ready<//>${row.problem && html` <small class="note">${row.problem}</small>`}`;
  return html`<${Tone} tone="good">up<//>`;
}
