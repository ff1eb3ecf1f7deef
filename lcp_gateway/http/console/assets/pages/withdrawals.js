// Withdrawals of all customers, for the operator: which wait, which are unknown, and the decision on each.
import { post, usePages, withQuery } from "../api.js";
import { readSat, sat } from "../format.js";
import { html, useState } from "../html.js";
import { link, setQuery } from "../router.js";
import { Amount, Copyable, Dialog, Empty, Field, FormError, Go, Head, Id, Panel, Problem, Select, Sum, Table, Time, useForm } from "../ui.js";
import { WITHDRAWAL_STATES, WithdrawalState } from "../withdrawals.js";

const EVERY_MS = 10_000;
const STATES = [["", "all"], ...WITHDRAWAL_STATES];

export default function Withdrawals({ ctx, route }) {
  const { status = "", account = "" } = route.query;
  const rules = ctx.info.withdrawals;
  const list = usePages(withQuery("/api/admin/withdrawals", { status, account_id: account }), { every: EVERY_MS });
  const clear = () => (location.hash = link("withdrawals"));
  const isFiltered = Boolean(status || account);
  return html`
    <${Head} title="Withdrawals" note="What customers pay out of their balances." />
    <div class="stack">
      ${rules && !rules.enabled && html`<p class="strip"><strong>Withdrawals are off.</strong> New ones are refused, and those under way are followed to their end. <code>withdrawals = true</code> lets customers withdraw (docs/withdrawals.md).</p>`}
      <${Panel}>
        <div class="filters" role="group" aria-label="Filters">
          <${Select} label="State" value=${status} options=${STATES} onPick=${(value) => setQuery({ status: value })} />
          ${isFiltered && html`<div class="field"><button onClick=${clear}>Clear the filters</button></div>`}
        </div>
        ${account && html`<p class="note">Of customer <${Go} to=${["customers", account]}><code>${account}</code><//> alone.</p>`}
      <//>
      <${Panel}>
        <${Problem} error=${list.error} reload=${list.reload} stale=${list.loaded} />
        ${list.loaded && html`<${WithdrawalTable} rows=${list.items} more=${list.more} busy=${list.busy} reload=${list.reload}
          empty=${isFiltered ? html`<${Empty} title="No withdrawal matches these filters" />` : html`<${Empty} title="Nothing was withdrawn yet"><p>${
            rules?.approval_msat ? `Withdrawals above ${sat(rules.approval_msat)} sat (withdrawal_approval_msat) wait here for your decision.` : "None waits for a decision: withdrawal_approval_msat is 0."}</p><//>`} />`}
      <//>
    </div>`;
}

// What may be decided in a state.
const DECISIONS = {
  awaiting_approval: [["", "choose…"], ["approve", "approve: it is paid within seconds"], ["deny", "deny: the amount goes back to the balance"]],
  approved: [["deny", "deny: the amount goes back to the balance"]],
  unknown: [["", "choose…"], ["settled", "it was paid"], ["failed", "it was not paid, and never will be"]],
};

export function WithdrawalTable({ rows, more, busy, reload, empty, withCustomer = true }) {
  const [deciding, setDeciding] = useState(null);
  const columns = [
    { name: "Time", cell: (row) => html`<${Time} at=${row.created_at} />` },
    withCustomer && { name: "Customer", hide: "phone", cell: (row) => html`<${Go} to=${["customers", row.account_id]}><${Id} id=${row.account_id} /><//>` },
    { name: "State", cell: (row) => html`<${WithdrawalState} row=${row} />` },
    { name: "Payment hash", hide: "phone", cell: (row) => html`<${Id} id=${row.payment_hash} />` },
    { name: "Fee limit, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.fee_limit_msat} />` },
    { name: "Fee, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.fee_msat} />` },
    { name: "Amount, sat", right: true, cell: (row) => html`<${Amount} msat=${row.amount_msat} />` },
    { name: "", right: true, cell: (row) => DECISIONS[row.status] && html`<button class="small" aria-label="Decide on ${row.id}" onClick=${() => setDeciding(row)}>Decide…</button>` },
  ].filter(Boolean);
  return html`<${Table} caption="Withdrawals" columns=${columns} rows=${rows} more=${more} busy=${busy} empty=${empty} />
    ${deciding && html`<${Decide} row=${deciding} onClose=${() => setDeciding(null)} onDone=${reload} />`}`;
}

function Decide({ row, onClose, onDone }) {
  const isUnknown = row.status === "unknown";
  const [decision, setDecision] = useState(DECISIONS[row.status][0][0]);
  const [fee, setFee] = useState("");
  const [reason, setReason] = useState("");
  const [typed, setTyped] = useState("");
  const word = row.id.slice(-6);
  const form = useForm(async () => {
    if (!decision) throw { param: "decision", message: "Choose what happens to it." };
    const body = { decision, reason: reason.trim() };
    if (decision === "settled" && fee.trim()) {
      body.fee_msat = readSat(fee);
      if (body.fee_msat === null) throw { param: "fee_msat", message: "Enter the fee in sats, like 1.5, or leave it empty for none." };
    }
    await post(`/api/admin/withdrawals/${encodeURIComponent(row.id)}`, body, { headers: { "X-Lcp-Confirm": typed.trim() } });
    onClose();
    onDone();
  });
  return html`<${Dialog} title=${isUnknown ? "Resolve an unknown withdrawal" : "Decide on a withdrawal"} onClose=${onClose} wide><form onSubmit=${form.onSubmit}>
    <p><${Sum} msat=${row.amount_msat} />, and a fee of up to <${Sum} msat=${row.fee_limit_msat} />, of customer <${Go} to=${["customers", row.account_id]}><code>${row.account_id}</code><//>.</p>
    ${isUnknown && html`<p>Look the payment up at your Lightning node first (<code>lncli trackpayment</code>). “Not paid” gives the amount back: if it was paid after all, you pay twice. This cannot be undone.</p>
      <${Copyable} text=${row.payment_hash} label="Copy the payment hash" name="Payment hash" />`}
    <${Select} label="Decision" value=${decision} options=${DECISIONS[row.status]} onPick=${setDecision} error=${form.errorOf("decision")} />
    ${decision === "settled" && html`<${Field} label="Fee that was paid, sat" note="as the node shows it; empty: none" inputmode="decimal" error=${form.errorOf("fee_msat")} value=${fee} onInput=${(event) => setFee(event.currentTarget.value)} />`}
    <${Field} label="Reason" note="kept in the log" required maxlength="128" error=${form.errorOf("reason")} value=${reason} onInput=${(event) => setReason(event.currentTarget.value)} />
    <${Field} label=${html`Type <strong>${word}</strong> to confirm`} spellcheck=${false} value=${typed} onInput=${(event) => setTyped(event.currentTarget.value)} />
    <${FormError} form=${form} fields=${["decision", "fee_msat", "reason"]} />
    <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="danger" disabled=${form.busy || typed.trim() !== word}>Decide</button></div>
  </form><//>`;
}
