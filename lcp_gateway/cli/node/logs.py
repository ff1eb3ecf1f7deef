"""The log of a node over lnd."""

from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from lcp_gateway.node.runtime.log import NodeLog
from lcp_gateway.telemetry.node_log import LcpNodeLog


class NodeEvents(LcpNodeLog, NodeLog):
    """Counts and logs the troubles that a node reports. No request and no result is ever reported to it."""


def bug_logger(log: FilteringBoundLogger) -> Callable[[str, BaseException], None]:
    """Return what logs an error of the node's own in a call: its type and place, for its text may quote a prompt."""

    def on_bug(name: str, error: BaseException) -> None:
        log.error("a call failed in the node", call=name, exc_info=error)

    return on_bug
