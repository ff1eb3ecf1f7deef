// Overview: what is left, what today cost, thirty days by model, the last purchases.
import { useLoad } from "../api.js";
import { Bars } from "../chart.js";
import { plural } from "../format.js";
import { html } from "../html.js";
import { PurchaseTable, spentOf, toBars } from "../purchases.js";
import { snippetsFor } from "../snippets.js";
import { Empty, Figure, Go, Head, Loaded, Meter, Panel, Snippets, Sum } from "../ui.js";

const startOfDay = () => `${new Date().toISOString().slice(0, 10)}T00:00:00Z`;

export default function Overview({ ctx }) {
  const live = ["purchase"];
  const isLogged = ctx.info.journal !== false;
  const usage = useLoad(isLogged ? "/api/usage?by=model&period=day" : null, { live });
  const today = useLoad(isLogged ? `/api/usage?by=model&period=day&since=${startOfDay()}` : null, { live });
  const last = useLoad(isLogged ? "/api/purchases?limit=10" : null, { live });
  const budgets = useLoad(isLogged ? "/api/budgets" : null, { live });
  const wallet = useLoad(ctx.hasWallet ? "/api/wallet" : null, { live: ["wallet", "topup"] });
  const isNew = last.data !== null && last.data.data.length === 0;
  return html`
    <${Head} title="Overview">
      ${ctx.hasWallet && ctx.info.topups?.enabled && html`<${Go} to="wallet" class="button primary">Top up<//>`}
    <//>
    <div class="stack">
      <dl class="figures">
        ${ctx.hasWallet && html`<${Figure} name="Available" note=${wallet.data?.held_msat ? html`<${Sum} msat=${wallet.data.held_msat} /> held` : "to spend"}>
          <${Pending} from=${wallet}>${(data) => html`<${Sum} msat=${data.available_msat} />`}<//>
        <//>`}
        <${Figure} name="Today (UTC)" note=${today.data ? plural(today.data.totals.purchases, "purchase") : ""}>
          <${Pending} from=${today}>${(data) => html`<${Sum} msat=${spentOf(ctx, data.totals)} />`}<//>
        <//>
        <${Figure} name="Last 30 days" note=${usage.data ? plural(usage.data.totals.purchases, "purchase") : ""}>
          <${Pending} from=${usage}>${(data) => html`<${Sum} msat=${spentOf(ctx, data.totals)} />`}<//>
        <//>
        <${Figure} name="Not delivered" note="paid, without a whole answer, 30 days">
          <${Pending} from=${usage}>${(data) => data.totals.undelivered}<//>
        <//>
      </dl>
      ${!isLogged && html`<${Panel} title="No journal"><p>This gateway keeps no journal (<code>journal = false</code>), so purchases and usage are not recorded.</p><//>`}
      ${isNew && html`<${First} ctx=${ctx} balance=${wallet.data} />`}
      ${isLogged && !isNew && html`
        <${Panel} title="Spend by model" actions=${html`<${Go} to="usage">All usage<//>`}>
          <${Loaded} from=${usage}>${(data) => {
            const bars = toBars(data, (row) => spentOf(ctx, row));
            return html`<${Bars} ...${bars} caption="Spend of the last 30 days by model, in sat" />`;
          }}<//>
        <//>
        <${Panel} title="Last purchases" actions=${html`<${Go} to="activity">All activity<//>`}>
          <${Loaded} from=${last}>${(data) => html`<${PurchaseTable} ctx=${ctx} rows=${data.data} brief />`}<//>
        <//>`}
      ${budgets.data?.data.length > 0 && html`<${Panel} title="Budgets">
        <div class="grid-2">${budgets.data.data.map(
          (budget) => html`<${Meter} key=${`${budget.key_id}${budget.scope}${budget.period}`} used=${budget.spent_msat} limit=${budget.limit_msat} resetsAt=${budget.resets_at}
            name=${`${budget.scope === "key" ? (budget.key_name ?? budget.key_id) : "Gateway"}, this ${budget.period}`} />`,
        )}</div>
      <//>`}
    </div>`;
}

const Pending = ({ from, children }) => (from.data ? children(from.data) : html`<span class="none">${from.error ? "not known" : "…"}</span>`);

/** Nothing was bought yet: what to do, in the order to do it. */
function First({ ctx, balance }) {
  const needsMoney = ctx.hasWallet && balance && balance.available_msat <= 0;
  const key = ctx.isLocal && ctx.info.auth === "none" ? null : "YOUR_KEY";
  return html`<${Panel} title="Nothing bought yet">
    <${Empty} title=${needsMoney ? "Three steps to the first answer" : key ? "Two steps to the first answer" : "The gateway is ready: send it a request"}>
      <ol class="stack">
        ${needsMoney && html`<li><${Go} to="wallet">Top up the wallet<//>${ctx.info.demo ? ": this is a demonstration, play money pays." : " over Lightning."}</li>`}
        ${key && ctx.info.auth === "accounts" && html`<li><${Go} to="router">Make a key<//> for the program that will send requests.</li>`}
        <li>${key === null ? "Paste this into a terminal. No key is needed on this computer." : "Send a request with the key in place of YOUR_KEY."} It appears here at once.</li>
      </ol>
      <${Snippets} name="First request" tabs=${snippetsFor({ baseUrl: ctx.baseUrl, model: "auto", key })} />
    <//>
  <//>`;
}
