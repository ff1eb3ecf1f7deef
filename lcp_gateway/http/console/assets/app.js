// The console: finds out who is here, shows the frame around the pages, and loads each page when it is opened.
import { get, onSignedOut, readHealth, remove, useLoad } from "./api.js";
import { html, render, useEffect, useRef, useState } from "./html.js";
import { onLiveState, refreshAll, start, stop } from "./live.js";
import { link, useRoute } from "./router.js";
import { Loading, Name, Problem } from "./ui.js";

const customer = (ctx) => ctx.hasWallet;
const account = (ctx) => ctx.hasWallet || ctx.isOperator;
const all = (ctx) => ctx.seesAll;
const operator = (ctx) => ctx.isOperator;
const anyone = () => true;
const owner = (ctx) => ctx.seesAll || (ctx.hasWallet && ctx.info.nodes);
const seller = (ctx) => ctx.isOperator && ctx.info.auth === "accounts";

// path: [title, module, whose page it is]
const PAGES = {
  overview: ["Overview", "./pages/overview.js", anyone],
  wallet: ["Wallet", "./pages/wallet.js", customer],
  router: ["Model Router", "./pages/model-router.js", anyone],
  keys: ["Keys", "./pages/keys.js", account],
  activity: ["Activity", "./pages/activity.js", anyone],
  usage: ["Usage", "./pages/usage.js", anyone],
  providers: ["Providers", "./pages/providers.js", all],
  nodes: ["Nodes", "./pages/nodes.js", owner],
  account: ["Account", "./pages/account.js", (ctx) => ctx.session.key !== null],
  customers: ["Customers", "./pages/customers.js", operator],
  money: ["Money", "./pages/money.js", all],
  withdrawals: ["Withdrawals", "./pages/withdrawals.js", seller],
  log: ["Log", "./pages/log.js", operator],
  system: ["System", "./pages/system.js", all],
};
const GROUPS = [
  [null, ["overview", "wallet", "router", "keys", "activity", "usage", "providers", "nodes"]],
  ["Operator", ["customers", "money", "withdrawals", "log", "system"]],
];

/** What the pages need to know of this gateway and of the person. */
function contextOf(info, session) {
  const scopes = session.scopes ?? [];
  const isOperator = session.role === "operator";
  const isLocal = session.role === "local";
  const hasAccount = Boolean(session.account);
  return {
    info,
    session,
    isOperator,
    isLocal,
    // Who sees all purchases, with the provider's price and the fee; others see what they were charged.
    seesAll: isOperator || isLocal,
    seesCost: !hasAccount,
    hasWallet: hasAccount && (scopes.includes("wallet") || scopes.includes("account")),
    mayWithdraw: hasAccount && scopes.includes("withdraw"),
    mayMakeKeys: isOperator || (hasAccount && scopes.includes("account")),
    baseUrl: info.base_url,
  };
}

function Page({ ctx, route }) {
  const name = route.path[0] ?? "overview";
  const [title, source, allowed] = PAGES[name] ?? [];
  const [loaded, setLoaded] = useState({ name: null });
  const isAllowed = Boolean(source) && allowed(ctx);
  useEffect(() => {
    if (!isAllowed) return;
    import(source).then(
      (module) => setLoaded({ name, Shown: module.default }),
      () => setLoaded({ name, failed: true }),
    );
  }, [name, isAllowed]);
  // A new page begins at its heading: for a screen reader, and for the keyboard.
  const address = route.path.join("/");
  const first = useRef(true);
  useEffect(() => {
    document.title = `${title ?? "Not found"} – lcp-gateway`;
    if (first.current) first.current = false;
    else {
      scrollTo(0, 0);
      document.querySelector("main")?.focus({ preventScroll: true });
    }
  }, [address]);
  if (!isAllowed)
    return html`<div class="empty"><h1 tabindex="-1">There is no such page here</h1>
      <p>${source ? "This page belongs to another role than the one that is signed in." : "The address may be mistyped."} <a href=${link("overview")}>Go to the overview</a></p></div>`;
  if (loaded.name !== name) return html`<${Loading} />`;
  if (loaded.failed) return html`<${NotLoaded} />`;
  return html`<${loaded.Shown} key=${address} ctx=${ctx} route=${route} />`;
}

/** The module of a page did not come: the gateway is away, or was updated. Once it answers, everything is loaded again. */
function NotLoaded() {
  useEffect(() => {
    const ask = () => fetch("/healthz", { cache: "no-store" }).then((answer) => answer.ok && location.reload(), () => {});
    const timer = setInterval(ask, 3_000);
    return () => clearInterval(timer);
  }, []);
  return html`<div class="problem" role="alert"><p>This page could not be loaded: the gateway does not answer, or was updated. It is tried again by itself.</p>
    <button class="small" onClick=${() => location.reload()}>Try again</button></div>`;
}

const LIVE_WORDS = { live: "Live", waiting: "Reconnecting…", polling: "Updated every 10 s", off: "Connecting…" };

function Side({ ctx, route, onLeave }) {
  const [isOpen, setOpen] = useState(false);
  const [live, setLive] = useState("off");
  const at = route.path[0] ?? "overview";
  useEffect(() => onLiveState(setLive), []);
  useEffect(() => setOpen(false), [route.path.join("/")]);
  const { session, info } = ctx;
  const who = session.account?.name ?? (ctx.isOperator ? "Operator" : session.key?.name);
  return html`<header class="side ${isOpen ? "open" : ""}">
    <div class="bar">
      <a class="brand" href=${link("overview")}>
        <svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="7" fill="var(--accent)" /><path d="M18 5 8 18h6l-1 9 10-13h-6z" fill="var(--on-accent)" /></svg>
        <span>lcp-gateway${info.demo && html`<small>play money</small>`}</span>
      </a>
      <button class="menu" aria-expanded=${String(isOpen)} aria-controls="pages" onClick=${() => setOpen(!isOpen)}>${isOpen ? "Close" : "Menu"}</button>
    </div>
    <nav aria-label="Pages" id="pages">
      ${GROUPS.map(([title, names]) => {
        const shown = names.filter((name) => PAGES[name][2](ctx));
        if (!shown.length) return null;
        return html`<div key=${title}>
          ${title && ctx.isOperator && html`<p>${title}</p>`}
          <ul>${shown.map((name) => html`<li key=${name}><a href=${link(name)} aria-current=${at === name || (name === "customers" && at === "customer") ? "page" : null}>${PAGES[name][0]}</a></li>`)}</ul>
        </div>`;
      })}
    </nav>
    <div class="foot">
      <span class="live ${live === "live" ? "on" : live === "waiting" ? "waiting" : ""}" role="status">${LIVE_WORDS[live]}</span>
      ${who && html`<span class="who"><${Name}>${who}<//></span>`}
      ${session.key && html`<span class="actions"><a href=${link("account")}>Account</a> <button class="plain" onClick=${onLeave}>Sign out</button></span>`}
      <span>${info.version}${info.network ? ` · ${info.network}` : ""}</span>
    </div>
  </header>`;
}

/** Why the gateway cannot buy now, on every page, until it can again. */
function HealthStrip({ ctx }) {
  const health = useLoad("/readyz", { read: readHealth, live: ["health"] });
  useEffect(() => {
    // Without a stream nothing tells that it is well again.
    if (health.data?.status !== "unavailable") return undefined;
    const timer = setTimeout(health.reload, 5_000);
    return () => clearTimeout(timer);
  }, [health.data]);
  if (health.error) return html`<${Problem} error=${health.error} reload=${health.reload} />`;
  if (health.data?.status !== "unavailable") return null;
  return html`<div class="strip" role="alert">
    <strong>Requests cannot be bought right now.</strong> Nothing is paid meanwhile, and this goes away by itself.
    ${health.data.reasons.length > 0 && html`<ul>${health.data.reasons.map((reason) => html`<li key=${reason}>${reason}</li>`)}</ul>`}
    ${!ctx.seesAll && " If it lasts, ask the operator of this gateway."}
  </div>`;
}

function Shell({ ctx, onLeave }) {
  const route = useRoute();
  // A person who was signed out elsewhere sees the sign-in on every page.
  useLoad("/api/session", { live: ["session"] });
  useEffect(() => {
    start();
    return stop;
  }, []);
  const skip = () => document.querySelector("main").focus();
  return html`<div class="shell">
    <button class="skip" onClick=${skip}>Skip to the content</button>
    <${Side} ctx=${ctx} route=${route} onLeave=${onLeave} />
    <main tabindex="-1"><${HealthStrip} ctx=${ctx} /><${Page} ctx=${ctx} route=${route} /></main>
  </div>`;
}

function App() {
  const [state, setState] = useState({ at: "starting" });
  const begin = async () => {
    setState({ at: "starting" });
    try {
      const info = await get("/api/console", { quiet: true });
      try {
        setState({ at: "in", ctx: contextOf(info, await get("/api/session", { quiet: true })) });
      } catch (error) {
        if (error.status !== 401 && error.status !== 403) throw error;
        const entry = await import("./pages/sign-in.js");
        setState((was) => ({ at: "out", info, entry, wasIn: was.wasIn }));
      }
    } catch (error) {
      setState({ at: "failed", error });
    }
  };
  useEffect(() => {
    begin();
  }, []);
  useEffect(() => {
    if (state.at !== "failed") return undefined;
    const timer = setTimeout(begin, 3_000);
    return () => clearTimeout(timer);
  }, [state]);
  useEffect(() => {
    // A session that ended elsewhere: the same as signing out here. What the page held is gone with it.
    onSignedOut(() => state.at === "in" && begin());
  }, [state]);
  const leave = async () => {
    await remove("/api/session").catch(() => {});
    refreshAll();
    location.hash = "";
    begin();
  };
  if (state.at === "in") return html`<${Shell} ctx=${state.ctx} onLeave=${leave} />`;
  if (state.at === "out") return html`<${state.entry.default} info=${state.info} onDone=${begin} />`;
  return html`<div class="front"><main>${state.at === "failed" ? html`<${Problem} error=${state.error} reload=${begin} />` : html`<${Loading} />`}</main></div>`;
}

render(html`<${App} />`, document.getElementById("app"));
