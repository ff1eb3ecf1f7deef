"""A purchase service on a scripted market: peers with given quotes, whose work the test completes."""

import asyncio
import hashlib
from contextlib import suppress
from dataclasses import dataclass, field, replace

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.execution import PurchaseExecutor
from lcp_gateway.purchase.held_quotes import HeldQuotes
from lcp_gateway.purchase.idempotency import CacheLimits, IdempotencyCache, RepeatKeys
from lcp_gateway.purchase.journal import EarlierPurchase, RequestRepeated
from lcp_gateway.purchase.limits import LoopBrake, SpendingLimits
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.purchase.quote import Candidate, ProviderSource, Quote
from lcp_gateway.purchase.quoting import PaidJobs, QuoteRequester, QuotingRules
from lcp_gateway.purchase.result_buffer import BufferLimits, ResultBuffer
from lcp_gateway.purchase.service import Observer, PurchaseService, Timeouts
from tests.support.purchases import HASH, NOW, ScriptedInspector, Trusting, quote, result, stream_events

BODY = b'{"model":"m","messages":[1]}'
OTHER_BODY = b'{"model":"m","messages":[2]}'
NO_REPEAT = RepeatKeys()
KEY = RepeatKeys(key="k")


def spawn(coroutine) -> asyncio.Task:
    return asyncio.ensure_future(coroutine)


def ordered(body: bytes = BODY, *, stream: bool = False, key_id: str = "", limit_msat=None) -> Order:
    task = Task(TaskKind.CHAT_COMPLETIONS, "m", body, stream=stream)
    return Order.of(task, request_id="req_1", key_id=key_id, limit_msat=limit_msat)


async def settle(turns: int = 40) -> None:
    """Run the event loop until no task is ready."""
    for _ in range(turns):
        await asyncio.sleep(0)


@dataclass
class Peer:
    """A peer's answer to a quote request: a price or an error, at once or when ``ready`` is set.

    ``dialled_in`` makes it a node that is paid on delivery.
    """

    price_msat: int = 5_000
    dialled_in: bool = False
    error: Exception | None = None
    ready: asyncio.Event | None = None


@dataclass
class Work:
    """One execute call: its events come out as they are put in; an exception among them is raised."""

    quote: Quote
    queue: asyncio.Queue = field(default_factory=asyncio.Queue)
    closed: bool = False

    def put(self, *events: object) -> None:
        for event in events:
            self.queue.put_nowait(event)

    def deliver(self, body: bytes = b"answer") -> None:
        """Answer a call with a whole result."""
        self.put(result(body))

    def stream(self, *chunks: bytes) -> None:
        """Answer a call with a whole stream."""
        self.put(*stream_events(*chunks))

    async def next(self) -> object:
        event = await self.queue.get()
        if isinstance(event, BaseException):
            raise event
        return event


@dataclass
class ScriptedPeers:
    """An upstream of several peers. Every quote is for a job of its own, unless ``same_job`` is that of all."""

    peers: dict[str, Peer] = field(default_factory=lambda: {"p1": Peer()})
    expires_in_s: int = 300
    asked: list[str] = field(default_factory=list)
    quotes: list[Quote] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    cancelled: list[tuple[str, str]] = field(default_factory=list)
    same_job: bytes | None = None

    def candidates(self) -> list[Candidate]:
        """Every peer, in order."""
        return [Candidate(name) for name in self.peers]

    async def request_quote(self, task, peer_id, timeout_s):
        self.asked.append(peer_id)
        peer = self.peers[peer_id]
        if peer.ready is not None:
            await peer.ready.wait()
        else:
            await asyncio.sleep(0)
        if peer.error is not None:
            raise peer.error
        job_id = self.same_job or hashlib.sha256(f"job {len(self.quotes)}".encode()).digest()
        made = replace(quote(peer.price_msat, self.expires_in_s), peer_id=peer_id, job_id=job_id)
        if peer.dialled_in:
            made = replace(made, source=ProviderSource.NODE, on_delivery=True, payment_request="")
        self.quotes.append(made)
        return made

    async def execute(self, quote, task, timeout_s):
        return await self._work(quote).next()

    async def execute_stream(self, quote, task, timeout_s):
        work = self._work(quote)
        try:
            while (event := await work.next()) is not None:
                yield event
                if getattr(event, "status", None) is not None:
                    return
        finally:
            work.closed = True

    async def cancel(self, quote, reason, timeout_s):
        self.cancelled.append((quote.peer_id, reason))

    def _work(self, quote) -> Work:
        work = Work(quote)
        self.works.append(work)
        return work


@dataclass
class PlainJournal:
    """Records the states of each job; ``gate`` holds an intent back, ``refusal`` refuses it.

    ``elsewhere`` has the purchases of other processes.
    """

    states: dict[bytes, list[str]] = field(default_factory=dict)
    intents: list = field(default_factory=list)
    budgets: list = field(default_factory=list)
    refusal: Exception | None = None
    gate: asyncio.Event | None = None
    elsewhere: dict[bytes, EarlierPurchase] = field(default_factory=dict)

    async def find(self, job_id):
        return self.elsewhere.get(job_id)

    async def intend(self, intent, budgets):
        await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
        if self.refusal is not None:
            raise self.refusal
        self.intents.append(intent)
        self.budgets.append(list(budgets))
        self.states.setdefault(intent.quote.job_id, []).append("paying")

    def record(self, job_id, state, at, update=None, on_refund=None):
        self.states.setdefault(job_id, []).append(state.value)

    @property
    def only(self) -> list[str]:
        """The states of the only job."""
        (states,) = self.states.values()
        return states


class Noting(Observer):
    """Records the answers that ended."""

    def __init__(self) -> None:
        self.quotes: list[ResultBuffer] = []
        self.ends: list[ResultBuffer] = []

    def quote_taken(self, answer: ResultBuffer) -> None:
        self.quotes.append(answer)

    def ended(self, answer: ResultBuffer) -> None:
        self.ends.append(answer)


@dataclass
class World:
    """A service and everything around it. ``clock`` is the memory's and the brake's."""

    service: PurchaseService
    upstream: ScriptedPeers
    journal: PlainJournal
    memory: IdempotencyCache
    observer: Noting
    exposure: Trusting
    clock: list[float]
    now: list
    limits: SpendingLimits
    background: set = field(default_factory=set)

    async def ask(self, order: Order, repeat: RepeatKeys = NO_REPEAT, quote_id: str | None = None):
        """Buy as a request does; return the bytes."""
        answer = self.service.find(order, repeat) or self.service.start(order, repeat, quote_id)
        return await self.read(answer)

    async def read(self, answer: ResultBuffer) -> bytes:
        self.service.joined(answer)
        try:
            await answer.wait_head()
            return b"".join([block async for block in answer.chunks()])
        finally:
            self.service.left(answer)

    async def work(self, at: int = -1) -> Work:
        """Wait for an execute call."""
        wanted = at + 1 if at >= 0 else 1
        for _ in range(200):
            if len(self.upstream.works) >= wanted:
                return self.upstream.works[at]
            await asyncio.sleep(0)
        raise AssertionError("nothing was executed")


def world(
    *,
    upstream: ScriptedPeers | None = None,
    journal=None,
    asking: QuotingRules | None = None,
    limits: SpendingLimits | None = None,
    memory_limits: CacheLimits | None = None,
    bounds: BufferLimits | None = None,
    grace_s: float = 0.02,
    limit_s: float = 0.0,
    elsewhere_s: float = 60.0,
    per_minute: int = 0,
    refuse=None,
    utc_now=None,
) -> World:
    """Make a world; needs a running loop. ``refuse(order, quote)`` may raise what an inspection raises.

    Its time of day stands still at ``World.now[0]``, unless ``utc_now`` tells it.
    """
    upstream = ScriptedPeers() if upstream is None else upstream
    journal = PlainJournal() if journal is None else journal
    limits = SpendingLimits() if limits is None else limits
    clock, now, paid_jobs = [0.0], [NOW], PaidJobs()
    utc_now = utc_now or (lambda: now[0])
    exposure, observer, running = Trusting(), Noting(), set()

    def inspect(order, quote):
        limits.check_price(order, quote)
        if refuse is not None:
            refuse(order, quote)
        return HASH

    def background(coroutine):
        async def quietly():
            with suppress(UpstreamError):
                await coroutine

        task = asyncio.ensure_future(quietly())
        running.add(task)
        task.add_done_callback(running.discard)

    async def routing(order):
        return upstream.candidates()

    inspector = ScriptedInspector(limits, exposure, inspect)
    memory = IdempotencyCache(memory_limits or CacheLimits(), lambda: clock[0])
    service = PurchaseService(
        quoting=QuoteRequester(
            upstream,
            asking or QuotingRules(),
            inspector=inspector,
            background=background,
            cancel_timeout_s=1,
            paid_jobs=paid_jobs,
        ),
        executor=PurchaseExecutor(
            upstream,
            journal=journal,
            inspector=inspector,
            limits=limits,
            exposure=exposure,
            execute_timeout_s=1,
            now=utc_now,
            paid_jobs=paid_jobs,
        ),
        routing=routing,
        journal=journal,
        cache=memory,
        held_quotes=HeldQuotes(utc_now),
        brake=LoopBrake(per_minute, lambda: clock[0]),
        buffer_limits=bounds or BufferLimits(),
        timeouts=Timeouts(grace_s=grace_s, limit_s=limit_s, elsewhere_s=elsewhere_s),
        background=background,
        observer=observer,
        clock=lambda: clock[0],
    )
    return World(service, upstream, journal, memory, observer, exposure, clock, now, limits, running)


def price(amount: int) -> Msat:
    return Msat(amount)


def bought_elsewhere(w, state, *, body=None, key_id="", number=99):
    """Put a purchase of another process for the same request into the journal, which then refuses an intent for it."""
    identity = w.memory.identity(ordered() if body is None else ordered(body), KEY)
    job_id = bytes([number]) * 32
    earlier = EarlierPurchase(replace(quote(), job_id=job_id), state, key_id, "req_elsewhere", identity.body)
    w.journal.elsewhere[job_id] = earlier
    w.journal.refusal = RequestRepeated(quote(), earlier)
    return earlier
