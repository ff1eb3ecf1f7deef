// Log: what operators did, newest first.
import { usePages } from "../api.js";
import { html } from "../html.js";
import { Empty, Head, Name, Panel, Problem, Table, Time } from "../ui.js";

export default function Log() {
  const log = usePages("/api/admin/log");
  const columns = [
    { name: "Time", cell: (row) => html`<${Time} at=${row.at} />` },
    { name: "Operator", hide: "phone", cell: (row) => html`<code>${row.actor}</code>` },
    { name: "Action", cell: (row) => row.action.replaceAll("_", " ") },
    { name: "On", hide: "phone", cell: (row) => html`<code>${row.target}</code>` },
    { name: "Detail", clip: true, cell: (row) => html`<${Detail} detail=${row.detail} />` },
  ];
  return html`
    <${Head} title="Log" note="Every change that an operator made, here, over HTTP or on the command line." />
    <${Panel}>
      <${Problem} error=${log.error} reload=${log.reload} stale=${log.loaded} />
      ${log.loaded && html`<${Table} caption="Operators' log" columns=${columns} rows=${log.items} more=${log.more} busy=${log.busy} empty=${html`<${Empty} title="Nothing was changed yet" />`} />`}
    <//>`;
}

const Detail = ({ detail }) =>
  Object.entries(detail ?? {}).map(([name, value]) => html`<div key=${name}><span class="note">${name.replaceAll("_", " ")}:</span> <${Name}>${typeof value === "string" ? value : JSON.stringify(value)}<//></div>`);
