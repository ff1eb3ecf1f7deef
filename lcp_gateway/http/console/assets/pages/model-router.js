// Model Router: a key, a model, a query to the router, a snippet. Four steps, in the order in which they are taken.
import { post, useLoad } from "../api.js";
import { duration, plural, tokens } from "../format.js";
import { html, useMemo, useState } from "../html.js";
import { NewKey } from "../keys.js";
import { snippetsFor } from "../snippets.js";
import { setQuery } from "../router.js";
import { Amount, Badge, Empty, Field, FormError, Go, Head, Loaded, Name, Panel, Problem, Select, Snippets, Table, useForm } from "../ui.js";

const BADGES = {
  openclaw: ["🐾 OpenClaw", "served by an OpenClaw node"],
  node: ["node", "an OpenAI-compatible server of the operator"],
  lcp: ["LCP", "bought from peers over Lightning"],
  dialin: ["dial-in", "a node that dialled in"],
  free: ["free", "a provider asks nothing for it"],
};
/** The badges of a model or a provider. */
export const Badges = ({ names = [] }) => names.map((name) => html`<${Badge} key=${name} title=${BADGES[name]?.[1]} tone=${name === "openclaw" || name === "free" ? "accent" : ""}>${BADGES[name]?.[0] ?? name}<//>`);

export default function ModelRouter({ ctx, route }) {
  const { model = "auto" } = route.query;
  const models = useLoad("/api/models", { live: ["catalog"] });
  const list = models.data?.data ?? [];
  const chosen = list.find((one) => one.id === model);
  return html`
    <${Head} title="Model Router" note="From a key to an answer, in four steps." />
    <div class="steps">
      <${KeyStep} ctx=${ctx} />
      <${Panel} title="Choose a model" note=${html`<code>auto</code> lets the router choose for each request, by price, speed, delivery and fit.`}>
        <${Loaded} from=${models}>${() => html`<${ModelTable} ctx=${ctx} models=${list} model=${model} />`}<//>
      <//>
      <${Panel} title="Ask the router" note="Which models fit, and why. This spends nothing.">
        <${Query} ctx=${ctx} models=${list} />
      <//>
      <${Panel} title="Send a request">
        <${Snippets} name="Request" tabs=${snippetsFor({ baseUrl: ctx.baseUrl, model, key: ctx.isLocal && ctx.info.auth === "none" ? null : "YOUR_KEY", endpoints: chosen?.lcp.endpoints })} />
        <p class="note">The answer's headers say what happened to the money: <code>X-Lcp-Payment</code>, <code>X-Lcp-Charged-Msat</code>, <code>X-Lcp-Job-Id</code>. The purchase appears in <${Go} to="activity">Activity<//> at once.</p>
      <//>
    </div>`;
}

function KeyStep({ ctx }) {
  const keys = useLoad(ctx.hasWallet ? "/api/account/keys?limit=100" : null, { live: [] });
  const [isMaking, setMaking] = useState(false);
  const [made, setMade] = useState(null);
  if (ctx.isOperator)
    return html`<${Panel} title="A key"><p>Requests are sent with a customer's key: make one on the customer's page under <${Go} to="customers">Customers<//>. The <code>api_keys</code> of the settings work too and are charged to no customer.</p><//>`;
  if (!ctx.session.account)
    return html`<${Panel} title="A key"><p>${ctx.info.auth === "none" ? "No key is needed on this computer. Where a client insists on one, any text will do." : html`Use one of the gateway's <code>api_keys</code>.`}</p><//>`;
  const working = (keys.data?.data ?? []).filter((key) => !key.revoked_at && key.scopes.includes("inference"));
  const done = (key) => {
    setMaking(false);
    setMade(key);
    keys.reload();
  };
  return html`<${Panel} title="A key" actions=${ctx.mayMakeKeys && html`<button class="primary" onClick=${() => setMaking(true)}>+ New Key</button>`}>
    <${Problem} error=${keys.error} reload=${keys.reload} />
    ${made && html`<p class="said" role="status">The key <bdi>${made.name}</bdi> is ready.</p>`}
    ${working.length
      ? html`<p>You have ${plural(working.length, "key")} for requests: ${working.slice(0, 6).map((key, number) => html`${number > 0 && ", "}<${Go} key=${key.id} to=${["keys", key.id]}><${Name}>${key.name}<//><//>`)}${working.length > 6 && html`, <${Go} to="keys">all keys<//>`}.
          A key's text is shown only when it is made: if it is lost, make another one.</p>`
      : keys.data && html`<p>Make a key for the program that will send requests${ctx.mayMakeKeys ? "" : ": sign in with your sign-in key to do that"}. For a tool that takes a URL only, choose “Agent URL”.</p>`}
    ${isMaking && html`<${NewKey} ctx=${ctx} path="/api/account/keys" onClose=${() => setMaking(false)} onDone=${done} />`}
  <//>`;
}

function ModelTable({ ctx, models, model }) {
  const [words, setWords] = useState("");
  const found = useMemo(() => {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    return models.filter((one) => {
      const text = [one.id, one.owned_by, ...(one.lcp.badges ?? []), ...one.lcp.capabilities, ...one.lcp.endpoints].join(" ").toLowerCase();
      return wanted.every((word) => text.includes(word));
    });
  }, [models, words]);
  if (!models.length)
    return html`<${Empty} title="No provider offers a model now"><p>${ctx.seesAll ? html`Start a provider, or connect the daemon to a peer that sells: <${Go} to="providers">Providers<//> says what is missing.` : "Try again later, or ask the operator of this gateway."}</p><//>`;
  const columns = [
    { name: "Model", clip: true, cell: (row) => html`<button class="plain" aria-pressed=${String(row.id === model)} onClick=${() => setQuery({ model: row.id })}><${Name}>${row.id}<//></button>` },
    { name: "From", cell: (row) => html`<${Badges} names=${row.lcp.badges} />` },
    { name: "By", hide: "phone", clip: true, cell: (row) => html`<${Name}>${row.owned_by}<//>` },
    { name: "Can", hide: "phone", cell: (row) => html`<span class="note">${[...row.lcp.endpoints, ...row.lcp.capabilities].join(", ")}</span>` },
    { name: "Context", right: true, hide: "phone", cell: (row) => tokens(row.lcp.context_length) || html`<span class="none">–</span>` },
    { name: "Ready", hide: "phone", cell: (row) => (row.lcp.ready ? "yes" : html`<span class="none" title="its providers rest after failures">resting</span>`) },
    { name: "Price, sat", right: true, cell: (row) => priceOf(ctx, row) },
  ];
  return html`
    <div class="row"><${Field} label="Search" type="search" placeholder="name, capability, badge…" value=${words} onInput=${(event) => setWords(event.currentTarget.value)} /></div>
    <${Table} caption="Models" columns=${columns} rows=${found.slice(0, 200)} empty=${html`<${Empty} title="No model matches “${words}”"><p><button class="plain" onClick=${() => setWords("")}>Show all ${models.length}</button></p><//>`} />
    <p class="note">${found.length > 200 ? `The first 200 of ${found.length}. ` : ""}Prices are of an ordinary request (2,000 bytes in, 500 tokens out); yours is quoted before it is paid. Chosen: <strong><bdi>${model}</bdi></strong>.</p>`;
}

function priceOf(ctx, row) {
  const msat = row.lcp.charge_msat ?? row.lcp.price_msat;
  if (msat === null || msat === undefined) return html`<span class="note" title="a peer's price is known after the first quote">after the first quote</span>`;
  return html`<${Amount} msat=${msat} />`;
}

const SIZES = [["", "any"], ["small", "small"], ["balanced", "balanced"], ["large", "large"]];
const EMPTY = { providers: "", capabilities: "", min_params_b: "", max_params_b: "", prefer_size: "", limit: "" };

function Query({ ctx, models }) {
  const [fields, setFields] = useState(EMPTY);
  const [answer, setAnswer] = useState(null);
  const set = (name) => (event) => setFields({ ...fields, [name]: event.currentTarget.value });
  const form = useForm(async () => {
    setAnswer(null);
    const query = {};
    for (const name of ["providers", "capabilities"]) {
      const words = fields[name].split(",").map((word) => word.trim()).filter(Boolean);
      if (words.length) query[name] = words;
    }
    // What is no number is sent as it is: the gateway says what is wrong with it.
    for (const name of ["min_params_b", "max_params_b", "limit"]) {
      const text = fields[name].trim();
      if (text) query[name] = Number.isNaN(Number(text)) ? text : Number(text);
    }
    if (fields.prefer_size) query.prefer_size = fields.prefer_size;
    setAnswer(await post("/api/models/route", query));
  });
  const field = (name, label, note, more) => html`<${Field} label=${label} note=${note} name=${name} error=${form.errorOf(name)} value=${fields[name]} onInput=${set(name)} ...${more} />`;
  return html`<form onSubmit=${form.onSubmit}>
      <div class="row">
        ${field("providers", "Providers", "makers, owners or nodes, with commas")}
        ${field("capabilities", "Capabilities", "tools, vision, reasoning, code, embedding …")}
        ${field("min_params_b", "At least, billion parameters", null, { inputmode: "decimal" })}
        ${field("max_params_b", "At most, billion parameters", null, { inputmode: "decimal" })}
        <${Select} label="Preferred size" name="prefer_size" value=${fields.prefer_size} options=${SIZES} error=${form.errorOf("prefer_size")} onPick=${(value) => setFields({ ...fields, prefer_size: value })} />
        ${field("limit", "Results", null, { inputmode: "numeric", placeholder: "5" })}
      </div>
      <${FormError} form=${form} fields=${Object.keys(EMPTY)} />
      <div class="buttons"><button disabled=${form.busy}>${form.busy ? "Asking…" : "Ask the router"}</button></div>
    </form>
    ${answer && html`<${Ranking} ctx=${ctx} models=${models} answer=${answer} />`}`;
}

function Ranking({ ctx, models, answer }) {
  if (!answer.data.length)
    return html`<${Empty} title="No model fits"><ul>${(answer.reasons ?? []).map((reason) => html`<li key=${reason}>${reason}</li>`)}</ul><p>Leave a condition out, or loosen it.</p><//>`;
  const columns = [
    { name: "Rank", cell: (row) => answer.data.indexOf(row) + 1 },
    { name: "Model", clip: true, cell: (row) => html`<button type="button" class="plain" onClick=${() => setQuery({ model: row.model })}><${Name}>${row.model}<//></button>` },
    { name: "Score", right: true, cell: (row) => row.score.toFixed(2) },
    { name: "Why this one", hide: "phone", cell: (row) => html`<span class="note">${row.why}</span>` },
    { name: "Size", right: true, hide: "phone", cell: (row) => (row.params_b ? `${row.params_b}B` : html`<span class="none">–</span>`) },
    { name: "First byte", right: true, hide: "phone", cell: (row) => duration(row.first_byte_s) || html`<span class="none">–</span>` },
    { name: "Price, sat", right: true, cell: (row) => rankedPrice(ctx, models, row) },
  ];
  return html`<${Table} caption="Models that fit, the best first" columns=${columns} rows=${answer.data} rowKey=${(row) => row.model} />`;
}

/** What it costs the person who asks: a customer is charged more than the provider's price. */
function rankedPrice(ctx, models, row) {
  if (ctx.seesCost) return html`<${Amount} msat=${row.price_msat} />`;
  const model = models.find((one) => one.id === row.model);
  return model ? priceOf(ctx, model) : html`<${Amount} msat=${null} />`;
}
