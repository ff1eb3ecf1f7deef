"""Takes changed settings in while the gateway runs: all of those that can change, or none."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from types import MappingProxyType
from typing import Final

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app.systemd import Notifier
from lcp_gateway.app.wiring.journal import WiringError
from lcp_gateway.config import ConfigError, Loaded, Settings
from lcp_gateway.http.server.tls import BadCertificate
from lcp_gateway.telemetry.logs import log_always

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
        "list_auto",
        "quote_attempts",
        "quote_fanout",
        "exposure_base_msat",
        "exposure_share_ppm",
        "exposure_unproven_msat",
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
        "api_concurrent",
        "api_concurrent_per_caller",
        "markup_percent",
        "markup_msat",
        "refund_undelivered",
        "refund_account_day_msat",
        "refund_day_msat",
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
        "slow_callback_ms": "it is watched from the start on",
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


class Reload:
    """Reads the settings anew whenever ``wanted`` is set, one time after the other.

    ``read`` gives them as they are now. ``renew`` takes settings in, and gives the names of those whose files have
    changed, or fails with everything as it was.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        wanted: asyncio.Event,
        read: Callable[[], Loaded],
        renew: Callable[[Settings], Awaitable[Collection[str]]],
        notifier: Notifier,
        log: FilteringBoundLogger,
    ) -> None:
        self._settings = settings
        self._read = read
        self._renew = renew
        self._notifier = notifier
        self._log = log
        self._wanted = wanted

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    async def run(self) -> None:
        """Read them whenever that is asked for, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._notifier.reloading()
            try:
                await self._reload()
            finally:
                self._notifier.ready()

    async def _reload(self) -> None:
        try:
            # Files may lie on a slow disk: streams go on meanwhile.
            loaded = await asyncio.to_thread(self._read)
            changed, restart = changes(self._settings, loaded.settings)
            settings = loaded.keeping(self._settings, restart)
            renewed = await self._renew(settings)
        except ConfigError as error:
            self._refuse(error.problems)
        except (WiringError, BadCertificate) as error:
            self._refuse([str(error)])
        except Exception as error:  # noqa: BLE001 - a gateway that serves must not end for its settings
            self._log.error("the settings could not be taken in", exc_info=error)
            self._refuse(["an unexpected error; see the log"])
        else:
            self._settings = settings
            for warning in loaded.warnings:
                self._log.warning(warning)
            # Names alone: a value may be a secret, and is nobody's business here.
            names = sorted({*changed, *renewed})
            log_always(
                self._log,
                "configuration reloaded",
                changed=names,
                needs_restart=sorted(restart),
            )

    def _refuse(self, problems: list[str]) -> None:
        self._log.error("configuration not reloaded", problems=problems)
