"""The log of a node over lnd."""

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from lcp_gateway.node.runtime.log import NodeLog
from lcp_gateway.telemetry.node_metrics import NodeMetrics


class NodeEvents(NodeLog):
    """Counts and logs the troubles that a node reports. No request and no result is ever reported to it."""

    def __init__(self, metrics: NodeMetrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log
        self._was_connected: bool | None = None

    def problem(self, part: str, error: BaseException, *, again_in_s: float | None = None) -> None:
        """Record an error of a part that goes on; the log has its type and place, not its text."""
        self._metrics.problem(part)
        self._log.warning("a part of the node failed", part=part, again_in_s=again_in_s, exc_info=error)

    def lightning(self, *, connected: bool) -> None:
        """Log that lnd delivers messages, or no longer does; once for each change."""
        if connected is self._was_connected:
            return
        self._was_connected = connected
        if connected:
            self._log.info("lnd delivers messages")
        else:
            self._log.warning("lnd delivers no messages; it is asked again")

    def not_connected(self, peer_id: str, reason: str) -> None:
        """Count and log that lnd could not connect with a peer that the operator named. Its text names addresses at most."""
        self._metrics.problem("connect")
        self._log.warning("lnd could not connect with a peer; it is asked again", peer_id=peer_id, reason=reason)

    def link(self, peer_id: str, protocol: int, *, ready: bool) -> None:
        """Log that a peer became ready, or is no longer."""
        words = "a peer is ready" if ready else "a peer is no longer ready"
        self._log.info(words, peer_id=peer_id, protocol=int(protocol))

    def message_dropped(self, peer_id: str, reason: str) -> None:
        """Count and log a message that was not taken."""
        self._metrics.message_dropped(reason)
        self._log.debug("a message was dropped", peer_id=peer_id, reason=reason)

    def job_refused(self, peer_id: str, protocol: int, code: str) -> None:
        """Count and log that a peer got an error for a request."""
        self._metrics.job_refused(code)
        # A peer can have as many of these written as it likes.
        self._log.debug("a request was refused", peer_id=peer_id, protocol=int(protocol), code=code)


def bug_logger(log: FilteringBoundLogger) -> Callable[[str, BaseException], None]:
    """Return what logs an error of the node's own in a call: its type and place, for its text may quote a prompt."""

    def on_bug(name: str, error: BaseException) -> None:
        log.error("a call failed in the node", call=name, exc_info=error)

    return on_bug
