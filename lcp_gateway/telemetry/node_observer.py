"""The observer of a node over lnd: it counts and logs what the node reports, as ``node/runtime/observer.py`` describes."""

from structlog.typing import FilteringBoundLogger

from lcp_gateway.telemetry.node_metrics import NodeMetrics


class LcpNodeObserver:
    """Counts and logs, and decides nothing. No request and no result is ever reported to it."""

    def __init__(self, metrics: NodeMetrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log
        self._was_connected: bool | None = None

    def message(self, direction: str, protocol: int, name: str, byte_count: int = 0) -> None:
        """Count a message to or from a peer."""
        del name
        self._metrics.message(direction, protocol, byte_count)

    def message_dropped(self, reason: str) -> None:
        """Count a message that was not taken."""
        self._metrics.message_dropped(reason)

    def job_ended(self, role: str, protocol: int, outcome: str, *, model: str = "") -> None:
        """Count and log the end of a job."""
        self._metrics.job_ended(role, outcome)
        named = {"model": model} if model else {}
        self._log.info("a job ended", role=str(role), outcome=outcome, protocol=int(protocol), **named)

    def job_refused(self, protocol: int, code: str) -> None:
        """Count and log a request for a quote that was refused."""
        self._metrics.job_refused(code)
        self._log.debug("a request was refused", code=code, protocol=int(protocol))

    def earned(self, price_msat: int, *, model: str) -> None:
        """Count and log a sale that was paid."""
        self._metrics.earned(price_msat, model)
        self._log.info("a sale was paid", price_msat=price_msat, model=model)

    def spent(self, price_msat: int, fee_msat: int) -> None:
        """Count and log a purchase that was paid."""
        self._metrics.spent(price_msat, fee_msat)
        self._log.info("a purchase was paid", price_msat=price_msat, fee_msat=fee_msat)

    def payment_ended(self, outcome: str) -> None:
        """Count the end of a payment."""
        self._metrics.payment_ended(outcome)

    def link(self, peer_id: str, protocol: int, *, ready: bool) -> None:
        """Log that a peer became ready, or is no longer."""
        words = "a peer is ready" if ready else "a peer is no longer ready"
        self._log.info(words, peer_id=peer_id, protocol=int(protocol))

    def lightning(self, *, connected: bool) -> None:
        """Log that lnd delivers messages, or no longer does; once for each change."""
        if connected is self._was_connected:
            return
        self._was_connected = connected
        if connected:
            self._log.info("lnd delivers messages")
        else:
            self._log.warning("lnd delivers no messages; it is asked again")

    def problem(self, task: str, error: BaseException, *, restart_in_s: float | None = None) -> None:
        """Count and log an error of a part that goes on; the log holds its type and place, not its text."""
        self._metrics.problem(task)
        self._log.warning("a part of the node failed, and goes on", part=task, retry_in_s=restart_in_s, exc_info=error)
