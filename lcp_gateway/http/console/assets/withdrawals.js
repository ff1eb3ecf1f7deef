// Withdrawals: their states in words, and the wallet's panel that pays an invoice of the person's own from the balance.
import { get, post, remove, useLoad } from "./api.js";
import { duration, readSat, sat } from "./format.js";
import { html, useState } from "./html.js";
import { Amount, Empty, Field, FormError, Id, Panel, Problem, Sum, Table, Time, Tone, useForm } from "./ui.js";

const STATES = {
  awaiting_approval: ["busy", "waits for the operator"],
  approved: ["busy", "approved, is paid soon"],
  paying: ["busy", "being paid"],
  unknown: ["warn", "payment unknown"],
  settled: ["good", "paid"],
  failed: ["bad", "not paid"],
  denied: ["bad", "denied"],
  canceled: ["none", "taken back"],
};
export const WITHDRAWAL_STATES = Object.entries(STATES).map(([state, [, words]]) => [state, words]);
export const WithdrawalState = ({ row }) => {
  const [tone, words] = STATES[row.status] ?? ["none", row.status];
  return html`<${Tone} tone=${tone}>${words}<//>${row.message && html` <small class="note">${row.message}</small>`}`;
};
const CAN_BE_TAKEN_BACK = ["awaiting_approval", "approved"];

/** A list of withdrawals; {data: null} where the gateway has no such route, or the session may not read it. */
async function readOrNone(path, options) {
  try {
    return await get(path, { ...options, quiet: true });
  } catch (error) {
    if (error.status === 404 || error.status === 403) return { data: null };
    throw error;
  }
}
export const useWithdrawals = () => useLoad("/api/wallet/withdrawals?limit=50", { live: ["wallet"], read: readOrNone });

export function Withdrawals({ ctx, list, wallet }) {
  const rules = ctx.info.withdrawals;
  const rows = list.data?.data;
  if (!rows) return html`<${Problem} error=${list.error} reload=${list.reload} />`;
  if (!rules?.enabled && !rows.length) return null;
  const changed = () => {
    list.reload();
    wallet.reload();
  };
  const columns = [
    { name: "Time", cell: (row) => html`<${Time} at=${row.created_at} />` },
    { name: "State", cell: (row) => html`<${WithdrawalState} row=${row} />` },
    { name: "Payment hash", hide: "phone", cell: (row) => html`<${Id} id=${row.payment_hash} />` },
    { name: "Fee, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.fee_msat} />` },
    { name: "Amount, sat", right: true, cell: (row) => html`<${Amount} msat=${row.amount_msat} />` },
    { name: "", right: true, cell: (row) => ctx.mayWithdraw && CAN_BE_TAKEN_BACK.includes(row.status) && html`<${TakeBack} id=${row.id} onDone=${changed} />` },
  ];
  return html`<${Panel} title="Withdraw">
    ${!rules?.enabled ? html`<p class="note">Withdrawals are off for now. Ask the operator of this gateway.</p>`
      : ctx.mayWithdraw ? html`<${Form} ctx=${ctx} rules=${rules} onDone=${changed} />`
      : html`<${Empty} title="The key that you signed in with may not pay out"><p>Sign in with the sign-in key from your registration, or with another key that has the scope <code>withdraw</code>. If you have none, ask the operator
          to make a “Sign-in key that also withdraws” for you${rules.freeze_s > 0 ? ` (the account can withdraw ${duration(rules.freeze_s)} after it was made)` : ""}.</p><//>`}
    <${Table} caption="Withdrawals" columns=${columns} rows=${rows} empty=${html`<${Empty} title="Nothing was withdrawn yet" />`} />
  <//>`;
}

const MSAT = { m: 100_000_000n, u: 100_000n, n: 100n };

/** The amount that an invoice (BOLT 11) names in its readable part, in msat; null where it names none or is no invoice. The gateway decides. */
export function invoiceMsat(text) {
  const found = /^ln(?:bcrt|bc|tbs|tb|sb)(\d{1,15})([munp]?)1[ac-hj-np-z02-9]{100,}$/i.exec(text.trim().replace(/^lightning:/i, ""));
  if (!found) return null;
  const number = BigInt(found[1]);
  const unit = found[2].toLowerCase();
  return unit === "p" ? number / 10n : number * (MSAT[unit] ?? 100_000_000_000n);
}

function Form({ ctx, rules, onDone }) {
  const [invoice, setInvoice] = useState("");
  const [amount, setAmount] = useState("");
  const [made, setMade] = useState(null);
  const named = invoiceMsat(invoice);
  const form = useForm(async () => {
    const body = { payment_request: invoice.trim().replace(/^lightning:/i, "") };
    if (named === null && amount.trim()) {
      body.amount_msat = readSat(amount);
      if (!body.amount_msat) throw { param: "amount_msat", message: "Enter an amount in sats, like 1000." };
    }
    setMade(null);
    setMade(await post("/api/wallet/withdrawals", body));
    setInvoice("");
    setAmount("");
    onDone();
  });
  const tryMsat = Math.max(rules.min_msat, 10_000);
  const demo = async () => {
    try {
      setInvoice((await post("/api/wallet/demo-invoice", { amount_sat: Math.ceil(tryMsat / 1000) })).payment_request);
      form.setError(null);
    } catch (error) {
      form.setError(error);
    }
  };
  const bounds = `${sat(rules.min_msat)} sat or more${rules.max_msat ? `, ${sat(rules.max_msat)} sat at most` : ""}${rules.approval_msat ? `; above ${sat(rules.approval_msat)} sat the operator decides first` : ""}`;
  return html`<form onSubmit=${form.onSubmit}>
    <${Field} label="Invoice to pay" note=${`made by your own wallet; the routing fee is taken from the balance too. ${bounds}.`} required spellcheck=${false} placeholder="lnbc…"
      error=${form.errorOf("payment_request")} value=${invoice} onInput=${(event) => setInvoice(event.currentTarget.value)} />
    ${invoice.trim() && named === null && html`<${Field} label="Withdraw, sat" note="only for an invoice without an amount" inputmode="decimal" error=${form.errorOf("amount_msat")} value=${amount} onInput=${(event) => setAmount(event.currentTarget.value)} />`}
    <${FormError} form=${form} fields=${["payment_request", ...(named === null ? ["amount_msat"] : [])]} />
    ${made && html`<p class="said" role="status">${made.status === "awaiting_approval" ? "The operator decides on it; the amount is held." : html`Sent: <${Sum} msat=${made.amount_msat} />.`}</p>`}
    <div class="buttons">
      ${ctx.info.demo && html`<button type="button" onClick=${demo}>An invoice to try, ${sat(tryMsat)} sat</button>`}
      <button class="primary" disabled=${form.busy}>${form.busy ? "Withdrawing…" : named === null ? "Withdraw" : `Withdraw ${sat(named)} sat`}</button>
    </div>
  </form>`;
}

function TakeBack({ id, onDone }) {
  const form = useForm(async () => {
    await remove(`/api/wallet/withdrawals/${encodeURIComponent(id)}`);
    onDone();
  });
  return html`<button class="small" onClick=${form.onSubmit} disabled=${form.busy}>Take back</button><${FormError} form=${form} />`;
}
