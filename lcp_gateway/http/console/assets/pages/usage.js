// Usage: spend and requests by model, key or provider, by hour, day or month. The choice is in the address.
import { useLoad, withQuery } from "../api.js";
import { Bars } from "../chart.js";
import { whole } from "../format.js";
import { html } from "../html.js";
import { spentOf, toBars } from "../purchases.js";
import { setQuery } from "../router.js";
import { Amount, Empty, Figure, Go, Head, Loaded, Name, Panel, Sum, Table } from "../ui.js";
import { Filters, apiQuery } from "./activity.js";

const PERIODS = [["hour", "By hour"], ["day", "By day"], ["month", "By month"]];
const MEASURES = [["spend", "Spend"], ["purchases", "Requests"], ["undelivered", "Not delivered"]];

export default function Usage({ ctx, route }) {
  const { by = "model", period = "day", show = "spend", ...filters } = route.query;
  const isLogged = ctx.info.journal !== false;
  const query = { by, period, ...apiQuery({ ...filters, state: undefined, peer: undefined }) };
  const usage = useLoad(isLogged ? withQuery("/api/usage", query) : null, { live: ["purchase"] });
  const groups = [["model", "Models"], ["key", "Keys"], ...(ctx.seesAll ? [["peer", "Providers"]] : [])];
  if (!isLogged)
    return html`<${Head} title="Usage" /><${Panel}><${Empty} title="Nothing is recorded"><p>This gateway keeps no journal (<code>journal = false</code> in its settings), so there is no usage to show.</p><//><//>`;
  const measures = { spend: (row) => spentOf(ctx, row), purchases: (row) => row.purchases, undelivered: (row) => (ctx.seesCost ? row.undelivered_msat : row.undelivered) };
  const measure = measures[show] ?? measures.spend;
  const inMsat = show === "spend" || (show === "undelivered" && ctx.seesCost);
  return html`
    <${Head} title="Usage"><a class="button" href=${withQuery("/api/usage", { ...query, format: "csv" })} download="usage.csv">CSV</a><//>
    <div class="stack">
      <${Panel}>
        <div class="actions">
          <${Segments} name="Group by" value=${by} options=${groups} onPick=${(value) => setQuery({ by: value })} />
          <${Segments} name="Period" value=${period} options=${PERIODS} onPick=${(value) => setQuery({ period: value })} />
          <${Segments} name="Show" value=${show} options=${MEASURES} onPick=${(value) => setQuery({ show: value })} />
        </div>
        <${Filters} ctx=${ctx} query=${filters} withState=${false} />
      <//>
      <${Loaded} from=${usage}>${(data) => html`
        <dl class="figures">
          <${Figure} name="Spend" note=${ctx.seesCost ? "price and fee" : "charged and held"}><${Sum} msat=${spentOf(ctx, data.totals)} /><//>
          <${Figure} name="Requests">${whole(data.totals.purchases)}<//>
          <${Figure} name="Not delivered" note=${ctx.seesCost ? html`<${Sum} msat=${data.totals.undelivered_msat} /> paid` : "given back where the operator's limits allow"}>${whole(data.totals.undelivered)}<//>
          ${ctx.isOperator && html`<${Figure} name="Charged to customers"><${Sum} msat=${data.totals.charged_msat} /><//>`}
        </dl>
        ${data.totals.purchases
          ? html`<${Panel} title=${MEASURES.find(([key]) => key === show)?.[1] ?? "Spend"}>
              <${Bars} ...${toBars(data, measure)} inMsat=${inMsat} height=${240} caption=${`${inMsat ? "Sats" : "Requests"} by ${by === "peer" ? "provider" : by}, each ${period}`} />
              <${Groups} ctx=${ctx} by=${by} rows=${data.groups} />
            <//>`
          : html`<${Panel}><${Empty} title="No purchases in this time"><p>Choose an earlier day, or <${Go} to="usage">clear the filters<//>.</p><//><//>`}`}<//>
    </div>`;
}

const Segments = ({ name, value, options, onPick }) => html`<div class="segments" role="group" aria-label=${name}>
  ${options.map(([key, words]) => html`<button key=${key} class="small" aria-pressed=${String(key === value)} onClick=${() => onPick(key)}>${words}</button>`)}
</div>`;

function Groups({ ctx, by, rows }) {
  const columns = [
    { name: { model: "Model", key: "Key", peer: "Provider" }[by], clip: true, cell: (row) => named(by, row) },
    { name: "Requests", right: true, cell: (row) => whole(row.purchases) },
    { name: "Not delivered", right: true, cell: (row) => whole(row.undelivered) },
    ctx.seesCost && { name: "Unknown, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.unknown_msat} />` },
    ctx.seesCost && { name: "Lost, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.undelivered_msat} />` },
    !ctx.seesCost && { name: "Held, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.held_msat} />` },
    ctx.isOperator && { name: "Charged, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.charged_msat} />` },
    { name: ctx.seesCost ? "Cost, sat" : "Charge, sat", right: true, cell: (row) => html`<${Amount} msat=${spentOf(ctx, row)} />` },
  ].filter(Boolean);
  return html`<${Table} caption="Sums" columns=${columns} rows=${rows} rowKey=${(row) => row.id ?? "other"} />`;
}

function named(by, row) {
  if (row.id === null || row.id === "") return html`<span class="none">${row.name}</span>`;
  return html`<${Go} to="activity" query=${{ [by]: row.id }}><${Name}>${row.name}<//><//>`;
}
