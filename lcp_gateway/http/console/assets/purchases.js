// The table of purchases, and sums of usage as a chart needs them: Overview, Activity and Usage show them.
import { html } from "./html.js";
import { duration, localTime, toDate } from "./format.js";
import { Amount, Go, Id, Name, State, Table, Time } from "./ui.js";

/** What a purchase costs the person who looks: the charge, or price and fee. */
export const costOf = (ctx, purchase) => (ctx.seesCost ? purchase.cost_msat : (purchase.charged_msat ?? purchase.charge_msat));

/** Why a cost is an estimate; "" where it is exact. */
export const estimateOf = (ctx, purchase) => (ctx.seesCost && purchase.fee_msat === null && purchase.fee_cap_msat > 0 ? "the routing fee is not known, and its limit is counted" : "");

export function PurchaseTable({ ctx, rows, empty, more, busy, brief = false }) {
  const columns = [
    { name: "Time", cell: (row) => html`<${Go} to=${["activity", row.job_id]}><${Time} at=${row.paying_at} /><//>` },
    { name: "Model", clip: true, cell: (row) => html`<${Name}>${row.model}<//><span class="only-phone"><${State} state=${row.state} /></span>` },
    { name: "State", hide: "phone", cell: (row) => html`<${State} state=${row.state} />${row.refund && html` <small class="note">refund ${row.refund}</small>`}` },
    !brief && { name: "Took", right: true, hide: "phone", cell: (row) => took(row) },
    { name: "Key", hide: "phone", cell: (row) => html`<${Name}>${row.key_name ?? (row.key_id || "–")}<//>` },
    ctx.seesAll && { name: "Provider", hide: "phone", cell: (row) => provider(row) },
    ctx.seesCost && !brief && { name: "Price, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.price_msat} />` },
    ctx.seesCost && !brief && { name: "Fee, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.fee_msat} />` },
    ctx.isOperator && !brief && { name: "Charge, sat", right: true, hide: "phone", cell: (row) => html`<${Amount} msat=${row.charged_msat} />` },
    { name: ctx.seesCost ? "Cost, sat" : "Charge, sat", right: true, cell: (row) => html`<${Amount} msat=${costOf(ctx, row)} about=${estimateOf(ctx, row)} />` },
  ].filter(Boolean);
  return html`<${Table} caption="Purchases" columns=${columns} rows=${rows} rowKey=${(row) => row.job_id} empty=${empty} more=${more} busy=${busy} />`;
}

function took({ paying_at: from, ended_at: to }) {
  if (!from || !to) return html`<span class="none">–</span>`;
  return duration((toDate(to) - toDate(from)) / 1000);
}

/** A node's name, or the two ends of a peer's id. */
export const provider = ({ peer_id: id }) => (id?.startsWith("node:") ? html`<${Name}>${id.slice(5)}<//>` : html`<${Id} id=${id} />`);

const STEP = {
  hour: (at) => at.setUTCHours(at.getUTCHours() + 1),
  day: (at) => at.setUTCDate(at.getUTCDate() + 1),
  month: (at) => at.setUTCMonth(at.getUTCMonth() + 1),
};
const UTC_DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
const UTC_MONTH = new Intl.DateTimeFormat("en-GB", { month: "short", year: "numeric", timeZone: "UTC" });

/** Label a period: days and months are those of UTC, as budgets are; hours are local. */
export function periodLabel(period, start, isLong = false) {
  if (period === "hour") return isLong ? localTime(start, { seconds: false }) : `${start.getHours()}:00`;
  if (period === "month") return UTC_MONTH.format(start);
  return isLong ? `${UTC_DAY.format(start)} (UTC)` : UTC_DAY.format(start);
}

/** What a usage document's rows are worth to the one who looks, in msat. */
export const spentOf = (ctx, row) => (ctx.seesCost ? row.settled_msat + row.unknown_msat : row.charged_msat + row.held_msat);

/** Turn GET /api/usage into the slots and series of a chart; every period is there, also those without purchases. */
export function toBars(usage, measure) {
  const slots = [];
  const byStart = new Map();
  const end = toDate(usage.until) ?? toDate(usage.as_of) ?? new Date();
  for (const at = toDate(usage.since); at < end && slots.length < 1000; STEP[usage.period](at)) {
    const start = new Date(at);
    const slot = { label: periodLabel(usage.period, start), title: periodLabel(usage.period, start, true), values: {} };
    byStart.set(start.getTime(), slot);
    slots.push(slot);
  }
  for (const row of usage.data) {
    const slot = byStart.get(toDate(row.starts_at).getTime());
    if (slot) slot.values[row.name] = (slot.values[row.name] ?? 0) + measure(row);
  }
  const series = [...new Set(usage.groups.filter((group) => measure(group) > 0).map((group) => group.name))];
  return { slots, series };
}
