"""What the heart needs of the outside, as protocols that other rooms implement."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Protocol

from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.results import Result, StreamEvent
from lcp_gateway.purchase.states import State
from lcp_gateway.purchase.task import Task


class Upstream(Protocol):
    """One way to buy compute. Every error is an ``UpstreamError``."""

    async def request_quote(self, task: Task, peer_id: str, timeout_s: float) -> Quote:
        """Ask a peer for its price. Costs nothing and may be repeated."""
        ...

    async def execute(self, quote: Quote, task: Task, timeout_s: float) -> Result:
        """Pay and wait for the whole result. Called once for a quote, never repeated; ``task`` is what was quoted."""
        ...

    def execute_stream(
        self, quote: Quote, task: Task, timeout_s: float
    ) -> AsyncGenerator[StreamEvent, None]:
        """Pay and give the result as it comes. Called once for a quote; closing the generator ends the call."""
        ...

    async def cancel(self, quote: Quote, reason: str, timeout_s: float) -> None:
        """Tell the peer that nobody waits for the job any more."""
        ...


class Exposure(Protocol):
    """Who is trusted with how much, learnt from what was paid for and came."""

    def check(self, quote: Quote) -> None:
        """Let a quote pass.

        Raises:
            PeerNotTrusted: its peer has not delivered enough for this price.
        """
        ...

    def paying(self, quote: Quote) -> None:
        """A payment is about to go out."""
        ...

    def ended(self, quote: Quote, state: State) -> None:
        """The purchase has come to ``state``: not_paid, unknown, delivered or undelivered."""
        ...

    def left(self, quote: Quote) -> None:
        """The purchase ended undelivered because nobody wanted the rest: its provider neither delivered nor failed to."""
        ...


class StartTask(Protocol):
    """Starts a task that lasts. In the gateway it is supervised: logged and restarted where it ends by itself."""

    def __call__(
        self, run: Callable[[], Coroutine[Any, Any, None]], *, may_return: Callable[[], bool] = ...
    ) -> asyncio.Task[None]:
        """Start it; cancelling the result ends it.

        ``run`` is called again for each restart. ``may_return`` says, once it has returned, whether it was meant to.
        """
        ...


def start_unsupervised(
    run: Callable[[], Coroutine[Any, Any, None]],
    *,
    may_return: Callable[[], bool] = bool,  # noqa: ARG001 - the protocol's signature
) -> asyncio.Task[None]:
    """Start a task that nothing watches: for commands and tests, which hear of its error when they await it."""
    return asyncio.create_task(run())
