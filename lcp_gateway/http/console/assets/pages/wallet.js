// Wallet: what is there, what is held and why, top-ups over Lightning, movements.
import { post, useLoad, usePages } from "../api.js";
import { countdown, plural, readSat, sat, toDate } from "../format.js";
import { html, useEffect, useState } from "../html.js";
import { go } from "../router.js";
import { Amount, Copy, Empty, Field, Figure, FormError, Go, Head, Id, Loaded, Name, Panel, Problem, Sum, Table, Time, Tone, useForm } from "../ui.js";
import { Withdrawals, useWithdrawals } from "../withdrawals.js";

const QUICK_SAT = [100, 1_000, 10_000];

export default function Wallet({ ctx, route }) {
  const wallet = useLoad("/api/wallet", { live: ["wallet", "topup", "purchase"] });
  const topups = useLoad("/api/wallet/topups?limit=50", { live: ["topup"] });
  const withdrawals = useWithdrawals();
  const shown = route.path[1] ?? null;
  return html`
    <${Head} title="Wallet" />
    <div class="stack">
      <${Loaded} from=${wallet}>${(data) => html`<dl class="figures">
        <${Figure} name="Available" note="to spend now"><${Sum} msat=${data.available_msat} /><//>
        <${Figure} name="Held" note=${html`<${HeldFor} heldMsat=${data.held_msat} withdrawals=${withdrawals.data?.data} />`}><${Sum} msat=${data.held_msat} /><//>
        <${Figure} name="Balance" note="available and held"><${Sum} msat=${data.balance_msat} /><//>
      </dl>`}<//>
      ${shown ? html`<${OneTopup} id=${shown} ctx=${ctx} />` : html`<${NewTopup} ctx=${ctx} topups=${topups} />`}
      <${OpenTopups} topups=${topups} shown=${shown} />
      <${Withdrawals} ctx=${ctx} list=${withdrawals} wallet=${wallet} />
      <${Movements} />
    </div>`;
}

/** Why money is held: requests that run, payments of which nothing is known yet, and withdrawals. */
function HeldFor({ heldMsat, withdrawals }) {
  const open = useLoad(heldMsat ? "/api/purchases?state=paying,settled,unknown&limit=100" : null, { live: ["purchase"] });
  if (!heldMsat) return "nothing is held";
  const rows = open.data?.data ?? [];
  const unknown = rows.filter((row) => row.state === "unknown").length;
  const running = rows.length - unknown;
  const leaving = (withdrawals ?? []).filter((row) => row.held_msat > 0).length;
  return [
    running > 0 && `for ${plural(running, "request")} being answered`,
    unknown > 0 && html`<${Go} to="activity" query=${{ state: "unknown" }}>for ${plural(unknown, "payment")} not yet known<//>`,
    leaving > 0 && `for ${plural(leaving, "withdrawal")}`,
  ].filter(Boolean).map((words, number) => html`${number > 0 && ", "}${words}`);
}

function NewTopup({ ctx, topups }) {
  const { topups: rules } = ctx.info;
  const [amount, setAmount] = useState("");
  const form = useForm(async () => {
    const msat = readSat(amount);
    if (msat === null) throw { param: "amount_sat", message: "Enter an amount in sats, like 1000." };
    const made = await post("/api/wallet/topups", { amount_msat: msat });
    go(["wallet", made.id]);
  });
  if (!rules?.enabled)
    return html`<${Panel} title="Top up"><${Empty} title="Top-ups are off"><p>${rules?.reason ?? "This gateway cannot make invoices."} Ask its operator to add to your balance.</p><//><//>`;
  const open = (topups.data?.data ?? []).filter((topup) => topup.status === "open").length;
  if (rules.open_max && open >= rules.open_max)
    return html`<${Panel} title="Top up"><${Empty} title="${plural(open, "invoice")} are open"><p>No more can be made at one time. Pay one of those below, or wait until they expire.</p><//><//>`;
  const [least, most] = [rules.min_msat, rules.max_msat];
  const quick = QUICK_SAT.filter((sats) => sats * 1000 >= (least ?? 0) && sats * 1000 <= (most || Infinity));
  return html`<${Panel} title="Top up">
    <form onSubmit=${form.onSubmit}>
      <div class="row">
        <${Field} label="Amount in sat" inputmode="decimal" value=${amount} placeholder="1000" required
          note=${most ? `from ${sat(least)} to ${sat(most)} sat` : `${sat(least)} sat or more`}
          error=${form.errorOf("amount_sat", "amount_msat")} onInput=${(event) => setAmount(event.currentTarget.value)} />
        <div class="field"><span class="note" id="quick">Usual amounts</span>
          <div class="segments" role="group" aria-labelledby="quick">${quick.map((sats) => html`<button type="button" key=${sats} onClick=${() => setAmount(String(sats))}>${sat(sats * 1000)}</button>`)}</div></div>
      </div>
      <${FormError} form=${form} fields=${["amount_sat", "amount_msat"]} />
      <div class="buttons"><button class="primary" disabled=${form.busy}>${form.busy ? "Making the invoice…" : "Make an invoice"}</button></div>
    </form>
  <//>`;
}

function OneTopup({ id, ctx }) {
  const topup = useLoad(`/api/wallet/topups/${encodeURIComponent(id)}`, { live: ["topup", "wallet"] });
  const back = html`<${Go} to="wallet" class="button small">Another amount<//>`;
  return html`<${Panel} title="Top up" actions=${back}><${Loaded} from=${topup}>${(data) => html`<${Invoice} topup=${data} ctx=${ctx} reload=${topup.reload} />`}<//><//>`;
}

function Invoice({ topup, ctx, reload }) {
  const left = useSecondsLeft(topup);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const act = (work) => async () => {
    setBusy(true);
    setError(null);
    try {
      await work();
    } catch (failed) {
      setError(failed);
    }
    setBusy(false);
    reload();
  };
  useEffect(() => {
    if (left !== null && left <= 0 && topup.status === "open") reload();
  }, [left !== null && left <= 0]);
  if (topup.status === "settled")
    return html`<div class="paid" role="status"><span class="tick" aria-hidden="true">✓</span>
      <div><p><strong>Paid.</strong> <${Sum} msat=${topup.received_msat ?? topup.amount_msat} /> were added to your balance.</p>
      <p class="note"><${Time} at=${topup.settled_at} /></p></div></div>`;
  if (topup.status === "expired" || left <= 0)
    return html`<${Empty} title="This invoice has expired"><p>It cannot be paid any more, and nothing was taken. Make a new one with “Another amount”. If you did pay in time, the amount is credited by itself.</p><//>`;
  const uri = `lightning:${topup.payment_request}`;
  const total = (toDate(topup.expires_at) - toDate(topup.created_at)) / 1000;
  const demo = act(() => post(`/api/wallet/topups/${encodeURIComponent(topup.id)}/demo-payment`));
  const webln = act(async () => {
    await window.webln.enable();
    await window.webln.sendPayment(topup.payment_request);
  });
  return html`<div class="invoice">
    <img src="/api/wallet/topups/${encodeURIComponent(topup.id)}/qr.svg" width="240" height="240" alt="QR code of the invoice" />
    <div class="stack">
      <p><strong><${Sum} msat=${topup.amount_msat} /></strong></p>
      <p>Scan the code with a Lightning wallet, or copy the invoice into one. The balance changes by itself once it is paid; this page may be closed.</p>
      <div class="copyable"><code data-copy tabindex="0" role="textbox" aria-readonly="true" aria-label="Invoice" title=${topup.payment_request}>${topup.payment_request}</code><${Copy} text=${topup.payment_request} label="Copy the invoice" /></div>
      <div class="actions">
        ${ctx.info.demo && html`<button class="primary" onClick=${demo} disabled=${busy}>${busy ? "Paying…" : "Pay with play money"}</button>`}
        ${window.webln && html`<button class=${ctx.info.demo ? null : "primary"} onClick=${webln} disabled=${busy}>Pay with the browser's wallet</button>`}
        <a class="button" href=${uri}>Open in a wallet</a>
      </div>
      ${error && html`<p class="field-error" role="alert">${error.message ?? "The wallet did not pay."}</p>`}
      <p class="note" role="status">Waiting for the payment.${left !== null && left < total / 4 && html` The invoice expires in <span class="amount">${countdown(left)}</span>.`}</p>
    </div>
  </div>`;
}

/** Seconds until an open invoice expires, each second in its last quarter and else when that begins. */
function useSecondsLeft(topup) {
  const end = toDate(topup.expires_at);
  const left = () => (end ? (end - Date.now()) / 1000 : null);
  const [seconds, setSeconds] = useState(left);
  useEffect(() => {
    setSeconds(left());
    if (topup.status !== "open" || !end) return undefined;
    let timer;
    const quarter = (end - toDate(topup.created_at)) / 4000;
    const tick = () => {
      setSeconds(left());
      if (left() > 0) timer = setTimeout(tick, left() > quarter ? Math.min((left() - quarter) * 1000, 2 ** 30) : 1000);
    };
    tick();
    return () => clearTimeout(timer);
  }, [topup.id, topup.status, topup.expires_at]);
  return seconds;
}

function OpenTopups({ topups, shown }) {
  const open = (topups.data?.data ?? []).filter((topup) => topup.status === "open" && topup.id !== shown);
  if (!open.length) return topups.data ? null : html`<${Problem} error=${topups.error} reload=${topups.reload} />`;
  const columns = [
    { name: "Made", cell: (row) => html`<${Time} at=${row.created_at} />` },
    { name: "Memo", hide: "phone", cell: (row) => html`<${Name}>${row.memo || "–"}<//>` },
    { name: "Expires", cell: (row) => html`<${Time} at=${row.expires_at} near />` },
    { name: "Amount, sat", right: true, cell: (row) => html`<${Amount} msat=${row.amount_msat} />` },
    { name: "", right: true, cell: (row) => html`<${Go} to=${["wallet", row.id]}>Show<//>` },
  ];
  return html`<${Panel} title="Open invoices"><${Table} caption="Open invoices" columns=${columns} rows=${open} /><//>`;
}

const CAUSES = {
  topup: ["good", "top-up"],
  purchase: ["none", "purchase"],
  refund: ["none", "given back"],
  adjustment: ["warn", "adjustment by the operator"],
  withdrawal: ["none", "withdrawal, with its fee"],
  transfer: ["none", "transfer within the gateway"],
  earning: ["good", "earned by a node"],
};
/** The cause of a movement, in words. */
export const Cause = ({ cause }) => {
  const [tone, words] = CAUSES[cause] ?? ["none", cause.replaceAll("_", " ")];
  return html`<${Tone} tone=${tone}>${words}<//>`;
};

export const MOVEMENTS = [
  { name: "Time", cell: (row) => html`<${Time} at=${row.at} />` },
  { name: "What", cell: (row) => html`<${Cause} cause=${row.cause} />` },
  {
    name: "Reference",
    hide: "phone",
    // An earning names the purchase of another customer.
    cell: (row) => (row.cause !== "earning" && /^[0-9a-f]{64}$/.test(row.cause_id) ? html`<${Go} to=${["activity", row.cause_id]}><${Id} id=${row.cause_id} /><//>` : html`<${Id} id=${row.cause_id} head=${14} />`),
  },
  { name: "Amount, sat", right: true, cell: (row) => html`<${Amount} msat=${row.amount_msat} signed />` },
  { name: "Balance, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.balance_msat} />` },
];

function Movements() {
  const lines = usePages("/api/wallet/transactions", { live: ["wallet"] });
  const csv = lines.items.length > 0 && html`<a class="button small" href="/api/wallet/transactions?format=csv" download>CSV</a>`;
  return html`<${Panel} title="Movements" actions=${csv}>
    <${Problem} error=${lines.error} reload=${lines.reload} stale=${lines.loaded} />
    ${lines.loaded && html`<${Table} caption="Movements of the balance" columns=${MOVEMENTS} rows=${lines.items} more=${lines.more} busy=${lines.busy}
      empty=${html`<${Empty} title="No movements yet"><p>Top-ups, purchases, refunds and withdrawals appear here.</p><//>`} />`}
  <//>`;
}
