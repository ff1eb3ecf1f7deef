"""The table of metrics: every name, label, label value, bucket and help text of the gateway's own metrics, once."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lcp_gateway.upstream_status import UpstreamStatus

PREFIX = "lcpgateway_"


class MetricKind(enum.StrEnum):
    """The kinds of metric that the table may hold."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One row: ``name`` without the prefix, the help text, label names, and for a histogram its upper bounds."""

    group: str
    kind: MetricKind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """The name as Prometheus sees it."""
        return PREFIX + self.name

    @property
    def series(self) -> tuple[str, ...]:
        """Every name that a query may use for this metric."""
        if self.kind is MetricKind.HISTOGRAM:
            return tuple(self.full_name + end for end in ("_bucket", "_sum", "_count"))
        return (self.full_name,)


# A quote crosses one gRPC hop and a peer's queue: 1 ms on a quiet network, 5 s is the default time-out.
_QUOTE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Payment and compute: tens of milliseconds at best, 120 s is the default time-out, streams may last longer.
_WORK_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # fmt: skip
# From 1 sat, the least that moves on channels with a default policy, to 0.01 BTC.
_PRICE_BUCKETS = (1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 1e7, 1e8, 1e9)
# A commit with a full sync: under 1 ms on a good SSD, tens of milliseconds on a disk; an intent gives up after 5 s.
_COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_SCORE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

_C, _G, _H = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM

SPECS: tuple[MetricSpec, ...] = (
    # money
    MetricSpec("money", _C, "payments_total", "Payments by outcome: settled, unknown (no evidence whether it was paid) or not_paid.", ("outcome", "peer")),
    MetricSpec("money", _C, "payment_msat_total", "Millisatoshi of the payments by outcome, routing fees not included.", ("outcome", "peer")),
    MetricSpec("money", _C, "model_payment_msat_total", "Millisatoshi of the payments by outcome and model, routing fees not included.", ("outcome", "model")),
    MetricSpec("money", _C, "undelivered_total", "Purchases that were paid and brought no whole and right result, without those that a client broke off.", ("peer",)),
    MetricSpec("money", _C, "undelivered_msat_total", "Millisatoshi paid for undelivered purchases.", ("peer",)),
    MetricSpec("money", _H, "quote_price_msat", "Prices that peers asked, in millisatoshi, bought or not.", ("model",), _PRICE_BUCKETS),
    MetricSpec("money", _C, "refusals_total", "Requests that the gateway refused before anything was paid, by reason.", ("reason",)),
    MetricSpec("money", _C, "quote_mismatches_total", "Quotes refused because a check failed, by the check.", ("mismatch", "peer")),
    MetricSpec("money", _C, "runner_up_saving_msat_total", "Millisatoshi by which the quotes that were taken were below the next best ones, where several peers were asked."),
    MetricSpec("money", _C, "joined_total", "Requests that repeat an earlier one and were not bought again, by the way they were answered.", ("how",)),
    MetricSpec("money", _G, "outstanding_unknown_msat", "Millisatoshi that may or may not have been paid, over all that the journal holds. Absent without a journal."),
    MetricSpec("money", _G, "outstanding_unknown_purchases", "Purchases without evidence whether they were paid, over all that the journal holds. Absent without a journal."),
    MetricSpec("money", _G, "oldest_unknown_age_seconds", "Age of the oldest unknown payment, computed at each scrape; 0 when there is none. Absent without a journal."),
    MetricSpec("money", _G, "peer_undelivered_msat", "Millisatoshi paid to a peer for results that never came whole and right, over all that the journal holds; without those that a client broke off.", ("peer",)),
    MetricSpec("money", _G, "budget_limit_msat", "The gateway's budget for a period of the calendar (UTC), in millisatoshi. Absent for periods without one.", ("period",)),
    MetricSpec("money", _G, "budget_left_msat", "The rest of the gateway's budget in the present period, unknown payments counted as spent.", ("period",)),
    MetricSpec("money", _C, "reconciled_total", "Look-ups of unknown payments, by result; still_unknown and error are looked up again.", ("result",)),
    # journal
    MetricSpec("journal", _H, "journal_commit_duration_seconds", "Time from the start of a write of the journal to its durable end.", (), _COMMIT_BUCKETS),
    MetricSpec("journal", _C, "journal_entries_total", "Entries written to the journal; many share one commit."),
    MetricSpec("journal", _G, "journal_trouble", "1 while the journal cannot be written, so that nothing may be paid, else 0."),
    MetricSpec("journal", _G, "answers_held_bytes", "Bytes of answers that are kept in memory for repeated requests."),
    # lnd
    MetricSpec("lnd", _G, "lnd_up", "1 when lnd answered the last call, else 0. Absent where no lnd is configured."),
    MetricSpec("lnd", _G, "lnd_synced", "1 when lnd is synced to the chain and the graph, else 0. Absent while lnd does not answer."),
    MetricSpec("lnd", _G, "lnd_local_balance_msat", "Millisatoshi on our side of the open channels, reserves included. Absent while lnd does not answer."),
    MetricSpec("lnd", _G, "lnd_fees_missing", "Purchases that were paid in the last ten minutes and without a fee from lnd yet; 200 at most are counted. Absent where no lnd is configured."),
    MetricSpec("lnd", _G, "lnd_channels", "Open channels, active or not. Absent while lnd does not answer.", ("state",)),
    # selling
    MetricSpec("selling", _G, "customers", "Accounts that are not deleted. Absent unless accounts are kept."),
    MetricSpec("selling", _G, "customers_balance_msat", "Sum of the customers' balances, in millisatoshi, held amounts included. Absent unless accounts are kept."),
    MetricSpec("selling", _G, "customers_held_msat", "Millisatoshi of the balances that are held for purchases under way."),
    MetricSpec("selling", _G, "keys_age_seconds", "Time since the keys of accounts were read from the database, computed at each scrape. Absent unless accounts are kept."),
    MetricSpec("selling", _G, "keys_stale", "1 while the last read of the keys is older than keys_stale_s, so that no key of an account is accepted, else 0. Absent unless accounts are kept."),
    MetricSpec("selling", _G, "settlements_leader", "1 while this gateway follows the settlements of top-ups, else 0: of several gateways exactly one does. Absent without an lnd or an embedded node."),
    MetricSpec("selling", _C, "topups_total", "Top-ups that were paid and credited by this gateway."),
    MetricSpec("selling", _C, "topups_msat_total", "Millisatoshi of the credited top-ups."),
    MetricSpec("selling", _C, "withdrawals_total", "Withdrawals that ended at this gateway, by how: settled or failed.", ("ended",)),
    MetricSpec("selling", _C, "withdrawals_msat_total", "Millisatoshi of the withdrawals that ended, fees not included.", ("ended",)),
    MetricSpec("selling", _C, "withdrawal_fees_msat_total", "Millisatoshi of routing fees of settled withdrawals, which their customers paid."),
    MetricSpec("selling", _G, "withdrawals_open", "Withdrawals that have not ended, by state. Absent unless accounts are kept.", ("stage",)),
    MetricSpec("selling", _G, "withdrawals_open_msat", "Millisatoshi of balances that open withdrawals hold, by state. Absent unless accounts are kept.", ("stage",)),
    MetricSpec("selling", _G, "withdrawal_oldest_unknown_seconds", "Age of the oldest withdrawal of which it is not known whether it was paid; 0 when there is none. Absent unless accounts are kept."),
    MetricSpec("selling", _C, "node_earnings_msat_total", "Millisatoshi that the owners of nodes earned by answers that were delivered."),
    MetricSpec("selling", _C, "node_commissions_msat_total", "Millisatoshi of the operator's commissions on those answers."),
    MetricSpec("selling", _C, "charged_msat_total", "Millisatoshi that customers were charged for purchases that came to their end, refunds taken off."),
    MetricSpec("selling", _C, "refunds_total", "Refunds of charges for undelivered purchases, by outcome.", ("refund",)),
    MetricSpec("selling", _C, "refunds_msat_total", "Millisatoshi of the refunds of charges, by outcome.", ("refund",)),
    MetricSpec("selling", _G, "refunds_withheld", "Refunds that are withheld over a limit and wait for the operator's decision. Absent without a journal."),
    MetricSpec("selling", _G, "refunds_withheld_msat", "Millisatoshi of the withheld refunds. Absent without a journal."),
    # latency
    MetricSpec("latency", _H, "request_duration_seconds", "Time from the request's head to the last byte of its answer.", ("endpoint", "stream"), _WORK_BUCKETS),
    MetricSpec("latency", _H, "quote_duration_seconds", "Time that a peer took to quote a price.", ("peer",), _QUOTE_BUCKETS),
    MetricSpec("latency", _H, "execute_duration_seconds", "Time from the call that pays to the end of the result.", ("peer",), _WORK_BUCKETS),
    MetricSpec("latency", _H, "first_byte_duration_seconds", "Time from the request's head to the first byte of its answer's body.", ("endpoint", "model"), _WORK_BUCKETS),
    # traffic
    MetricSpec("traffic", _C, "requests_total", "Requests answered, by HTTP status and by the verdict on the money (none, settled or unknown).", ("endpoint", "model", "status", "payment", "stream")),
    MetricSpec("traffic", _C, "streamed_bytes_total", "Bytes of results written to clients as streams."),
    MetricSpec("traffic", _G, "jobs_in_flight", "Jobs between their admission and the last byte of their answer."),
    MetricSpec("traffic", _G, "jobs_limit", "The most jobs that are admitted at once; 0 when there is no limit."),
    # peers
    MetricSpec("peers", _G, "daemon_up", "1 when the last call to the daemon was answered, else 0."),
    MetricSpec("peers", _G, "lcpd_protocol_version", "The version of the protocol that the daemon speaks, 2 or 3; 0 until it has said so."),
    MetricSpec("peers", _G, "peers", "Peers that are connected and ready, by the last snapshot."),
    MetricSpec("peers", _G, "models", "Different models that the peers advertise, by the last snapshot."),
    MetricSpec("peers", _G, "snapshot_age_seconds", "Age of the snapshot of peers, computed at each scrape; counted from the start of the gateway while there is none."),
    MetricSpec("peers", _C, "snapshots_total", "Snapshots of peers taken since the start."),
    # routing
    MetricSpec("routing", _C, "routing_choices_total", "Decisions of auto, by the provider that was put first and its kind; another may be bought from, where that one fails or several are asked.", ("source", "peer")),
    MetricSpec("routing", _H, "routing_score", "Scores of the choices that were taken: 1 is the best that a provider and its model can be.", ("source",), _SCORE_BUCKETS),
    MetricSpec("routing", _C, "failovers_total", "Providers that failed a purchase before anything was paid, so that the next was asked, by cause and by source.", ("cause", "source")),
    MetricSpec("routing", _G, "provider_first_byte_seconds", "Time that a provider takes to the first byte, a decayed average, for the model that was measured last. Absent until there is one.", ("source", "peer")),
    MetricSpec("routing", _G, "provider_tokens_per_second", "Tokens a second of a provider, estimated from bytes, a decayed average like the time to the first byte. Absent until there is one.", ("source", "peer")),
    MetricSpec("routing", _G, "node_up", "1 while a virtual node answers and takes part in the choice, else 0.", ("node",)),
    MetricSpec("routing", _C, "node_changes_total", "Times that a virtual node went down or came back; its first probe does not count.", ("node", "to")),
    MetricSpec("routing", _G, "nodes_dialled_in", "Nodes that have dialled in and are connected, computed at each scrape."),
    MetricSpec("routing", _C, "node_disconnects_total", "Nodes that had dialled in and are gone, by the reason: lost, dead (silent for three heartbeats), replaced, revoked, shutting_down, or a violation of the protocol.", ("why_gone",)),
    MetricSpec("routing", _C, "usage_refuted_total", "Results of nodes that had dialled in whose stated usage was far beyond their bytes, so that the gateway's estimate was charged."),
    # stored items
    MetricSpec("stored", _G, "stored_items", "Responses and chat completions that are stored for clients.", ()),
    MetricSpec("stored", _G, "stored_bytes", "Estimated memory of the stored responses and chat completions.", ()),
    MetricSpec("stored", _C, "stored_removed_total", "Stored items that the gateway removed: too many of a credential, too many bytes in all, or too old.", ("why",)),
    MetricSpec("stored", _C, "not_stored_total", "Answers that were to be stored and could not be: too large, no longer held at their end, compressed, or without an id.", ()),
    MetricSpec("stored", _G, "background_jobs_running", "Responses that are worked on in the background.", ()),
    MetricSpec("stored", _C, "background_jobs_total", "Responses in the background that ended, by their last status.", ("ended_as",)),
    # errors
    MetricSpec("errors", _C, "grpc_errors_total", "Calls to the daemon that failed, by method and gRPC status code.", ("method", "code")),
    MetricSpec("errors", _C, "client_disconnects_total", "Clients that disconnected before their answer was complete, by phase.", ("phase",)),
    # process
    MetricSpec("process", _C, "task_restarts_total", "Background tasks that ended and were started again, by task. None should end: the log has the cause of each.", ("task",)),
    MetricSpec("process", _C, "log_lines_lost_total", "Lines for standard output and error that were dropped because their reader was too slow or gone, or their file could not be written."),
    MetricSpec("process", _H, "event_loop_lag_seconds", "Lateness of a timer on the event loop.", (), _LAG_BUCKETS),
    MetricSpec("process", _C, "trace_spans_exported_total", "Spans that the trace collector accepted."),
    MetricSpec("process", _C, "trace_spans_lost_total", "Spans that were lost: the trace collector did not accept them, or the queue was full."),
    MetricSpec("process", _G, "lcpd_transport", "Always 1; the label says how calls reach the daemon: direct or grpcio.", ("transport",)),
    MetricSpec("process", _G, "build_info", "Always 1; the labels are the versions that run.", ("version", "python", "protocol")),
)  # fmt: skip
"""To add a metric, add a row here and one method to ``Metrics``; the docs and the checks of the dashboard follow."""

NODE_SPECS: tuple[MetricSpec, ...] = (
    MetricSpec("lcp", _C, "lcp_jobs_total", "Jobs that ended, by the node's side of them and by how: see the values of job_end.", ("role", "job_end")),
    MetricSpec("lcp", _G, "lcp_jobs_open", "Jobs that have not ended, by side: quoted (neither paid nor expired) or running (paid).", ("role", "job_state")),
    MetricSpec("lcp", _C, "lcp_refused_total", "Requests for a quote that were refused, by the name of the error that the peer got.", ("lcp_error",)),
    MetricSpec("lcp", _C, "lcp_earned_msat_total", "Millisatoshi of paid invoices of jobs that ended, by model.", ("model",)),
    MetricSpec("lcp", _C, "lcp_undelivered_msat_total", "The part of the earnings whose buyer got no whole result."),
    MetricSpec("lcp", _C, "lcp_spent_msat_total", "Millisatoshi of settled payments of jobs that ended, routing fees not included."),
    MetricSpec("lcp", _C, "lcp_fees_msat_total", "Millisatoshi of their routing fees."),
    MetricSpec("lcp", _C, "lcp_messages_total", "Custom messages of LCP to and from peers, by version.", ("direction", "protocol")),
    MetricSpec("lcp", _C, "lcp_message_bytes_total", "Bytes of their payloads.", ("direction", "protocol")),
    MetricSpec("lcp", _C, "lcp_messages_dropped_total", "Messages of peers that were not taken, by the reason.", ("why_dropped",)),
    MetricSpec("lcp", _G, "lcp_links", "Peers by version and state: connected (one manifest is missing), or ready (both were exchanged).", ("link_state", "protocol")),
    MetricSpec("lcp", _G, "lcp_queue_messages", "Messages that wait to be handed to lnd, over all peers."),
    MetricSpec("lcp", _G, "lcp_queue_bytes", "Bytes of the messages that wait."),
    MetricSpec("lcp", _G, "lcp_deepest_queue_messages", "Messages that wait for the peer for which most do."),
    MetricSpec("lcp", _G, "lcp_invoices_up", "1 while the subscription to settled invoices stands, else 0: until it does, paid jobs wait. Absent where nothing is sold."),
    MetricSpec("lcp", _G, "lcp_lnd_up", "1 while lnd delivers peers and messages, else 0."),
    MetricSpec("lcp", _C, "lcp_problems_total", "Errors of a part of the node that goes on: it was started again, or its step is tried again. The log has the cause of each.", ("part",)),
)  # fmt: skip
"""The metrics of a node over lnd, which are exposed where one runs: by `lcp-gateway node`, or with the gateway's in one process."""

BY_NAME: Mapping[str, MetricSpec] = MappingProxyType({spec.name: spec for spec in SPECS})

OTHER = "other"
"""The label value that every unexpected one is folded into."""

OUTCOMES = ("settled", "unknown", "not_paid")
VERDICTS = ("none", "settled", "unknown")
MISMATCHES = (
    "amount",
    "description_hash",
    "expired",
    "expiry",
    "malformed",
    "network",
    "payee",
    "protocol_version",
    "signature",
    "terms_hash",
)
SOURCES = ("lcp", "node")
AUTO = "auto"
CHANGES = ("up", "down")
GONE_FOR = (
    "lost",
    "dead",
    "replaced",
    "revoked",
    "shutting_down",
    "cancel_ignored",
    "no_credit",
    "bad_frame",
    "bad_message",
    "bad_order",
    "bad_name",
    "too_long",
    "unknown_request",
    "too_many_models",
    "too_many_lists",
)
FAILOVER_CAUSES = ("refused", "failed")
REPEATS = ("running", "replayed", "lost")
PERIODS = ("hour", "day", "month")
RECONCILED = ("settled", "not_paid", "still_unknown", "error")
CHANNEL_STATES = ("active", "inactive")
PHASES = ("request", "quote", "execute", "stream")
TASKS = (
    "books",
    "claims",
    "dialin",
    "events",
    "journal",
    "keys",
    "leases",
    "learning",
    "lnd",
    "loop",
    "node_terms",
    "nodes",
    "owner_lock",
    "payouts",
    "peers",
    "purge",
    "reconciler",
    "reload",
    "sessions",
    "settlements",
    "settlements_lead",
    "shared",
    "solvency",
    "supervisor",
    "sweep",
    "topups",
    "watchdog",
    "withdrawals",
    "withdrawals_begun",
    "withdrawals_open",
)
REASONS = (
    "api",
    "auth",
    "bad_request",
    "balance",
    "budget",
    "concurrency",
    "cross_site",
    "draining",
    "host",
    "idempotency",
    "invoice",
    "journal",
    "keys",
    "loop",
    "model_not_found",
    "no_peer",
    "not_found",
    "origin",
    "peer_not_trusted",
    "price_limit",
    "quote_expired",
    "quote_mismatch",
    "quote_unknown",
    "rate_limit",
    "sign_in",
    "store",
    "terms",
    "too_large",
)
GRPC_METHODS = (
    "ListLCPPeers",
    "GetLocalInfo",
    "RequestQuote",
    "GetPayment",
    "AcceptAndExecute",
    "AcceptAndExecuteStream",
    "CancelJob",
)
GRPC_CODES = tuple(UpstreamStatus)
ROLES = ("buyer", "seller")
JOB_ENDS = ("delivered", "refused", "expired", "unpaid", "cancelled", "failed", "lost")
LCP_ERRORS = (
    "unsupported_version",
    "unsupported_task",
    "quote_expired",
    "payment_required",
    "payment_invalid",
    "payload_too_large",
    "rate_limited",
    "unsupported_params",
    "unsupported_encoding",
    "invalid_state",
    "chunk_out_of_order",
    "checksum_mismatch",
    "manifest_required",
    "stream_limit_exceeded",
)
NODE_PARTS = (
    "cancel_invoice",
    "compute",
    "connect",
    "disconnect",
    "end_purchase",
    "end_sale",
    "forget_sale",
    "invoices",
    "keep_purchase",
    "keep_sale",
    "keep_sent",
    "listen",
    "look_up",
    "make_invoice",
    "manifests",
    "pay",
    "resend_manifests",
    "sale",
    "send",
    "settle_invoice",
    "sweep",
    "track",
)
JOB_STATES = ("quoted", "running")
LINK_STATES = ("connected", "ready")
DIRECTIONS = ("in", "out")

LABEL_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cause": FAILOVER_CAUSES,
        "code": GRPC_CODES,
        "direction": DIRECTIONS,
        "ended": ("settled", "failed"),
        "ended_as": ("completed", "failed", "cancelled"),
        "how": REPEATS,
        "job_end": JOB_ENDS,
        "job_state": JOB_STATES,
        "lcp_error": LCP_ERRORS,
        "link_state": LINK_STATES,
        "method": GRPC_METHODS,
        "mismatch": MISMATCHES,
        "outcome": OUTCOMES,
        "part": NODE_PARTS,
        "payment": VERDICTS,
        "period": PERIODS,
        "phase": PHASES,
        "reason": REASONS,
        "refund": ("given", "withheld", "granted", "denied"),
        "result": RECONCILED,
        "role": ROLES,
        "source": SOURCES,
        "stage": ("awaiting_approval", "approved", "paying", "unknown"),
        "state": CHANNEL_STATES,
        "task": TASKS,
        "to": CHANGES,
        "why": ("count", "bytes", "age"),
        "why_dropped": ("undecodable", "unknown type", "too many manifests", "unknown job", "expired", "repeated"),
        "why_gone": GONE_FOR,
    }
)
"""The values of each label that has a fixed list of them; others are counted as ``other``."""

WITHOUT_OTHER = frozenset(
    {
        "code",
        "direction",
        "ended",
        "job_end",
        "job_state",
        "link_state",
        "method",
        "outcome",
        "role",
        "source",
        "stage",
        "state",
        "to",
    }
)
"""Those of them for which ``other`` is not exposed until it is counted."""

ANY_THREAD = frozenset({"trace_spans_exported_total", "trace_spans_lost_total"})
"""The counters that threads beside the event loop's count, which therefore need a lock."""

ABSENT_AT_FIRST = (
    "outstanding_unknown_msat",
    "outstanding_unknown_purchases",
    "oldest_unknown_age_seconds",
    "lnd_up",
    "lnd_synced",
    "lnd_local_balance_msat",
    "lnd_fees_missing",
    "customers",
    "customers_balance_msat",
    "customers_held_msat",
    "keys_age_seconds",
    "keys_stale",
    "settlements_leader",
    "refunds_withheld",
    "refunds_withheld_msat",
    "withdrawal_oldest_unknown_seconds",
)
"""The gauges that are left out of the exposition until they are set."""
