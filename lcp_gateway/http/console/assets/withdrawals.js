// Withdrawals of the wallet: an invoice of the person's own is paid from the balance. Nothing where the gateway has none.
import { get, post, remove, useLoad } from "./api.js";
import { readSat } from "./format.js";
import { html, useState } from "./html.js";
import { Amount, Empty, Field, FormError, Id, Panel, Table, Time, Tone, useForm } from "./ui.js";

const STATES = {
  awaiting_approval: ["busy", "waits for the operator"],
  approved: ["busy", "approved"],
  paying: ["busy", "being paid"],
  unknown: ["warn", "payment unknown"],
  settled: ["good", "paid"],
  failed: ["bad", "not paid"],
  denied: ["bad", "denied"],
  canceled: ["none", "taken back"],
};
export const WithdrawalState = ({ status }) => {
  const [tone, words] = STATES[status] ?? ["none", status];
  return html`<${Tone} tone=${tone}>${words}<//>`;
};

/** A list of withdrawals; null where the gateway has no such route, or the session may not read it. */
async function readOrNone(path, options) {
  try {
    return await get(path, { ...options, quiet: true });
  } catch (error) {
    if (error.status === 404 || error.status === 403) return { data: null };
    throw error;
  }
}

export function Withdrawals({ ctx, wallet }) {
  const list = useLoad("/api/wallet/withdrawals?limit=50", { live: ["wallet"], read: readOrNone });
  if (!list.data?.data) return null;
  const mayPay = (ctx.session.scopes ?? []).includes("withdraw");
  const changed = () => {
    list.reload();
    wallet.reload();
  };
  const columns = [
    { name: "Time", cell: (row) => html`<${Time} at=${row.created_at} />` },
    { name: "State", cell: (row) => html`<${WithdrawalState} status=${row.status} />${row.reason && html` <small class="note">${row.reason.replaceAll("_", " ")}</small>`}` },
    { name: "Payment hash", hide: "phone", cell: (row) => html`<${Id} id=${row.payment_hash} />` },
    { name: "Fee, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.fee_msat} />` },
    { name: "Amount, sat", right: true, cell: (row) => html`<${Amount} msat=${row.amount_msat} />` },
    { name: "", right: true, cell: (row) => mayPay && row.status === "awaiting_approval" && html`<${TakeBack} id=${row.id} onDone=${changed} />` },
  ];
  return html`<${Panel} title="Withdraw">
    ${mayPay ? html`<${Form} ctx=${ctx} onDone=${changed} />` : html`<p class="note">Paying out needs a key of scope <code>withdraw</code>: sign in with one.</p>`}
    <${Table} caption="Withdrawals" columns=${columns} rows=${list.data.data} empty=${html`<${Empty} title="Nothing was withdrawn yet" />`} />
  <//>`;
}

function Form({ ctx, onDone }) {
  const [invoice, setInvoice] = useState("");
  const [amount, setAmount] = useState("");
  const form = useForm(async () => {
    const body = { payment_request: invoice.trim().replace(/^lightning:/i, "") };
    if (amount.trim()) {
      body.amount_msat = readSat(amount);
      if (!body.amount_msat) throw { param: "amount_msat", message: "Enter an amount in sats, like 1000." };
    }
    await post("/api/wallet/withdrawals", body);
    setInvoice("");
    setAmount("");
    onDone();
  });
  const demo = async () => {
    try {
      setInvoice((await post("/api/wallet/demo-invoice", { amount_sat: 10 })).payment_request);
    } catch (error) {
      form.setError(error);
    }
  };
  return html`<form onSubmit=${form.onSubmit}>
    <${Field} label="Invoice" note="made by your own wallet; it is paid from the balance, with the routing fee" required spellcheck=${false} placeholder="lnbc…"
      error=${form.errorOf("payment_request")} value=${invoice} onInput=${(event) => setInvoice(event.currentTarget.value)} />
    <${Field} label="Amount in sat" note="only for an invoice without an amount" inputmode="decimal" error=${form.errorOf("amount_msat")} value=${amount} onInput=${(event) => setAmount(event.currentTarget.value)} />
    <${FormError} form=${form} fields=${["payment_request", "amount_msat"]} />
    <div class="buttons">
      ${ctx.info.demo && html`<button type="button" onClick=${demo}>An invoice to try, 10 sat</button>`}
      <button class="primary" disabled=${form.busy}>${form.busy ? "Withdrawing…" : "Withdraw"}</button>
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
