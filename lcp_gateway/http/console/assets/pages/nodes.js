// Nodes: machines that serve models through this gateway. An owner brings them and earns; the operator sets their terms.
import { post, useLoad, usePages } from "../api.js";
import { plural } from "../format.js";
import { html, useState } from "../html.js";
import { Amount, Copyable, Dialog, Empty, Field, Figure, FormError, Go, Head, Id, Loaded, Name, Panel, Problem, Select, Snippets, Sum, Table, Time, Tone, useForm } from "../ui.js";
import { ProviderTable } from "./providers.js";

// No event tells of a node's requests and earnings.
const EVERY_MS = 10_000;
const LIVE = ["catalog", "wallet"];
const MOST = 500;

export default function Nodes({ ctx, route }) {
  if (!ctx.hasWallet) return html`<${AllNodes} ctx=${ctx} />`;
  return route.path[1] ? html`<${OneNode} id=${route.path[1]} />` : html`<${MyNodes} ctx=${ctx} />`;
}

const percent = (value) => `${Math.round(value * 10_000) / 10_000} %`;

function NodeState({ row, brief = false }) {
  if (row.frozen) return html`<${Tone} tone="bad">frozen<//>`;
  if (row.up) return html`<${Tone} tone="good">connected<//>`;
  return html`<${Tone} tone="none">away<//>${!brief && html` <small class="note">joined <${Time} at=${row.connected_at} near /></small>`}`;
}

// -- the owner ------------------------------------------------------------------------------------

function MyNodes({ ctx }) {
  const nodes = useLoad(`/api/nodes?limit=${MOST}`, { live: LIVE, every: EVERY_MS });
  const wallet = useLoad("/api/wallet", { live: LIVE, every: EVERY_MS });
  const [isBringing, setBringing] = useState(false);
  const bring = ctx.mayMakeKeys && html`<button class="primary" onClick=${() => setBringing(true)}>+ New node</button>`;
  return html`
    <${Head} title="Nodes" note="Your machines that answer requests of this gateway's customers, and what they earn.">${bring}<//>
    <div class="stack">
      <${Loaded} from=${nodes}>${({ data }) => html`
        ${data.length > 0 && html`<${Earnings} rows=${data} wallet=${wallet.data} />`}
        <${Panel}><${Mine} ctx=${ctx} rows=${data} /><//>`}<//>
      <${HowTo} ctx=${ctx} />
    </div>
    ${isBringing && html`<${NewNode} ctx=${ctx} onClose=${() => setBringing(false)} />`}`;
}

const total = (rows, field) => rows.reduce((sum, row) => sum + row[field], 0);

const Earnings = ({ rows, wallet }) => html`<dl class="figures">
  <${Figure} name="Earned today (UTC)"><${Sum} msat=${total(rows, "earned_today_msat")} /><//>
  <${Figure} name="Earned in all" note="the price less the operator's commission"><${Sum} msat=${total(rows, "earned_msat")} /><//>
  <${Figure} name="Delivered" note=${plural(rows.filter((row) => row.up).length, "node is", "nodes are") + " connected"}>${total(rows, "delivered")}<//>
  <${Figure} name="In your wallet" note=${html`<${Go} to="wallet">Withdraw<//>`}><${Sum} msat=${wallet?.available_msat} /><//>
</dl>`;

function Mine({ ctx, rows }) {
  const columns = [
    { name: "Node", clip: true, cell: (row) => html`<${Go} to=${["nodes", row.id]}><${Name}>${row.name}<//><//>` },
    { name: "State", cell: (row) => html`<${NodeState} row=${row} />` },
    { name: "Models", right: true, hide: "phone", cell: (row) => row.models },
    { name: "Running", right: true, hide: "phone", cell: (row) => row.running },
    { name: "Delivered", right: true, hide: "phone", cell: (row) => row.delivered },
    { name: "Commission", right: true, hide: "phone", cell: (row) => percent(row.commission_percent) },
    { name: "Today, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.earned_today_msat} />` },
    { name: "Earned, sat", right: true, cell: (row) => html`<${Amount} msat=${row.earned_msat} />` },
  ];
  return html`<${Table} caption="Your nodes" columns=${columns} rows=${rows}
    empty=${html`<${Empty} title="No node yet"><p>${
      ctx.mayMakeKeys ? "With “+ New node” you get a token and the commands for the machine that has the models." : "Sign in with your sign-in key to make a token for a node."
    } The node appears here once it has joined.</p><//>`} />`;
}

/** The gateway's address as a node dials it; plain ws to another computer has to be allowed. */
function joinUrl(ctx) {
  const url = new URL(ctx.baseUrl, location.href);
  const isPlain = url.protocol === "http:";
  const isNear = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\]|.*\.localhost)$/.test(url.hostname);
  return { url: `${isPlain ? "ws" : "wss"}://${url.host}${url.pathname.replace(/\/v1\/?$/, "")}`, flags: isPlain && !isNear ? " --allow-plain" : "" };
}

const joinLine = (ctx, name, price) => {
  const { url, flags } = joinUrl(ctx);
  return `lcp-gateway join ${url} --name ${name} --token-file node.token${price}${flags}`;
};
const PRICE = " --price-per-1k-output-msat 50";

const HowTo = ({ ctx }) => html`<${Panel} title="How to bring a node">
  <ol class="list">
    <li>On the machine with the models, start an OpenAI-compatible server: Ollama, vLLM, llama.cpp, LM Studio.</li>
    <li>Install <code>lcp-gateway</code> there, make a token here with “+ New node”, and keep it in a file.</li>
    <li>Join: the node opens the connection itself, so it needs no public address and no open port.</li>
  </ol>
  <${Copyable} text=${joinLine(ctx, "my-gpu", PRICE)} label="Copy the command" name="Command to join" />
  <p class="note">You set the price; it is paid when an answer was delivered whole. A token that you revoke (<${Go} to="keys">Keys<//>) sends its node away within a second.</p>
<//>`;

const NAME = /^[A-Za-z0-9._-]{1,40}$/;

/** Make a token for a node and show it once, with the commands for the machine. */
function NewNode({ ctx, onClose }) {
  const [name, setName] = useState("my-gpu");
  const [price, setPrice] = useState("50");
  const [made, setMade] = useState(null);
  const form = useForm(async () => {
    if (!NAME.test(name)) throw { param: "name", message: "Up to 40 letters, digits, '.', '_' or '-'." };
    if (!/^\d{1,9}$/.test(price.trim())) throw { param: "price", message: "Enter a whole number of millisats, like 50." };
    setMade(await post("/api/account/keys", { name: `node ${name}`, scopes: ["node"] }));
  });
  if (made) return html`<${TokenOnce} ctx=${ctx} made=${made} name=${name} price=${price.trim()} onDone=${onClose} />`;
  return html`<${Dialog} title="New node" onClose=${onClose}><form onSubmit=${form.onSubmit}>
    <${Field} label="Name" note="of the machine; each of your nodes has another one" autofocus maxlength="40" spellcheck=${false} error=${form.errorOf("name")} value=${name} onInput=${(event) => setName(event.currentTarget.value)} />
    <${Field} label="Price of 1,000 output tokens, msat" note="1 sat is 1,000 msat; more ways to set prices: lcp-gateway join --help" inputmode="numeric" error=${form.errorOf("price")} value=${price} onInput=${(event) => setPrice(event.currentTarget.value)} />
    <${FormError} form=${form} fields=${["name", "price"]} />
    <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="primary" disabled=${form.busy}>${form.busy ? "Making the token…" : "Make the token"}</button></div>
  </form><//>`;
}

function TokenOnce({ ctx, made, name, price, onDone }) {
  const lines = [
    "ollama serve &    # or whatever serves your models",
    `(umask 077; echo '${made.key}' > node.token)`,
    joinLine(ctx, name, ` --price-per-1k-output-msat ${price}`),
  ];
  return html`<${Dialog} title="The token of your node" stays onClose=${onDone} wide>
    <div class="stack">
      <p>It is <strong>shown once</strong>. It connects a node and does nothing else: it buys nothing and pays nothing out.</p>
      <${Copyable} text=${made.key} label="Copy the token" name="Token" />
      <p>On the machine with the models:</p>
      <${Snippets} name="Commands" tabs=${[["Shell", lines.join("\n")]]} />
      <div class="buttons"><button class="primary" onClick=${onDone}>Done</button></div>
    </div>
  <//>`;
}

function OneNode({ id }) {
  const nodes = useLoad(`/api/nodes?limit=${MOST}`, { live: LIVE, every: EVERY_MS });
  return html`<${Loaded} from=${nodes}>${({ data }) => {
    const row = data.find((one) => one.id === id);
    if (!row) return html`<${Head} title="Node" /><${Empty} title="There is no such node"><p><${Go} to="nodes">All your nodes<//></p><//>`;
    return html`<${Head} title=${html`<${Name}>${row.name}<//>`} note=${html`<code>${row.provider_id}</code>`}>
        <${Go} to=${["keys", row.key_id]} class="button">Its token<//><${Go} to="nodes" class="button">All nodes<//>
      <//>
      <div class="stack">
        ${row.frozen && html`<p class="strip"><strong>The operator keeps this node out.</strong> It gets no requests until that ends. What it earned is yours.</p>`}
        <dl class="figures">
          <${Figure} name="State" note=${`${plural(row.models, "model")}, ${plural(row.running, "request")} now`}><${NodeState} row=${row} brief /><//>
          <${Figure} name="Earned" note=${html`<${Sum} msat=${row.earned_today_msat} /> today (UTC)`}><${Sum} msat=${row.earned_msat} /><//>
          <${Figure} name="Commission" note=${percent(row.commission_percent)}><${Sum} msat=${row.commission_msat} /><//>
          <${Figure} name="Delivered" note=${html`joined <${Time} at=${row.connected_at} near />`}>${row.delivered}<//>
        </dl>
        <${EarningLines} id=${id} />
      </div>`;
  }}<//>`;
}

function EarningLines({ id }) {
  const lines = usePages(`/api/nodes/${encodeURIComponent(id)}/earnings`, { live: LIVE, every: EVERY_MS });
  const columns = [
    { name: "Delivered", cell: (row) => html`<${Time} at=${row.delivered_at} />` },
    { name: "Model", clip: true, cell: (row) => html`<${Name}>${row.model}<//>` },
    { name: "Price, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.price_msat} />` },
    { name: "Commission, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.commission_msat} />` },
    { name: "Earned, sat", right: true, cell: (row) => html`<${Amount} msat=${row.earned_msat} />` },
  ];
  return html`<${Panel} title="Earnings">
    <${Problem} error=${lines.error} reload=${lines.reload} stale=${lines.loaded} />
    ${lines.loaded && html`<${Table} caption="Earnings" columns=${columns} rows=${lines.items} rowKey=${(row) => row.job_id} more=${lines.more} busy=${lines.busy}
      empty=${html`<${Empty} title="Nothing earned yet"><p>Each request that the node answers whole appears here.</p><//>`} />`}
  <//>`;
}

// -- the operator ---------------------------------------------------------------------------------

function AllNodes({ ctx }) {
  const sells = ctx.isOperator && ctx.info.auth === "accounts";
  const nodes = useLoad(sells ? `/api/admin/nodes?limit=${MOST}` : null, { live: ["catalog"], every: EVERY_MS });
  const providers = useLoad("/api/providers", { live: ["catalog", "health", "purchase"] });
  const ofCustomers = new Set((nodes.data?.data ?? []).map((node) => node.provider_id));
  const ready = sells ? nodes.data !== null : true;
  return html`
    <${Head} title="Nodes" note="Machines that serve models: your own, and those that customers bring." />
    <div class="stack">
      ${sells && html`<${Panel} title="Nodes of customers"><${Loaded} from=${nodes}>${({ data }) => html`<${OfCustomers} ctx=${ctx} rows=${data} reload=${nodes.reload} />`}<//><//>`}
      <${Panel} title="Your own nodes"><${Loaded} from=${providers}>${({ data }) =>
        ready && html`<${ProviderTable} caption="Your own nodes" noun="Node" rows=${data.filter((row) => row.kind === "node" && !ofCustomers.has(row.id))}
          empty=${html`<${Empty} title="No nodes of your own"><p>An OpenAI-compatible server that this gateway can reach is added under <code>nodes</code> in the settings. A machine elsewhere dials in:</p><//>`} />`}<//>
        <${Own} ctx=${ctx} />
      <//>
    </div>`;
}

const Own = ({ ctx }) => html`<details><summary>How to let a machine dial in</summary><${Snippets} name="Commands" tabs=${[
  ["Settings here", `[[dialin_nodes]]\nname = "gpu-1"\ntoken_file = "/etc/lcp-gateway/gpu-1.token"\nprice_per_1k_output_msat = 50`],
  ["On the machine", `ollama serve &    # or whatever serves your models\nlcp-gateway join ${joinUrl(ctx).url} --name gpu-1 --token-file gpu-1.token${joinUrl(ctx).flags}`],
]} /><p class="note">The token is any long random text, the same in both files: <code>openssl rand -hex 32</code>.</p></details>`;

function OfCustomers({ ctx, rows, reload }) {
  const [changing, setChanging] = useState(null);
  const columns = [
    { name: "Node", clip: true, cell: (row) => html`<${Go} to="activity" query=${{ peer: row.provider_id }}><${Name}>${row.id}<//><//>` },
    { name: "Owner", hide: "phone", cell: (row) => html`<${Go} to=${["customers", row.account_id]}><${Id} id=${row.account_id} /><//>` },
    { name: "State", cell: (row) => html`<${NodeState} row=${row} />` },
    { name: "Models", right: true, hide: "phone", cell: (row) => row.models },
    { name: "Running", right: true, hide: "phone", cell: (row) => row.running },
    { name: "Delivered", right: true, hide: "phone", cell: (row) => row.delivered },
    { name: "Its owner's, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.earned_msat} />` },
    { name: "Commission, sat", right: true, hide: "phone", cell: (row) => html`<span title=${percent(row.commission_percent)}><${Amount} msat=${row.commission_msat} /></span>` },
    { name: "Rate", right: true, cell: (row) => percent(row.commission_percent) },
    { name: "", right: true, cell: (row) => html`<button class="small" aria-label="Change ${row.id}" onClick=${() => setChanging(row)}>Change…</button>` },
  ];
  const empty = ctx.info.nodes
    ? html`<${Empty} title="No customer has brought a node yet"><p>Customers make a token on their Nodes page, and join with it.</p><//>`
    : html`<${Empty} title="Customers bring no nodes"><p>Set <code>dialin_accounts = true</code> to let them: they set their prices, and you keep <code>node_commission_percent</code>.</p><//>`;
  return html`<${Table} caption="Nodes of customers" columns=${columns} rows=${rows} empty=${empty} />
    ${changing && html`<${Change} row=${changing} onClose=${() => setChanging(null)} onDone=${reload} />`}`;
}

const ACCESS = [["open", "may take part"], ["frozen", "frozen: is sent away, and kept out"]];

function Change({ row, onClose, onDone }) {
  const [commission, setCommission] = useState(String(row.commission_percent));
  const [access, setAccess] = useState(row.frozen ? "frozen" : "open");
  const [reason, setReason] = useState("");
  const form = useForm(async () => {
    const body = { reason: reason.trim() };
    if (commission.trim() !== String(row.commission_percent)) {
      body.commission_percent = Number(commission.trim() || "x");
      if (!(body.commission_percent >= 0 && body.commission_percent <= 100)) throw { param: "commission_percent", message: "Enter a number from 0 to 100." };
    }
    if ((access === "frozen") !== row.frozen) body.frozen = access === "frozen";
    if (Object.keys(body).length === 1) throw { param: null, message: "Nothing was changed." };
    await post(`/api/admin/nodes/${encodeURIComponent(row.id)}`, body);
    onClose();
    onDone();
  });
  return html`<${Dialog} title=${html`Change <${Name}>${row.id}<//>`} onClose=${onClose}><form onSubmit=${form.onSubmit}>
    <${Field} label="Commission, percent" note="of each price, for requests from now on" inputmode="decimal" error=${form.errorOf("commission_percent")} value=${commission} onInput=${(event) => setCommission(event.currentTarget.value)} />
    <${Select} label="The node" value=${access} options=${ACCESS} onPick=${setAccess} note="what it earned stays its owner's" />
    <${Field} label="Reason" note="kept in the log" required maxlength="128" error=${form.errorOf("reason")} value=${reason} onInput=${(event) => setReason(event.currentTarget.value)} />
    <${FormError} form=${form} fields=${["commission_percent", "reason"]} />
    <div class="buttons"><button type="button" onClick=${onClose}>Cancel</button><button class="primary" disabled=${form.busy}>Change</button></div>
  </form><//>`;
}
