// Money: what is owed and covered, margin, unknown payments, withheld refunds, the audit of the books.
import { get, post, useLoad, usePages } from "../api.js";
import { plural, whole } from "../format.js";
import { html, useState } from "../html.js";
import { Amount, Dialog, Empty, Field, Figure, FormError, Go, Head, Id, Loaded, Name, Panel, Problem, Select, Sum, Table, Time, Tone, useForm } from "../ui.js";
import { Resolve } from "./activity.js";

const EVERY_MS = 10_000;

export default function Money({ ctx }) {
  // No event tells of lnd and its channels.
  const overview = useLoad("/api/admin/overview", { live: ["purchase", "topup"], every: EVERY_MS });
  return html`
    <${Head} title="Money" />
    <div class="stack">
      <${Loaded} from=${overview}>${(data) => html`<div class="stack">
        ${data.solvency && html`<${Solvency} data=${data} />`}
        <${Trade} ctx=${ctx} data=${data} />
      </div>`}<//>
      <${Unknown} ctx=${ctx} />
      ${ctx.isOperator && html`<${Withheld} /><${Audit} />`}
    </div>`;
}

function Solvency({ data }) {
  const { solvency, customers } = data;
  return html`
    ${solvency.known && !solvency.is_solvent && html`<p class="strip" role="alert"><strong>The node holds less than customers are owed.</strong> Add funds to its channels before you sell more.</p>`}
    <dl class="figures">
      <${Figure} name="Owed to customers" note=${customers && plural(customers.accounts, "account")}><${Sum} msat=${solvency.owed_msat} /><//>
      <${Figure} name="In the node's channels" note=${solvency.known ? "local balance of lnd" : data.lnd ? `lnd does not answer${data.lnd.problem ? `: ${data.lnd.problem}` : ""}` : "no lnd is configured (lnd_grpc_addr)"}>
        ${solvency.known ? html`<${Sum} msat=${solvency.local_balance_msat} />` : html`<span class="none">not known</span>`}<//>
      <${Figure} name="Covered" note="what is owed, against the channels">
        ${solvency.known ? html`<${Tone} tone=${solvency.is_solvent ? "good" : "bad"}>${solvency.is_solvent ? "yes" : "no"}<//>` : html`<span class="none">not known</span>`}<//>
      <${Figure} name="Held" note="for requests that run or are unknown"><${Sum} msat=${customers?.held_msat} /><//>
    </dl>`;
}

function Trade({ ctx, data }) {
  if (!data.today || !data.month) return html`<${Panel} title="Trade"><${Empty} title="Nothing is recorded"><p>This gateway keeps no journal.</p><//><//>`;
  const rows = [
    ["Purchases", "purchases", false],
    ctx.isOperator && ["Charged to customers", "charged_msat", true],
    ["Paid to providers, with fees", "settled_msat", true],
    ctx.isOperator && ["Margin", "margin_msat", true],
    ["Paid and not delivered", "undelivered_msat", true],
    ["Unknown", "unknown_msat", true],
  ].filter(Boolean);
  const cell = (part) => ([, field, isMoney]) => (isMoney ? html`<${Amount} msat=${data[part][field]} />` : whole(data[part][field]));
  const columns = [
    { name: "Sums", cell: ([name]) => name },
    { name: "Today, sat", right: true, cell: cell("today") },
    { name: "This month, sat", right: true, cell: cell("month") },
  ];
  return html`<${Panel} title="Trade" note="Calendar day and month in UTC." actions=${html`<${Go} to="usage">Usage<//>`}><${Table} caption="Trade" columns=${columns} rows=${rows} rowKey=${([name]) => name} /><//>`;
}

function Unknown({ ctx }) {
  const unknown = usePages("/api/purchases?state=unknown", { live: ["purchase"] });
  const [resolving, setResolving] = useState(null);
  const pick = (row) => html`<button class="small" onClick=${async () => setResolving(await get(`/api/purchases/${row.job_id}`))}>Resolve…</button>`;
  return html`<${Panel} title="Unknown payments" note="The payment was sent, and whether it arrived is not known. The gateway asks lnd about each; what it cannot find out is yours to decide." tone=${unknown.items.length ? "alert" : ""}>
    <${Problem} error=${unknown.error} reload=${unknown.reload} stale=${unknown.loaded} />
    ${unknown.loaded && (unknown.items.length
      ? html`<${Table} caption="Unknown payments" rowKey=${(row) => row.job_id} rows=${unknown.items} more=${unknown.more} busy=${unknown.busy} columns=${[
          { name: "Time", cell: (row) => html`<${Go} to=${["activity", row.job_id]}><${Time} at=${row.paying_at} /><//>` },
          { name: "Model", clip: true, hide: "phone", cell: (row) => html`<${Name}>${row.model}<//>` },
          ctx.isOperator && { name: "Customer", hide: "phone", cell: (row) => html`<${Id} id=${row.account_id} />` },
          { name: "Cost, sat", right: true, cell: (row) => html`<${Amount} msat=${row.cost_msat} />` },
          { name: "", right: true, cell: pick },
        ].filter(Boolean)} />`
      : html`<${Empty} title="None: every payment is known" />`)}
    ${resolving && html`<${Resolve} row=${resolving} onClose=${() => setResolving(null)} onDone=${unknown.reload} />`}
  <//>`;
}

function Withheld() {
  const refunds = usePages("/api/admin/refunds?refund=withheld", { live: ["purchase"] });
  const [deciding, setDeciding] = useState(null);
  const columns = [
    { name: "Time", cell: (row) => html`<${Go} to=${["activity", row.job_id]}><${Time} at=${row.bought_at} /><//>` },
    { name: "Customer", hide: "phone", cell: (row) => html`<${Go} to=${["customers", row.account_id]}><${Id} id=${row.account_id} /><//>` },
    { name: "Model", clip: true, hide: "phone", cell: (row) => html`<${Name}>${row.model}<//>` },
    { name: "Ended by", hide: "phone", cell: (row) => row.ended_by?.replaceAll("_", " ") ?? "–" },
    { name: "Charge, sat", right: true, cell: (row) => html`<${Amount} msat=${row.amount_msat} />` },
    { name: "", right: true, cell: (row) => html`<button class="small" onClick=${() => setDeciding(row)}>Decide…</button>` },
  ];
  return html`<${Panel} title="Withheld refunds" note="Charges of undelivered purchases above the day's limit of refunds: give them back, or keep them." tone=${refunds.items.length ? "alert" : ""}>
    <${Problem} error=${refunds.error} reload=${refunds.reload} stale=${refunds.loaded} />
    ${refunds.loaded && html`<${Table} caption="Withheld refunds" columns=${columns} rows=${refunds.items} more=${refunds.more} busy=${refunds.busy} empty=${html`<${Empty} title="None" />`} />`}
    ${deciding && html`<${Decide} row=${deciding} onClose=${() => setDeciding(null)} onDone=${refunds.reload} />`}
  <//>`;
}

const DECISIONS = [["grant", "give it back"], ["deny", "keep it"]];

function Decide({ row, onClose, onDone }) {
  const [decision, setDecision] = useState("grant");
  const [reason, setReason] = useState("");
  const [typed, setTyped] = useState("");
  const word = row.job_id.slice(-6);
  const form = useForm(async () => {
    await post(`/api/admin/refunds/${row.job_id}`, { decision, reason: reason.trim() }, { headers: { "X-Lcp-Confirm": typed.trim() } });
    onClose();
    onDone();
  });
  return html`<${Dialog} title="Decide on a refund" onClose=${onClose}><form onSubmit=${form.onSubmit}>
    <p><${Sum} msat=${row.amount_msat} /> were charged for an answer that was not delivered. The decision is final.</p>
    <${Select} label="Decision" value=${decision} options=${DECISIONS} onPick=${setDecision} />
    <${Field} label="Reason" required maxlength="500" error=${form.errorOf("reason")} value=${reason} onInput=${(event) => setReason(event.currentTarget.value)} />
    <${Field} label=${html`Type <strong>${word}</strong> to confirm`} spellcheck=${false} value=${typed} onInput=${(event) => setTyped(event.currentTarget.value)} />
    <${FormError} form=${form} fields=${["reason"]} />
    <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="danger" disabled=${form.busy || typed.trim() !== word}>Decide</button></div>
  </form><//>`;
}

function Audit() {
  const [found, setFound] = useState(null);
  const form = useForm(async () => setFound(await get("/api/admin/audit")));
  const run = html`<button onClick=${form.onSubmit} disabled=${form.busy}>${form.busy ? "Adding up…" : "Audit the books"}</button>`;
  return html`<${Panel} title="Audit" note="Adds up every entry of the ledger and compares it with balances and purchases. With many entries it takes a while." actions=${run}>
    <${FormError} form=${form} />
    ${found && html`<div role="status">
      <p><${Tone} tone=${found.ok ? "good" : "bad"}>${found.ok ? "The books are right" : "The books are wrong"}<//></p>
      ${found.problems.length > 0 && html`<ul>${found.problems.map((problem) => html`<li key=${problem}>${problem}</li>`)}</ul>`}
      <p class="note">${plural(found.accounts, "account")}, ${plural(found.entries, "entry", "entries")}, ${plural(found.purchases, "purchase")}.</p>
      <${Table} caption="Books" rowKey=${([name]) => name} rows=${Object.entries(found.books)} columns=${[
        { name: "Book", cell: ([name]) => name.replaceAll("_", " ") },
        { name: "Sum, sat", right: true, cell: ([, msat]) => html`<${Amount} msat=${msat} />` },
      ]} />
    </div>`}
  <//>`;
}

