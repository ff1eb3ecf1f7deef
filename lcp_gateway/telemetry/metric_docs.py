"""The reference of the metrics, rendered from their table."""

from itertools import groupby

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.telemetry.metric_families import MAX_LABEL_LENGTH
from lcp_gateway.telemetry.metric_table import AUTO, LABEL_WORDS, NODE_SPECS, SPECS, WITHOUT_OTHER, MetricSpec
from lcp_gateway.telemetry.metrics import MAX_MODELS, MAX_NODES, MAX_PEERS

_TITLES = {
    "money": "Money",
    "journal": "Journal and memory",
    "lnd": "lnd",
    "selling": "Customers",
    "latency": "Latency",
    "traffic": "Traffic",
    "peers": "Peers",
    "routing": "Routing and nodes",
    "stored": "Stored items and background jobs",
    "errors": "Errors",
    "process": "Process",
    "lcp": "Node over lnd",
}

_INTRODUCTION = f"""\
# Metrics

`GET /metrics` answers in the Prometheus text format, or in OpenMetrics when the scraper asks for it. This page is
generated from the table in `lcp_gateway/telemetry/metric_table.py`.

- Amounts are whole millisatoshi (`_msat`), durations seconds, sizes bytes.
- Labels are bounded. A model or a peer becomes a label value once it has been seen in the catalog (a peer also when the journal names it), at most
  {MAX_MODELS} models and {MAX_PEERS} peers in the life of a process, each at most {MAX_LABEL_LENGTH} characters; everything else is
  counted as `other`. A model name that a client made up is never a label.
- Counters of money and of errors begin at 0 when the gateway starts or a peer is first seen, so that
  `increase()` does not miss the first event. `requests_total` begins with its first request.
- Amounts of payments are prices without routing fees, which the daemon does not report. Metrics of the journal
  (budgets, `outstanding_…`, `peer_undelivered_msat`) include the estimated fee, or the real one once lnd has reported it.
- A gauge without a value is absent rather than 0.
- Metrics of a node over lnd (`lcpgateway_lcp_…`) are exposed where one runs: by `lcp-gateway node`, which has none of the gateway's but `build_info`, or
  beside the gateway's where both run in one process.
- The usual `process_*` and `python_*` metrics of the Prometheus client library are there too.
"""


def metrics_markdown() -> str:
    """Return the text of docs/metrics.md."""
    parts = [_INTRODUCTION]
    for group, specs in groupby((*SPECS, *NODE_SPECS), key=lambda spec: spec.group):
        parts.append(f"\n## {_TITLES[group]}\n\n| name | type | labels | meaning |\n| --- | --- | --- | --- |\n")
        parts.extend(_row(spec) for spec in specs)
    parts.append("\n## Label values\n\n| label | values |\n| --- | --- |\n")
    parts.extend(f"| `{label}` | {values} |\n" for label, values in _label_values().items())
    parts.append("\n## Buckets\n\n| histogram | upper bounds |\n| --- | --- |\n")
    parts.extend(
        f"| `{spec.full_name}` | {', '.join(f'{bound:,.10g}' for bound in spec.buckets)} |\n"
        for spec in SPECS
        if spec.buckets
    )
    return "".join(parts)


def _row(spec: MetricSpec) -> str:
    labels = ", ".join(f"`{label}`" for label in spec.labels) or "none"
    return f"| `{spec.full_name}` | {spec.kind} | {labels} | {spec.help} |\n"


_EXPLAINED = {
    "cause": "; its quote was refused, or it gave none or, a node, no answer",
    "job_end": "; refused: before it was paid, by either side; unpaid: the payment failed, or was given back; failed: paid, and the seller says that there is no result; lost: paid, and no whole result came",
    "part": "; a task of the node",
    "how": "; it waits for the purchase under way, got the answer again, or got the error that the answer is lost",
    "outcome": "; as known when the call ended",
    "payment": "; the same word as in the header `X-Lcp-Payment`",
    "refund": "; refunded at once, over a limit, or decided by the operator",
    "source": "; a Lightning peer, or a virtual node",
    "why": ": more than its credential may have, more bytes than all may, or older than `stored_for_s`",
}
_OPEN = {
    "endpoint": "the template of the route, such as `/v1/chat/completions`",
    "model": f"a model that a provider offers or has offered, `{AUTO}` where the request leaves the choice to the gateway, or `other`",
    "node": f"the name of a virtual node in the configuration, at most {MAX_NODES}",
    "peer": f"the provider's id: a peer's 66 hexadecimal digits or a virtual node's `{NODE_PREFIX}NAME`; or `other`",
    "protocol": "the version of LCP that the daemon speaks, or that a message or a link belongs to",
    "python": "the version of Python",
    "status": "the HTTP status",
    "stream": "`true` when the client asked for a stream, else `false`",
    "transport": "how calls reach the daemon: `direct` or `grpcio`",
    "version": "the version of the gateway",
}
_NEVER_OTHER = (WITHOUT_OTHER | {"payment"}) - {"code", "method"}


def _label_values() -> dict[str, str]:
    """Return a description of the values of every label, by the label's name."""
    values = dict(_OPEN)
    for label, words in LABEL_WORDS.items():
        shown = ", ".join(f"`{word}`" for word in words)
        other = "" if label in _NEVER_OTHER else ", `other`"
        values[label] = shown + other + _EXPLAINED.get(label, "")
    return dict(sorted(values.items()))
