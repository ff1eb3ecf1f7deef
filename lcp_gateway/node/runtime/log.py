"""What a node says of its troubles while it runs. Nothing of it holds a request or a result."""

from lcp_gateway.node.lcp.messages import Protocol


class NodeLog:
    """Takes what a node reports beside its counts; this class ignores it. Methods return at once and raise nothing."""

    def problem(self, part: str, error: BaseException, *, again_in_s: float | None = None) -> None:
        """Record an error of a part that goes on: it is tried again, or what it was for has failed."""

    def lightning(self, *, connected: bool) -> None:
        """Record that the Lightning node's stream of messages works, or broke."""

    def not_connected(self, peer_id: str, reason: str) -> None:
        """Record that the Lightning node could not connect with a peer that the operator named; it tries again."""

    def link(self, peer_id: str, protocol: Protocol, *, ready: bool) -> None:
        """Record that a peer became ready in a version, or is no longer."""

    def message_dropped(self, peer_id: str, reason: str) -> None:
        """Record a message that was not taken: "undecodable", "unknown type", "too many manifests", "unknown job", "expired", "repeated"."""

    def job_refused(self, peer_id: str, protocol: Protocol, code: str) -> None:
        """Record that a peer got an error for a request, by the name of its code."""
