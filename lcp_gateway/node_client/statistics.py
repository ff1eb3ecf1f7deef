"""What a node has done since its start, for the person who runs it."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime


@dataclass(slots=True)
class Statistics:
    """Counts since the start. ``state`` is a sentence; ``offered`` are the models that the gateway offers now.

    Tokens are those that results state, or else estimated from their bytes. Earnings are those that the gateway has
    confirmed. ``on_change`` is called after each change.
    """

    since: datetime
    gateway: str
    node_id: str = ""
    state: str = "starting"
    running: int = 0
    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    delivered: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    earned_msat: int = 0
    connections: int = 0
    offered: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    on_change: Callable[[], None] = lambda: None

    def document(self) -> dict[str, object]:
        """Return it as a JSON document."""
        shown = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "on_change"}
        return {**shown, "since": self.since.isoformat(), "offered": list(self.offered), "refused": dict(self.refused)}
