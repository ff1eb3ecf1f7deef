"""A worker's side of its channel to the supervisor, which stands between it and the service manager."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from lcp_gateway.supervisor.channel import Channel, ChannelClosed, Handler, QuestionFailed
from lcp_gateway.supervisor.job_counts import JobCounts
from lcp_gateway.supervisor.messages import Boot, Message, Overview, Ready
from lcp_gateway.telemetry.merged_metrics import Snapshot

# Longer than the supervisor waits for a worker that does not answer.
_SCRAPE_S: Final = 8.0
_OVERVIEW_S: Final = 2.0


class WorkerLink:
    """The supervisor, as a worker sees it. ``boot`` says how this worker was started."""

    def __init__(self, boot: Boot, end: socket.socket) -> None:
        self.boot = boot
        self._end = end
        self._channel: Channel | None = None
        self._handlers: dict[str, Handler] = {}
        self._served: Ready | None = None
        self._jobs = JobCounts(boot.job_counts, boot.workers)

    def handle(self, kind: Message, handler: Callable[[Any], Awaitable[Any]]) -> None:
        """Handle messages of a kind from now on; to be called before ``run``."""
        self._handlers[kind] = handler

    async def run(self, on_orphaned: Callable[[], None]) -> None:
        """Read the supervisor's messages until cancelled; ``on_orphaned`` is called once it is gone."""
        self._channel = await Channel.open(self._end, self._handlers)
        if self._served is not None:
            self._channel.tell(Message.READY, self._served)
        await self._channel.run()
        on_orphaned()
        # No supervisor comes back.
        await asyncio.Event().wait()

    def served(self, ready: Ready) -> None:
        """Tell that this worker serves, at once or when ``run`` begins."""
        self._served = ready
        if self._channel is not None:
            self._channel.tell(Message.READY, ready)

    def count(self, by: int) -> int:
        """Count a job of this worker, or its end, and return how many all workers have under way."""
        self._jobs.add(self.boot.place, by)
        return self._jobs.total

    async def scrape(self) -> Snapshot | None:
        """Return the metrics of all workers; None where the supervisor does not answer."""
        found: Snapshot | None = await self._ask(Message.SCRAPE, _SCRAPE_S)
        return found

    async def overview(self) -> Overview | None:
        """Return the state of all workers; None where the supervisor does not answer."""
        found: Overview | None = await self._ask(Message.OVERVIEW, _OVERVIEW_S)
        return found

    async def _ask(self, kind: Message, timeout_s: float) -> Any:
        if self._channel is None:
            return None
        try:
            return await self._channel.ask(kind, timeout_s=timeout_s)
        except (ChannelClosed, QuestionFailed, TimeoutError):
            return None
