"""Which settings are taken in by a gateway that runs, and which wait for its next start."""

from types import MappingProxyType
from typing import Final

from lcp_gateway.config import Settings

RELOADED: Final = frozenset(
    {
        "api_keys",
        "allowed_hosts",
        "cors_origins",
        "http_tls_cert",
        "http_tls_key",
        "trusted_proxies",
        "peers_refresh_s",
        "peers_stale_s",
        "default_peer_id",
        "model_map",
        "model_allowlist",
        "allow_unlisted_models",
        "explicit_choice",
        "models",
        "nodes",
        "nodes_refresh_s",
        "openclaw_enabled",
        "openclaw_base_url",
        "openclaw_api_key",
        "openclaw_node_name",
        "openclaw_price",
        "openclaw_timeout",
        "routing_weight_availability",
        "routing_weight_speed",
        "routing_weight_delivery",
        "routing_weight_price",
        "routing_weight_fit",
        "routing_temperature",
        "default_model",
        "quote_attempts",
        "quote_fanout",
        "exposure_base_msat",
        "exposure_share_ppm",
        "breaker_failures",
        "breaker_pause_s",
        "max_price_msat",
        "max_total_msat",
        "model_max_total_msat",
        "fee_ppm",
        "fee_base_msat",
        "budget_hour_msat",
        "budget_day_msat",
        "budget_month_msat",
        "key_budget_hour_msat",
        "key_budget_day_msat",
        "key_budget_month_msat",
        "loop_brake_per_minute",
        "allow_open",
        "admin_key",
        "keys_stale_s",
        "markup_percent",
        "markup_msat",
        "refund_undelivered",
        "topup_min_msat",
        "topup_max_msat",
        "topup_expiry_s",
        "topups_open_max",
        "l402",
        "l402_msat",
        "l402_expiry_s",
        "l402_invoices_per_minute",
        "max_requests_per_minute",
        "max_tokens_per_minute",
        "account_requests_per_minute",
        "account_tokens_per_minute",
        "key_requests_per_minute",
        "key_tokens_per_minute",
        "key_concurrent_jobs",
        "retry_window_s",
        "join_grace_s",
        "answers_keep_s",
        "answers_max_bytes",
        "max_stored_items",
        "max_stored_bytes",
        "stored_for_s",
        "timeout_quote_s",
        "timeout_execute_s",
        "timeout_s",
        "cancel_timeout_s",
        "max_body_bytes",
        "max_header_bytes",
        "max_concurrent_requests",
        "request_read_timeout_s",
        "keepalive_timeout_s",
        "shutdown_grace_s",
        "heartbeat_s",
        "stream_buffer_bytes",
        "log_level",
        "verbose",
        "start_timeout_s",
        "stop_timeout_s",
    }
)
"""What changes without a restart. The last two are read by the commands, each time they run."""

NEEDS_RESTART: Final = MappingProxyType(
    {
        "http_addr": "its socket is open",
        "metrics_addr": "its socket is open",
        "lcpd_grpc_addr": "the connection to the daemon is open, and jobs are under way on it",
        "lcpd_tls": "as lcpd_grpc_addr",
        "lcpd_tls_ca": "as lcpd_grpc_addr",
        "lcpd_tls_cert": "as lcpd_grpc_addr",
        "lcpd_tls_key": "as lcpd_grpc_addr",
        "lcpd_tls_server_name": "as lcpd_grpc_addr",
        "lcpd_metadata": "as lcpd_grpc_addr",
        "proxy_from_environment": "connections are open",
        "preflight": "it is for the start",
        "preflight_timeout_s": "it is for the start",
        "routing_half_life_s": "what was measured fades by it",
        "journal_url": "the books are open",
        "network": "invoices of the other network may be under way",
        "auth": "accounts, their wallets and their keys are opened at the start",
        "l402_secret": "tokens made with the other would be worthless",
        "lnd_grpc_addr": "lnd is being followed",
        "lnd_tls_cert": "as lnd_grpc_addr",
        "lnd_macaroon_file": "as lnd_grpc_addr",
        "lnd_invoice_macaroon_file": "as lnd_grpc_addr",
        "reconcile_interval_s": "as lnd_grpc_addr",
        "redis_url": "what is counted there is shared with other gateways",
        "log_format": "a log has one form",
        "otlp_endpoint": "traces are under way to it",
        "otlp_headers": "as otlp_endpoint",
        "trace_ratio": "as otlp_endpoint",
        "state_dir": "the PID file and the log lie there",
        "pid_file": "it is there already",
        "log_file": "it is open",
        "log_max_bytes": "the log is open",
        "log_keep": "the log is open",
        "embedded": "the node runs, or does not",
        "node_listen": "as embedded",
        "node_backend": "as embedded",
        "node_backend_api_key": "as embedded",
        "node_peers_file": "as embedded",
        "node_faults": "as embedded",
        "node_events_file": "as embedded",
        "node_tokens_per_second": "as embedded",
    }
)
"""The settings that hold until the next start, and why."""

_TLS = ("http_tls_cert", "http_tls_key")


def changes(before: Settings, after: Settings) -> tuple[list[str], list[str]]:
    """Give the names of the settings that differ: those that can be taken in, and those that need a restart."""
    changed = [
        name for name in Settings.model_fields if getattr(before, name) != getattr(after, name)
    ]
    restart = [name for name in changed if name in NEEDS_RESTART]
    if (before.http_tls_cert is None) is not (after.http_tls_cert is None):
        # An address speaks one of the two.
        restart += [name for name in _TLS if name in changed]
    return [name for name in changed if name not in restart], restart
