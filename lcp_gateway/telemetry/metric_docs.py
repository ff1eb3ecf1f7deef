"""The reference of the metrics, rendered from the table that the code itself uses."""

from itertools import groupby

from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.telemetry.metric_families import MAX_LABEL_LENGTH
from lcp_gateway.telemetry.metric_table import (
    AUTO,
    BACKGROUND_STATUSES,
    CHANGES,
    CHANNEL_STATES,
    FAILOVER_CAUSES,
    GRPC_CODES,
    GRPC_METHODS,
    MISMATCHES,
    OUTCOMES,
    PERIODS,
    PHASES,
    REASONS,
    RECONCILED,
    REFUNDS,
    REMOVED,
    REPEATS,
    SOURCES,
    SPECS,
    TASKS,
    VERDICTS,
    MetricSpec,
)
from lcp_gateway.telemetry.metrics import MAX_MODELS, MAX_PEERS
from lcp_gateway.telemetry.routing import MAX_NODES

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
- Amounts of payments are prices without routing fees, which the daemon does not tell. What comes from the journal
  (budgets, `outstanding_…`, `peer_undelivered_msat`) counts the reckoned fee in, or the real one where lnd told it.
- A gauge that has nothing to tell is absent rather than 0.
- The usual `process_*` and `python_*` metrics of the Prometheus client library are there too.
"""


def metrics_markdown() -> str:
    """Give the text of docs/metrics.md."""
    parts = [_INTRODUCTION]
    for group, specs in groupby(SPECS, key=lambda spec: spec.group):
        parts.append(
            f"\n## {_TITLES[group]}\n\n| name | type | labels | meaning |\n| --- | --- | --- | --- |\n"
        )
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


def _label_values() -> dict[str, str]:
    return {
        "cause": f"{_words(FAILOVER_CAUSES)}, `other`; its quote was refused, or it gave none or, a node, no answer",
        "code": f"{_words(GRPC_CODES)}, `other`",
        "endpoint": "the template of the route, such as `/v1/chat/completions`",
        "ended_as": f"{_words(BACKGROUND_STATUSES)}, `other`",
        "how": f"{_words(REPEATS)}, `other`; it waits for what is being bought, got the answer again, or was told that it is gone",
        "method": f"{_words(GRPC_METHODS)}, `other`",
        "mismatch": f"{_words(MISMATCHES)}, `other`",
        "model": f"a model that a provider offers or has offered, `{AUTO}` where the request leaves the choice to the gateway, or `other`",
        "node": f"the name of a virtual node in the configuration, at most {MAX_NODES}",
        "outcome": f"{_words(OUTCOMES)}; what was known when the call ended",
        "payment": f"{_words(VERDICTS)}; the same word as in the header `X-Lcp-Payment`",
        "peer": f"the provider's id: a peer's 66 hexadecimal digits or a virtual node's `{NODE_PREFIX}NAME`; or `other`",
        "period": f"{_words(PERIODS)}, `other`",
        "phase": f"{_words(PHASES)}, `other`",
        "protocol": "the version of the protocol that the daemon speaks",
        "python": "the version of Python",
        "reason": f"{_words(REASONS)}, `other`",
        "why": f"{_words(REMOVED)}: more than its credential may have, more bytes than all may, older than is kept; `other`",
        "refund": f"{_words(REFUNDS)}, `other`; given back at once, over a limit, or decided by the operator",
        "result": f"{_words(RECONCILED)}, `other`",
        "source": f"{_words(SOURCES)}; a Lightning peer, or a virtual node",
        "state": f"{_words(CHANNEL_STATES)}",
        "status": "the HTTP status",
        "stream": "`true` when the client asked for a stream, else `false`",
        "task": f"{_words(TASKS)}, `other`",
        "to": f"{_words(CHANGES)}",
        "version": "the version of the gateway",
    }


def _words(values: tuple[str, ...]) -> str:
    return ", ".join(f"`{value}`" for value in values)
