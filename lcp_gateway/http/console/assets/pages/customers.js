// Customers: the list, invites, and one customer with keys, adjustments and the statement.
import { patch, post, remove, useLoad, usePages, withQuery } from "../api.js";
import { readSat } from "../format.js";
import { html, useState } from "../html.js";
import { NewKey } from "../keys.js";
import { go } from "../router.js";
import { Amount, Confirm, Copyable, Dialog, Empty, Field, Figure, FormError, Go, Head, Loaded, Name, Panel, Problem, Select, Sum, Table, Time, Tone, useForm } from "../ui.js";
import { KeyTable } from "./keys.js";
import { MOVEMENTS } from "./wallet.js";
import { WithdrawalTable } from "./withdrawals.js";

export default function Customers({ ctx, route }) {
  return route.path[1] ? html`<${Customer} ctx=${ctx} id=${route.path[1]} />` : html`<${All} ctx=${ctx} />`;
}

function All({ ctx }) {
  const accounts = usePages("/api/admin/accounts", { live: ["purchase", "topup"] });
  const [isAdding, setAdding] = useState(false);
  const columns = [
    { name: "Name", clip: true, cell: (row) => html`<${Go} to=${["customers", row.id]}><${Name}>${row.name}<//><//>` },
    { name: "Id", hide: "phone", cell: (row) => html`<code>${row.id}</code>` },
    { name: "Since", hide: "phone", cell: (row) => html`<${Time} at=${row.created_at} />` },
    { name: "State", hide: "phone", cell: (row) => (row.deleted ? html`<${Tone} tone="none">deleted<//>` : html`<${Tone} tone="good">active<//>`) },
    { name: "Held, sat", right: true, cell: (row) => html`<${Amount} msat=${row.held_msat} />` },
    { name: "Available, sat", right: true, cell: (row) => html`<${Amount} msat=${row.available_msat} />` },
  ];
  return html`
    <${Head} title="Customers"><button class="primary" onClick=${() => setAdding(true)}>+ New customer</button><//>
    <div class="stack">
      <${Panel}>
        <${Problem} error=${accounts.error} reload=${accounts.reload} stale=${accounts.loaded} />
        ${accounts.loaded && html`<${Table} caption="Customers" columns=${columns} rows=${accounts.items} more=${accounts.more} busy=${accounts.busy}
          empty=${html`<${Empty} title="No customers yet"><p>Make one here${ctx.info.registration === "closed" ? ", or let people register: set registration to invite or open" : ", or wait until a customer registers"}.</p><//>`} />`}
      <//>
      ${ctx.info.registration === "invite" && html`<${Invites} />`}
    </div>
    ${isAdding && html`<${NewCustomer} onClose=${() => setAdding(false)} />`}`;
}

function NewCustomer({ onClose }) {
  const [name, setName] = useState("");
  const form = useForm(async () => {
    const made = await post("/api/admin/accounts", { name: name.trim() });
    onClose();
    go(["customers", made.id]);
  });
  return html`<${Dialog} title="New customer" onClose=${onClose}><form onSubmit=${form.onSubmit}>
    <${Field} label="Name" required maxlength="100" autofocus error=${form.errorOf("name")} value=${name} onInput=${(event) => setName(event.currentTarget.value)} />
    <${FormError} form=${form} fields=${["name"]} />
    <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="primary" disabled=${form.busy}>Make the account</button></div>
  </form><//>`;
}

const INVITE_TONES = { open: "good", used: "none", expired: "none", revoked: "none" };

function Invites() {
  const invites = usePages("/api/admin/invites");
  const [made, setMade] = useState(null);
  const form = useForm(async () => setMade(await post("/api/admin/invites", {})));
  const revoke = (id) => async () => {
    await remove(`/api/admin/invites/${encodeURIComponent(id)}`).catch(form.setError);
    invites.reload();
  };
  const done = () => {
    setMade(null);
    invites.reload();
  };
  const stateOf = (row) => row.status ?? (row.used_at ? "used" : "open");
  const columns = [
    { name: "Invite", cell: (row) => html`<code>${row.id}</code>` },
    { name: "Made", hide: "phone", cell: (row) => html`<${Time} at=${row.created_at} />` },
    { name: "Expires", cell: (row) => (row.expires_at ? html`<${Time} at=${row.expires_at} />` : "never") },
    { name: "State", cell: (row) => html`<${Tone} tone=${INVITE_TONES[stateOf(row)]}>${stateOf(row)}<//>` },
    { name: "", right: true, cell: (row) => stateOf(row) === "open" && html`<button class="small" onClick=${revoke(row.id)}>Revoke</button>` },
  ];
  const add = html`<button onClick=${form.onSubmit} disabled=${form.busy}>+ New invite</button>`;
  return html`<${Panel} title="Invites" note="Each lets one person register." actions=${add}>
    <${FormError} form=${form} />
    <${Problem} error=${invites.error} reload=${invites.reload} />
    ${invites.loaded && html`<${Table} caption="Invites" columns=${columns} rows=${invites.items} more=${invites.more} busy=${invites.busy} empty=${html`<${Empty} title="No invites yet" />`} />`}
    ${made && html`<${Dialog} title="New invite" stays onClose=${done} wide><div class="stack">
      <p>Send this code to the person, with the address of this console. It is <strong>shown once</strong> and works once.</p>
      <${Copyable} text=${made.invite} label="Copy the code" name="Invite code" />
      <div class="buttons"><button class="primary" onClick=${done}>Done</button></div></div><//>`}
  <//>`;
}

function Customer({ ctx, id }) {
  const path = `/api/admin/accounts/${encodeURIComponent(id)}`;
  const account = useLoad(path, { live: ["purchase", "topup"] });
  return html`<${Loaded} from=${account}>${(data) => html`<${Shown} ctx=${ctx} row=${data} path=${path} reload=${account.reload} />`}<//>`;
}

function Shown({ ctx, row, path, reload }) {
  const keys = usePages(`${path}/keys`, { live: ["purchase"] });
  const lines = usePages(`${path}/statement`, { live: ["purchase", "topup"] });
  const withdrawals = usePages(withQuery("/api/admin/withdrawals", { account_id: row.id }), { live: ["topup"] });
  const [open, setOpen] = useState(null);
  const close = () => setOpen(null);
  const changed = () => {
    close();
    reload();
    keys.reload();
    lines.reload();
    withdrawals.reload();
  };
  const destroy = (typed) => remove(path, undefined, { headers: { "X-Lcp-Confirm": typed } }).then(changed);
  return html`
    <${Head} title=${html`<${Name}>${row.name}<//>`} note=${html`<code>${row.id}</code>, since <${Time} at=${row.created_at} />`}>
      <${Go} to="activity" query=${{ account: row.id }} class="button">Activity<//>
      ${!row.deleted && html`<button onClick=${() => setOpen("rename")}>Rename…</button><button onClick=${() => setOpen("adjust")}>Adjust…</button><button class="danger" onClick=${() => setOpen("delete")}>Delete…</button>`}
    <//>
    <div class="stack">
      ${row.deleted && html`<p class="strip">This account is deleted. Its books stay.</p>`}
      ${row.withdrawals_frozen && html`<p class="strip"><strong>It may not withdraw.</strong> Withdrawals of this account are refused, and approved ones wait, until you let it again.</p>`}
      <dl class="figures">
        <${Figure} name="Available"><${Sum} msat=${row.available_msat} /><//>
        <${Figure} name="Held"><${Sum} msat=${row.held_msat} /><//>
        <${Figure} name="Balance" note="what you owe the customer"><${Sum} msat=${row.balance_msat} /><//>
      </dl>
      <${Panel} title="Keys" actions=${!row.deleted && html`<button onClick=${() => setOpen("key")}>+ New Key</button>`}>
        <${Problem} error=${keys.error} reload=${keys.reload} stale=${keys.loaded} />
        ${keys.loaded && html`<${KeyTable} ctx=${{ ...ctx, isOperator: false }} rows=${keys.items} more=${keys.more} busy=${keys.busy} />`}
      <//>
      ${(withdrawals.items.length > 0 || row.withdrawals_frozen || ctx.info.withdrawals?.enabled) && html`<${Panel} title="Withdrawals"
        actions=${!row.deleted && html`<button onClick=${() => setOpen("freeze")}>${row.withdrawals_frozen ? "Let it withdraw…" : "Freeze…"}</button>`}>
        <${Problem} error=${withdrawals.error} reload=${withdrawals.reload} stale=${withdrawals.loaded} />
        ${withdrawals.loaded && html`<${WithdrawalTable} rows=${withdrawals.items} more=${withdrawals.more} busy=${withdrawals.busy} reload=${changed} withCustomer=${false} empty=${html`<${Empty} title="Nothing was withdrawn yet" />`} />`}
      <//>`}
      <${Panel} title="Statement" actions=${html`<a class="button small" href="${path}/statement?format=csv" download>CSV</a>`}>
        <${Problem} error=${lines.error} reload=${lines.reload} stale=${lines.loaded} />
        ${lines.loaded && html`<${Table} caption="Statement" columns=${MOVEMENTS} rows=${lines.items} more=${lines.more} busy=${lines.busy} empty=${html`<${Empty} title="No movements yet" />`} />`}
      <//>
    </div>
    ${open === "freeze" && html`<${Freeze} row=${row} path=${path} onClose=${close} onDone=${changed} />`}
    ${open === "key" && html`<${NewKey} ctx=${ctx} path="${path}/keys" onClose=${close} onDone=${changed} />`}
    ${open === "adjust" && html`<${Adjust} row=${row} path=${path} onClose=${close} onDone=${changed} />`}
    ${open === "rename" && html`<${Rename} row=${row} path=${path} onClose=${close} onDone=${changed} />`}
    ${open === "delete" && html`<${Confirm} title="Delete this customer?" word=${row.id.slice(-6)} button="Delete the customer" act=${destroy} onClose=${close}>
      <p>The keys of <bdi>${row.name}</bdi> stop working at once. The books stay. This cannot be undone.</p>
    <//>`}`;
}

/** Keep an account from withdrawing, or let it again: both can be undone. */
function Freeze({ row, path, onClose, onDone }) {
  const [reason, setReason] = useState("");
  const frozen = !row.withdrawals_frozen;
  const form = useForm(async () => {
    await post(`${path}/withdrawals`, { frozen, reason: reason.trim() });
    onDone();
  });
  return html`<${Dialog} title=${frozen ? "Freeze withdrawals" : "Let it withdraw again"} onClose=${onClose}><form onSubmit=${form.onSubmit}>
    <p>${frozen ? "The account keeps its balance and can use it. What it withdraws is refused, and approved withdrawals wait." : "The account may withdraw from now on, and approved withdrawals are paid."}</p>
    <${Field} label="Reason" note="kept in the log" required maxlength="128" autofocus error=${form.errorOf("reason")} value=${reason} onInput=${(event) => setReason(event.currentTarget.value)} />
    <${FormError} form=${form} fields=${["reason"]} />
    <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="primary" disabled=${form.busy}>${frozen ? "Freeze" : "Let it withdraw"}</button></div>
  </form><//>`;
}

function Rename({ row, path, onClose, onDone }) {
  const [name, setName] = useState(row.name);
  const form = useForm(async () => {
    await patch(path, { name: name.trim() });
    onDone();
  });
  return html`<${Dialog} title="Rename" onClose=${onClose}><form onSubmit=${form.onSubmit}>
    <${Field} label="Name" required maxlength="100" autofocus error=${form.errorOf("name")} value=${name} onInput=${(event) => setName(event.currentTarget.value)} />
    <${FormError} form=${form} fields=${["name"]} />
    <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="primary" disabled=${form.busy}>Rename</button></div>
  </form><//>`;
}

const DIRECTIONS = [["add", "add to the balance"], ["take", "take from the balance"]];

/** An adjustment. Its id is made with the dialog: sending it twice, after an error of the network, adjusts once. */
function Adjust({ row, path, onClose, onDone }) {
  const [once] = useState(newId);
  const [amount, setAmount] = useState("");
  const [direction, setDirection] = useState("add");
  const [reason, setReason] = useState("");
  const [typed, setTyped] = useState("");
  const word = row.id.slice(-6);
  const form = useForm(async () => {
    const msat = readSat(amount);
    if (!msat) throw { param: "amount_msat", message: "Enter an amount in sats, like 1000." };
    const body = { amount_msat: direction === "add" ? msat : -msat, reason: reason.trim() };
    await post(`${path}/adjustments`, body, { headers: { "Idempotency-Key": once, "X-Lcp-Confirm": typed.trim() } });
    onDone();
  });
  return html`<${Dialog} title="Adjust the balance" onClose=${onClose}><form onSubmit=${form.onSubmit}>
    <p>Available now: <${Sum} msat=${row.available_msat} /></p>
    <div class="row">
      <${Field} label="Amount in sat" inputmode="decimal" required autofocus error=${form.errorOf("amount_msat")} value=${amount} onInput=${(event) => setAmount(event.currentTarget.value)} />
      <${Select} label="Direction" value=${direction} options=${DIRECTIONS} onPick=${setDirection} />
    </div>
    <${Field} label="Reason" note="kept in the books and in the log" required maxlength="500" error=${form.errorOf("reason")} value=${reason} onInput=${(event) => setReason(event.currentTarget.value)} />
    <${Field} label=${html`Type <strong>${word}</strong> to confirm`} spellcheck=${false} value=${typed} onInput=${(event) => setTyped(event.currentTarget.value)} />
    <${FormError} form=${form} fields=${["amount_msat", "reason"]} />
    <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="primary" disabled=${form.busy || typed.trim() !== word}>Adjust</button></div>
  </form><//>`;
}

/** 128 random bits; crypto.randomUUID is missing on plain http between computers. */
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
