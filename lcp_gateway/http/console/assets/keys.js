// Keys: the dialog that makes one and shows it once, the fields of its limits, the words for its state.
import { post } from "./api.js";
import { duration, readSat, sat, toDate } from "./format.js";
import { html, useState } from "./html.js";
import { snippetsFor } from "./snippets.js";
import { Badge, Copyable, Dialog, Field, FormError, Go, Name, Select, Snippets, Tone, useForm } from "./ui.js";

// Field, label, note; amounts are typed in sats.
const AMOUNTS = [
  ["max_price_msat", "One request, sat", "the most that one request may be charged"],
  ["budget_hour_msat", "An hour, sat", null],
  ["budget_day_msat", "A day, sat", null],
  ["budget_month_msat", "A month, sat", null],
];
const COUNTS = [
  ["requests_per_minute", "Requests a minute", null],
  ["tokens_per_minute", "Tokens a minute", null],
  ["concurrent_jobs", "Requests at one time", null],
];
export const LIMIT_FIELDS = [...AMOUNTS, ...COUNTS].map(([field]) => field).concat("models", "expires_at");

/** The limits of a key as the text of their inputs; "" is no limit. */
export function toDraft(key = {}) {
  const draft = {};
  for (const [field] of AMOUNTS) draft[field] = key[field] ? sat(key[field]) : "";
  for (const [field] of COUNTS) draft[field] = key[field] ? String(key[field]) : "";
  draft.models = (key.models ?? []).join(", ");
  const expires = toDate(key.expires_at);
  // The value of a datetime-local input: the reader's own time, to the minute.
  draft.expires_at = expires ? new Date(expires.getTime() - expires.getTimezoneOffset() * 60_000).toISOString().slice(0, 16) : "";
  return draft;
}

/** The fields for the API. Throws {param, message} at a text that is no amount or number. */
export function fromDraft(draft) {
  const fields = {};
  for (const [field, label] of AMOUNTS) {
    const msat = draft[field].trim() ? readSat(draft[field]) : 0;
    if (msat === null) throw { param: field, message: `${label}: enter an amount like 1000, or leave it empty for no limit.` };
    fields[field] = msat;
  }
  for (const [field, label] of COUNTS) {
    const text = draft[field].trim();
    if (text && !/^\d+$/.test(text)) throw { param: field, message: `${label}: enter a whole number, or leave it empty for no limit.` };
    fields[field] = text ? Number(text) : 0;
  }
  fields.models = draft.models.split(",").map((name) => name.trim()).filter(Boolean);
  fields.expires_at = draft.expires_at ? Math.floor(new Date(draft.expires_at).getTime() / 1000) : null;
  return fields;
}

export function LimitFields({ draft, setDraft, form, disabled = false }) {
  const set = (field) => (event) => setDraft({ ...draft, [field]: event.currentTarget.value });
  const input = (mode) => ([field, label, note]) => html`<${Field} key=${field} label=${label} note=${note} error=${form.errorOf(field)} inputmode=${mode} placeholder="no limit"
    disabled=${disabled} value=${draft[field]} onInput=${set(field)} />`;
  return html`
    <div class="row">${AMOUNTS.map(input("decimal"))}</div>
    <p class="note">Budgets count what requests cost the gateway (price and fee), by calendar hour, day and month in UTC.</p>
    <div class="row">${COUNTS.map(input("numeric"))}</div>
    <div class="row">
      <${Field} label="Models" note="names, with commas between them" placeholder="all" error=${form.errorOf("models")} disabled=${disabled} value=${draft.models} onInput=${set("models")} />
      <${Field} label="Expires" note="your own time; empty: never" error=${form.errorOf("expires_at")} type="datetime-local" disabled=${disabled} value=${draft.expires_at} onInput=${set("expires_at")} />
    </div>`;
}

/** The kinds of keys: [kind, words, scopes, whether this person may make one]. A key that pays out is made by one that may, or by the operator. */
const KINDS = [
  ["api", "API key, for OpenAI clients", null, () => true],
  ["agent", "Agent URL, for tools that take a URL only", ["inference"], () => true],
  ["account", "Sign-in key, for this console; it buys nothing", ["account", "wallet"], () => true],
  ["account-withdraw", "Sign-in key that also withdraws", ["account", "wallet", "withdraw"], (ctx) => ctx.isOperator || ctx.mayWithdraw],
  ["withdraw", "Withdrawal key, for programs: reads the balance and pays out", ["wallet", "withdraw"], (ctx) => ctx.isOperator || ctx.mayWithdraw],
  ["node", "Node's token, for lcp-gateway join", ["node"], (ctx) => ctx.info.nodes],
];

/** Make a key and show it, once. `path` is where keys are made; `onDone(key)` gets the key without its text. */
export function NewKey({ ctx, path, onClose, onDone }) {
  const [name, setName] = useState("");
  const [kind, setKind] = useState("api");
  const [draft, setDraft] = useState(toDraft);
  const [made, setMade] = useState(null);
  const kinds = KINDS.filter(([, , , mayMake]) => mayMake(ctx));
  const [, , scopes] = KINDS.find(([known]) => known === kind);
  const form = useForm(async () => {
    const body = { name: name.trim() || "key", kind: kind === "agent" ? "agent" : "api", ...fromDraft(draft) };
    if (scopes) body.scopes = scopes;
    if (body.expires_at === null) delete body.expires_at;
    setMade(await post(path, body));
  });
  if (made) {
    const done = () => {
      const { key: _text, agent_path: _path, ...rest } = made;
      onDone(rest);
    };
    return html`<${KeyOnce} ctx=${ctx} made=${made} onDone=${done} />`;
  }
  return html`<${Dialog} title="New key" onClose=${onClose} wide>
    <form onSubmit=${form.onSubmit}>
      <${Field} label="Name" note="the program or the person that uses it" autofocus maxlength="100" error=${form.errorOf("name")} value=${name} onInput=${(event) => setName(event.currentTarget.value)} />
      <${Select} label="Kind" value=${kind} options=${kinds} onPick=${setKind} error=${form.errorOf("kind")} />
      <details open=${LIMIT_FIELDS.includes(form.error?.param)}><summary>Limits</summary><div class="stack"><${LimitFields} draft=${draft} setDraft=${setDraft} form=${form} /></div></details>
      <${FormError} form=${form} fields=${["name", "kind", ...LIMIT_FIELDS]} />
      <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="primary" disabled=${form.busy}>${form.busy ? "Making it…" : "Make the key"}</button></div>
    </form>
  <//>`;
}

function KeyOnce({ ctx, made, onDone }) {
  const url = made.agent_path ? new URL(made.agent_path, ctx.baseUrl).href : null;
  return html`<${Dialog} title="Your new key" stays onClose=${onDone} wide>
    <div class="stack">
      <p>This is <strong>shown once</strong>: copy it before you go on. Only its first characters are kept.</p>
      ${url ? html`<${Copyable} text=${url} label="Copy the URL" name="Agent URL" /><p class="note">The key is part of this URL. Treat the URL like a key.</p>` : html`<${Copyable} text=${made.key} label="Copy the key" name="Key" />`}
      ${made.scopes.includes("withdraw") && ctx.info.withdrawals?.freeze_s > 0 && html`<p class="strip">From now on the account cannot withdraw for ${duration(ctx.info.withdrawals.freeze_s)}: time to notice a key that another person made.</p>`}
      ${made.scopes.includes("node") && html`<p class="note">Keep it in a file on the machine that joins; the <${Go} to="nodes">Nodes<//> page has the commands.</p>`}
      ${made.scopes.includes("inference") && !url && html`<${Snippets} name="First request with this key" tabs=${snippetsFor({ baseUrl: ctx.baseUrl, model: "auto", key: made.key })} />`}
      <div class="buttons"><button class="primary" onClick=${onDone}>Done</button></div>
    </div>
  <//>`;
}

/** Whether a key works, in words. */
export function KeyState({ row }) {
  if (row.revoked_at) return html`<${Tone} tone="none">revoked<//>`;
  const expires = toDate(row.expires_at);
  if (expires && expires < new Date()) return html`<${Tone} tone="none">expired<//>`;
  return html`<${Tone} tone="good">works<//>`;
}

export const Scopes = ({ row }) =>
  html`${row.kind === "agent" && html`<${Badge}>agent URL<//>`}${row.scopes.map((scope) => html`<${Badge} key=${scope} title=${SCOPES[scope]}>${scope}<//>`)}`;

const SCOPES = {
  inference: "sends requests, which are charged",
  wallet: "reads the balance, makes top-ups",
  account: "signs in here, makes and revokes keys; buys nothing",
  withdraw: "pays out of the balance",
  node: "connects a node, whose earnings are the account's",
  admin: "everything an operator may",
};

/** Limits as a short list of words. */
export function limitsOf(row) {
  const words = [];
  for (const [field, period] of [["budget_hour_msat", "h"], ["budget_day_msat", "day"], ["budget_month_msat", "month"]]) if (row[field]) words.push(`${sat(row[field])} sat/${period}`);
  if (row.max_price_msat) words.push(`≤ ${sat(row.max_price_msat)} sat each`);
  if (row.requests_per_minute) words.push(`${row.requests_per_minute}/min`);
  if (row.concurrent_jobs) words.push(`${row.concurrent_jobs} at once`);
  if (row.models.length) words.push(row.models.length === 1 ? row.models[0] : `${row.models.length} models`);
  return words.length ? html`<${Name}>${words.join(", ")}<//>` : html`<span class="none">none</span>`;
}
