// Keys: the list, and one key with its limits, its budgets and what it bought.
import { patch, remove, useLoad, usePages } from "../api.js";
import { Bars } from "../chart.js";
import { html, useEffect, useState } from "../html.js";
import { KeyState, LIMIT_FIELDS, LimitFields, NewKey, Scopes, fromDraft, limitsOf, toDraft } from "../keys.js";
import { spentOf, toBars } from "../purchases.js";
import { Amount, Confirm, Empty, Field, FormError, Go, Head, Id, Loaded, Meter, Name, Panel, Problem, Sum, Table, Time, useForm } from "../ui.js";

export const keysPath = (ctx) => (ctx.isOperator ? "/api/admin/keys" : "/api/account/keys");

export default function Keys({ ctx, route }) {
  return route.path[1] ? html`<${OneKey} ctx=${ctx} id=${route.path[1]} />` : html`<${AllKeys} ctx=${ctx} />`;
}

function AllKeys({ ctx }) {
  const keys = usePages(keysPath(ctx), { live: ["purchase"] });
  const [isMaking, setMaking] = useState(false);
  const add = ctx.mayMakeKeys && !ctx.isOperator;
  const done = () => {
    setMaking(false);
    keys.reload();
  };
  return html`
    <${Head} title="Keys" note=${ctx.isOperator ? "Keys of all customers. Make one on the customer's page." : "One for each program: each has limits of its own and can be revoked alone."}>
      ${add && html`<button class="primary" onClick=${() => setMaking(true)}>+ New Key</button>`}
    <//>
    ${!ctx.mayMakeKeys && html`<p class="note">Sign in with your sign-in key to make, change or revoke keys.</p>`}
    <${Panel}>
      <${Problem} error=${keys.error} reload=${keys.reload} stale=${keys.loaded} />
      ${keys.loaded && html`<${KeyTable} ctx=${ctx} rows=${keys.items} more=${keys.more} busy=${keys.busy} />`}
    <//>
    ${isMaking && html`<${NewKey} ctx=${ctx} path="/api/account/keys" onClose=${() => setMaking(false)} onDone=${done} />`}`;
}

export function KeyTable({ ctx, rows, more, busy }) {
  const columns = [
    { name: "Name", clip: true, cell: (row) => html`<${Go} to=${["keys", row.id]}><${Name}>${row.name}<//><//>` },
    { name: "Begins with", hide: "phone", cell: (row) => html`<code>${row.prefix}…</code>` },
    ctx.isOperator && { name: "Customer", hide: "phone", cell: (row) => html`<${Go} to=${["customers", row.account_id]}><${Id} id=${row.account_id} /><//>` },
    { name: "May", hide: "phone", cell: (row) => html`<${Scopes} row=${row} />` },
    { name: "Limits", hide: "phone", clip: true, cell: (row) => limitsOf(row) },
    { name: "State", cell: (row) => html`<${KeyState} row=${row} />` },
    { name: "Last used", cell: (row) => (row.last_used_at ? html`<${Time} at=${row.last_used_at} near />` : html`<span class="none">never</span>`) },
    { name: "This month, sat", right: true, cell: (row) => html`<${Amount} msat=${row.spent_msat?.month} />` },
  ].filter(Boolean);
  return html`<${Table} caption="Keys" columns=${columns} rows=${rows} more=${more} busy=${busy}
    empty=${html`<${Empty} title="No keys yet"><p>A program needs a key to send requests.</p><//>`} />`;
}

function OneKey({ ctx, id }) {
  const path = `${keysPath(ctx)}/${encodeURIComponent(id)}`;
  const key = useLoad(path, { live: ["purchase"] });
  return html`<${Loaded} from=${key}>${(data) => html`<${Shown} ctx=${ctx} row=${data} path=${path} reload=${key.reload} />`}<//>`;
}

function Shown({ ctx, row, path, reload }) {
  const [isRevoking, setRevoking] = useState(false);
  const usage = useLoad(`/api/usage?by=model&period=day&key=${encodeURIComponent(row.id)}`, { live: ["purchase"] });
  const mayChange = ctx.mayMakeKeys && !row.revoked_at;
  const revoke = async (typed) => {
    await remove(path, undefined, { headers: { "X-Lcp-Confirm": typed } });
    reload();
  };
  const budgets = ["hour", "day", "month"].filter((period) => row[`budget_${period}_msat`]);
  return html`
    <${Head} title=${html`<${Name}>${row.name}<//>`} note=${html`<code>${row.prefix}…</code> <${Scopes} row=${row} />`}>
      <${Go} to="activity" query=${{ key: row.id }} class="button">Its activity<//>
      ${mayChange && html`<button class="danger" onClick=${() => setRevoking(true)}>Revoke…</button>`}
    <//>
    <div class="stack">
      ${row.revoked_at && html`<p class="strip"><strong>Revoked</strong> <${Time} at=${row.revoked_at} />. It no longer works and cannot be changed. What it bought stays.</p>`}
      <div class="grid-2">
        <${Panel} title="Use">
          <dl class="facts">
            <dt>State</dt><dd><${KeyState} row=${row} /></dd>
            <dt>Made</dt><dd><${Time} at=${row.created_at} /></dd>
            <dt>Last used</dt><dd>${row.last_used_at ? html`<${Time} at=${row.last_used_at} />` : "never"}</dd>
            <dt>Expires</dt><dd>${row.expires_at ? html`<${Time} at=${row.expires_at} />` : "never"}</dd>
            <dt>This hour</dt><dd><${Sum} msat=${row.spent_msat?.hour} /></dd>
            <dt>Today</dt><dd><${Sum} msat=${row.spent_msat?.day} /></dd>
            <dt>This month</dt><dd><${Sum} msat=${row.spent_msat?.month} /></dd>
            <dt>Id</dt><dd><code>${row.id}</code></dd>
          </dl>
        <//>
        <${Panel} title="Budgets">
          ${budgets.length
            ? budgets.map((period) => html`<${Meter} key=${period} name=${`This ${period}`} used=${row.spent_msat[period]} limit=${row[`budget_${period}_msat`]} resetsAt=${row.resets_at[period]} />`)
            : html`<${Empty} title="No budget"><p>This key can spend all that the account has. Give it a budget below.</p><//>`}
        <//>
      </div>
      <${Limits} key=${row.revoked_at} row=${row} path=${path} reload=${reload} mayChange=${mayChange} />
      <${Panel} title="Spend by model, 30 days">
        <${Loaded} from=${usage}>${(data) => data.totals.purchases
          ? html`<${Bars} ...${toBars(data, (line) => spentOf(ctx, line))} caption="Spend of this key by model, in sat" />`
          : html`<${Empty} title="It bought nothing in the last 30 days" />`}<//>
      <//>
    </div>
    ${isRevoking && html`<${Confirm} title="Revoke this key?" word=${row.id.slice(-6)} button="Revoke the key" act=${revoke} onClose=${() => setRevoking(false)}>
      <p>Programs that use <bdi>${row.name}</bdi> are refused at once. This cannot be undone.</p>
    <//>`}`;
}

function Limits({ row, path, reload, mayChange }) {
  const [draft, setDraft] = useState(() => ({ name: row.name, ...toDraft(row) }));
  const [isSaved, setSaved] = useState(false);
  const form = useForm(async () => {
    const { name, ...limits } = draft;
    await patch(path, { name: name.trim(), ...fromDraft(limits) });
    setSaved(true);
    reload();
  });
  const change = (next) => {
    setSaved(false);
    setDraft(next);
  };
  useEffect(() => {
    if (form.error) setSaved(false);
  }, [form.error]);
  return html`<${Panel} title="Limits">
    <form onSubmit=${form.onSubmit}>
      <${Field} label="Name" maxlength="100" disabled=${!mayChange} error=${form.errorOf("name")} value=${draft.name} onInput=${(event) => change({ ...draft, name: event.currentTarget.value })} />
      <${LimitFields} draft=${draft} setDraft=${change} form=${form} disabled=${!mayChange} />
      <${FormError} form=${form} fields=${["name", ...LIMIT_FIELDS]} />
      ${mayChange && html`<div class="buttons"><span class="said" role="status">${isSaved ? "Saved. It holds from now on." : ""}</span><button class="primary" disabled=${form.busy}>${form.busy ? "Saving…" : "Save"}</button></div>`}
    </form>
  <//>`;
}
