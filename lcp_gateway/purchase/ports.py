"""The protocols that other packages implement for a purchase, and the results that come through them."""

import asyncio
import enum
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import field
from typing import Any, Protocol

from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Task
from lcp_gateway.purchase.outcome import Judge
from lcp_gateway.purchase.payment_evidence import PaymentReport
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import State
from lcp_gateway.values import value


class ResultStatus(enum.StrEnum):
    """The status that a provider gives its result."""

    UNSPECIFIED = "unspecified"
    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"


@value
class Result:
    """A result, or after a stream its terminal message (``body`` may then be empty: the chunks carried it).

    ``charged_msat`` is the final price, where the quote's price was only the most that it could be.
    """

    status: ResultStatus
    body: bytes = field(repr=False)
    sha256: bytes
    length: int
    content_type: str
    content_encoding: str
    message: str
    charged_msat: Msat | None = None
    payment: PaymentReport | None = field(default=None, compare=False)


ChunkSink = Callable[[bytes], bool]
"""Takes a chunk of a result at once; returns False, having done nothing, where the chunk has to come as an event."""


@value
class StreamBegin:
    """The head of a streamed result.

    ``judge`` is given by an upstream that reads the chunks itself before it hands them over. ``hand_to`` is given by one
    that can offer each chunk to a sink as it arrives, while its events are awaited: no task is woken for those.
    """

    content_type: str
    content_encoding: str
    judge: Judge | None = field(default=None, compare=False, repr=False)
    hand_to: Callable[[ChunkSink], None] | None = field(default=None, compare=False, repr=False)
    payment: PaymentReport | None = field(default=None, compare=False)


@value
class StreamEnd:
    """The provider's statement on its stream; hash and length are checked against the received bytes."""

    sha256: bytes
    length: int


StreamEvent = StreamBegin | bytes | StreamEnd | Result
"""One event of a streamed result; plain ``bytes`` is a chunk, which is nearly all of them."""


class Upstream(Protocol):
    """One way to buy compute. Every error is an ``UpstreamError``."""

    async def request_quote(self, task: Task, peer_id: str, timeout_s: float) -> Quote:
        """Ask a peer for its price. Costs nothing and may be repeated."""
        ...

    async def execute(self, quote: Quote, task: Task, timeout_s: float) -> Result:
        """Pay and wait for the whole result. Called once for a quote, never repeated; ``task`` is what was quoted."""
        ...

    def execute_stream(self, quote: Quote, task: Task, timeout_s: float) -> AsyncGenerator[StreamEvent, None]:
        """Pay and yield the result as it comes. Called once for a quote; closing the generator ends the call."""
        ...

    async def cancel(self, quote: Quote, reason: str, timeout_s: float) -> None:
        """Notify the peer that no client waits for the job any more."""
        ...


class Exposure(Protocol):
    """How much each peer is trusted with, by its paid and its delivered purchases."""

    def quoted(self, peer_id: str) -> None:
        """Record a good quote."""
        ...

    def weigh(self, quote: Quote) -> None:
        """Check a quote that may not be taken, and hold nothing.

        Raises:
            PeerNotTrusted: its peer has not delivered enough for this price.
        """
        ...

    def check(self, quote: Quote) -> None:
        """Check a quote that is about to be paid, and hold its price.

        Raises:
            PeerNotTrusted: as in ``weigh``.
        """
        ...

    def paying(self, quote: Quote) -> None:
        """A payment is about to go out."""
        ...

    def ended(self, quote: Quote, state: State) -> None:
        """The purchase has come to ``state``: not_paid, unknown, delivered or undelivered."""
        ...

    def released(self, quote: Quote) -> None:
        """The purchase ended undelivered because the client left: its provider neither delivered nor failed to."""
        ...


class StartTask(Protocol):
    """Starts a long-running task. In the gateway it is supervised: logged and restarted where it ends by itself."""

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
    """Start a task without a supervisor: for commands and tests, which get its error when they await it."""
    return asyncio.create_task(run())
