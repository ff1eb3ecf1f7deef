// Activity: purchases with filters that live in the address, and one purchase with its receipt.
import { post, useLoad, usePages, withQuery } from "../api.js";
import { html, useState } from "../html.js";
import { PurchaseTable, estimateOf, provider } from "../purchases.js";
import { link, setQuery } from "../router.js";
import { Dialog, Empty, Field, FormError, Go, Head, Id, Loaded, Name, Panel, Problem, STATE_WORDS, Select, State, Sum, Time, useForm } from "../ui.js";

const STATES = ["", "delivered", "undelivered", "unknown", "paying", "settled", "not_paid"];

export default function Activity({ ctx, route }) {
  return route.path[1] ? html`<${Purchase} ctx=${ctx} id=${route.path[1]} />` : html`<${Purchases} ctx=${ctx} route=${route} />`;
}

/** The start of a local day as UTC; `days` later. */
const dayStart = (text, days = 0) => {
  const [year, month, day] = text.split("-").map(Number);
  const at = new Date(year, month - 1, day + days);
  return Number.isNaN(at.getTime()) ? undefined : at.toISOString();
};

/** The query of the API for the filters in the address; both days are included. */
export function apiQuery({ model, key, state, peer, account, from, to }) {
  return { model, key, state, peer, account, since: from && dayStart(from), until: to && dayStart(to, 1) };
}

function Purchases({ ctx, route }) {
  const { query } = route;
  const rows = usePages(withQuery("/api/purchases", apiQuery(query)), { live: ["purchase"] });
  const filtered = Object.values(query).some(Boolean);
  const clear = () => (location.hash = link("activity"));
  const empty = filtered
    ? html`<${Empty} title="No purchase matches these filters"><p><button onClick=${clear}>Clear the filters</button></p><//>`
    : html`<${Empty} title="Nothing bought yet"><p>Requests appear here the moment they are paid. <${Go} to="router">Send the first one<//>.</p><//>`;
  return html`
    <${Head} title="Activity">
      <a class="button" href=${withQuery("/api/purchases", { ...apiQuery(query), format: "csv" })} download="purchases.csv">CSV</a>
    <//>
    <div class="stack">
      <${Panel}><${Filters} ctx=${ctx} query=${query} />${filtered && html`<p><button class="small" onClick=${clear}>Clear the filters</button></p>`}<//>
      ${query.state === "unknown" && html`<p class="note">Unknown: the payment was sent, and whether it arrived is not known yet. The money stays held until there is evidence; it is never paid a second time.</p>`}
      <${Panel}>
        <${Problem} error=${rows.error} reload=${rows.reload} stale=${rows.loaded} />
        ${rows.loaded && html`<${PurchaseTable} ctx=${ctx} rows=${rows.items} more=${rows.more} busy=${rows.busy} empty=${empty} />`}
      <//>
    </div>`;
}

export function Filters({ ctx, query, withState = true }) {
  const models = useLoad("/api/models", { live: [] });
  const keys = useLoad(ctx.hasWallet ? "/api/account/keys?limit=200" : ctx.isOperator ? "/api/admin/keys?limit=200" : null);
  const providers = useLoad(ctx.seesAll ? "/api/providers" : null);
  const pick = (name) => (value) => setQuery({ [name]: value });
  const options = (value, list) => [["", "all"], ...(value && !list.some(([key]) => key === value) ? [[value, value]] : []), ...list];
  const modelList = (models.data?.data ?? []).filter((model) => !model.lcp.alias_of).map((model) => [model.id, model.id]);
  const keyList = (keys.data?.data ?? []).map((key) => [key.id, `${key.name} (${key.prefix}…)`]);
  const peerList = (providers.data?.data ?? []).map((peer) => [peer.id, peer.name]);
  return html`<div class="filters" role="group" aria-label="Filters">
    <${Select} label="Model" value=${query.model ?? ""} options=${options(query.model, modelList)} onPick=${pick("model")} />
    ${(keyList.length > 0 || query.key) && html`<${Select} label="Key" value=${query.key ?? ""} options=${options(query.key, keyList)} onPick=${pick("key")} />`}
    ${withState && html`<${Select} label="State" value=${query.state ?? ""} options=${STATES.map((state) => [state, STATE_WORDS[state] ?? "all"])} onPick=${pick("state")} />`}
    ${ctx.seesAll && withState && html`<${Select} label="Provider" value=${query.peer ?? ""} options=${options(query.peer, peerList)} onPick=${pick("peer")} />`}
    <${Day} label="From" value=${query.from ?? ""} onPick=${pick("from")} />
    <${Day} label="To" value=${query.to ?? ""} onPick=${pick("to")} />
  </div>`;
}

const Day = ({ label, value, onPick }) => html`<${Field} label=${label} type="date" value=${value} onChange=${(event) => onPick(event.currentTarget.value)} />`;

function Purchase({ ctx, id }) {
  const path = `/api/purchases/${encodeURIComponent(id)}`;
  const purchase = useLoad(path, { live: ["purchase"] });
  return html`
    <${Head} title="Purchase" note=${html`<code>${id}</code>`}><${Go} to="activity" class="button">All activity<//><//>
    <${Loaded} from=${purchase}>${(data) => html`<${Shown} ctx=${ctx} row=${data} path=${path} reload=${purchase.reload} />`}<//>`;
}

const EXPLAINED = {
  delivered: "Paid, and the whole answer was delivered.",
  undelivered: "Paid, and no whole answer came.",
  unknown: "The payment was sent, and it is not known whether it arrived. The money stays held until there is evidence.",
  not_paid: "Nothing was paid.",
  paying: "The payment is under way.",
  settled: "Paid. The answer is being delivered.",
};
const STEPS = { quoted: "Quoted", paying: "Payment sent", settled: "Paid", delivered: "Delivered", undelivered: "Found undelivered", not_paid: "Found not paid", unknown: "Lost sight of" };
const REFUNDS = { given: "given back", withheld: "withheld: the operator decides", granted: "given back by the operator", denied: "kept by decision of the operator" };

function Shown({ ctx, row, path, reload }) {
  const [isResolving, setResolving] = useState(false);
  const receipt = row.receipt;
  const fact = (name, value) => value !== null && value !== undefined && value !== "" && html`<dt>${name}</dt><dd>${value}</dd>`;
  return html`<div class="stack">
    <div class="grid-2">
      <${Panel} title="What happened">
        <p><${State} state=${row.state} /></p><p>${EXPLAINED[row.state]}</p>
        <dl class="facts">
          ${fact("Model", html`<${Name}>${row.model}<//>`)}
          ${fact("Request", `${row.task_kind?.replaceAll("_", " ")}${row.stream ? ", streamed" : ""}`)}
          ${fact("Key", row.key_id && html`<${Name}>${row.key_name ?? row.key_id}<//>`)}
          ${ctx.isOperator && fact("Customer", row.account_id && html`<${Go} to=${["customers", row.account_id]}><${Id} id=${row.account_id} /><//>`)}
          ${ctx.seesCost && fact("Provider", row.peer_id && html`${provider(row)}`)}
          ${fact("Ended by", row.ended_by?.replaceAll("_", " "))}
          ${fact("Bytes", `${row.request_bytes ?? "?"} in, ${row.result_bytes ?? "?"} out`)}
          ${fact("Request id", row.request_id && html`<code>${row.request_id}</code>`)}
        </dl>
        ${ctx.seesAll && row.state === "unknown" && html`<div class="buttons"><button onClick=${() => setResolving(true)}>Resolve…</button></div>`}
      <//>
      <${Panel} title="Money">
        <dl class="facts">
          ${ctx.seesCost && fact("Price", html`<${Sum} msat=${row.price_msat} />`)}
          ${ctx.seesCost && fact("Routing fee", row.fee_msat === null ? html`at most <${Sum} msat=${row.fee_cap_msat} />` : html`<${Sum} msat=${row.fee_msat} />`)}
          ${ctx.seesCost && fact("Cost", html`<${Sum} msat=${row.cost_msat} about=${estimateOf(ctx, row)} />`)}
          ${fact("Charge", row.charge_msat !== null && html`<${Sum} msat=${row.charge_msat} />`)}
          ${fact("Charged", row.charged_msat !== null && html`<${Sum} msat=${row.charged_msat} />`)}
          ${fact("Refund", row.refund && REFUNDS[row.refund])}
        </dl>
        <h3>Times</h3>
        <dl class="facts">${Object.entries(row.times ?? {}).map(([state, at]) => html`<dt key=${state}>${STEPS[state] ?? state}</dt><dd><${Time} at=${at} /></dd>`)}</dl>
      <//>
    </div>
    <${Panel} title="Receipt" actions=${receipt && html`<a class="button" href="${path}?format=receipt" download="receipt-${row.job_id.slice(0, 16)}.json">Download</a>`}>
      ${receipt
        ? html`<p>It proves what was bought, and holds no prompt and no answer. Verify it anywhere with <code>lcp-gateway receipt verify FILE</code>.</p>
            <dl class="facts">
              ${fact("Payment hash", html`<code>${receipt.payment_hash}</code>`)}
              ${fact("Terms hash", html`<code>${receipt.terms_hash}</code>`)}
              ${fact("Result SHA-256", receipt.result_sha256 && html`<code>${receipt.result_sha256}</code>`)}
              ${fact("Provider's node", receipt.peer_id && html`<code>${receipt.peer_id}</code>`)}
            </dl>`
        : html`<${Empty} title="No receipt"><p>${row.kind === "node" ? "It was bought from a node, without an invoice that could be verified." : "There is none for this purchase."}</p><//>`}
    <//>
    ${isResolving && html`<${Resolve} row=${row} onClose=${() => setResolving(false)} onDone=${reload} />`}
  </div>`;
}

const DECISIONS = [
  ["", "choose…"],
  ["not_paid", "not paid: the payment failed for good"],
  ["undelivered", "paid, and the answer is lost"],
];

/** Decide on an unknown payment, with evidence. */
export function Resolve({ row, onClose, onDone }) {
  const [state, setState] = useState("");
  const [reason, setReason] = useState("");
  const [typed, setTyped] = useState("");
  const word = row.job_id.slice(-6);
  const form = useForm(async () => {
    if (!state) throw { param: "state", message: "Choose what is known of the payment." };
    await post(`/api/admin/purchases/${row.job_id}/resolution`, { state, reason: reason.trim() }, { headers: { "X-Lcp-Confirm": typed.trim() } });
    onClose();
    onDone();
  });
  return html`<${Dialog} title="Resolve an unknown payment" onClose=${onClose}>
    <form onSubmit=${form.onSubmit}>
      <p>Look the payment up at your Lightning node first. A wrong decision is a loss, for the customer or for you, and cannot be undone.</p>
      ${row.receipt?.payment_hash && html`<p class="note">Payment hash: <code>${row.receipt.payment_hash}</code></p>`}
      <${Select} label="The payment is" value=${state} options=${DECISIONS} onPick=${setState} error=${form.errorOf("state")} />
      <${Field} label="Reason" note="what the node shows; kept in the log" required maxlength="500" error=${form.errorOf("reason")} value=${reason} onInput=${(event) => setReason(event.currentTarget.value)} />
      <${Field} label=${html`Type <strong>${word}</strong> to confirm`} spellcheck=${false} value=${typed} onInput=${(event) => setTyped(event.currentTarget.value)} />
      <${FormError} form=${form} fields=${["state", "reason"]} />
      <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="danger" disabled=${typed.trim() !== word || form.busy}>Resolve</button></div>
    </form>
  <//>`;
}
