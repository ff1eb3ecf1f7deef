"""A purchase service in a simulated world: time, disk, peers, clients and crashes of the gateway are steps of the test.

Nothing happens by itself: each call of the upstream and each write of the journal waits for a step of the test.
The world knows what the gateway cannot: whether a payment went through.
"""

import asyncio
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta

from lcp_gateway.purchase.errors import PurchaseError
from lcp_gateway.purchase.execution import PurchaseExecutor
from lcp_gateway.purchase.held_quotes import HeldQuotes
from lcp_gateway.purchase.idempotency import CacheLimits, IdempotencyCache, RepeatKeys
from lcp_gateway.purchase.journal import JournalUnavailable
from lcp_gateway.purchase.limits import LoopBrake, SpendingLimits
from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.purchase.quote import Candidate, Quote
from lcp_gateway.purchase.quoting import QuoteRequester, QuotingRules
from lcp_gateway.purchase.result_buffer import BufferLimits, ResultBuffer
from lcp_gateway.purchase.service import Observer, PurchaseService, Timeouts
from lcp_gateway.purchase.states import TRANSITIONS, State, Verdict
from tests.support.purchases import HASH, NOW, ScriptedInspector, Trusting, quote

GRACE_S = 10.0
KEYS_FOR_S = 200.0
LIMIT_S = 150.0
TURNS = 25


class HandClock(asyncio.SelectorEventLoop):
    """An event loop whose time the test advances."""

    def __init__(self) -> None:
        self.seconds = 0.0
        super().__init__()
        self.set_exception_handler(_all_but_bugs)

    def time(self) -> float:
        return self.seconds

    def turn(self, times: int = TURNS) -> None:
        """Run all ready callbacks, and those that become ready meanwhile."""
        for _ in range(times):
            self.call_soon(self.stop)
            self.run_forever()


class Bug(Exception):
    """An unexpected exception of a listener."""


class Dead(BaseException):
    """Raised into the tasks of a process that has been killed."""


@dataclass
class Job:
    """The true state of a job. ``evidence`` is what the gateway's calls have returned of it: none, settled or nothing."""

    quote: Quote
    life: int
    body: bytes = b""
    executes: int = 0
    paid: bool | None = None
    evidence: Verdict = Verdict.UNKNOWN
    sent: bytearray = field(default_factory=bytearray)
    open: asyncio.Queue | None = None
    whole: bool = False


class Durable:
    """The part of a journal that survives a crash: the states of each job, in order."""

    def __init__(self) -> None:
        self.states: dict[bytes, list[State]] = {}

    def write(self, job_id: bytes, state: State) -> None:
        states = self.states.setdefault(job_id, [])
        if states and states[-1] is not state:
            reachable = set(TRANSITIONS[states[-1]].values())
            assert state in reachable, f"{states[-1]} became {state}"
        if not states or states[-1] is not state:
            states.append(state)

    def sweep(self) -> None:
        """Sweep as a start does: the payments of a dead gateway become unknown."""
        for states in self.states.values():
            if states[-1] is State.PAYING:
                states.append(State.UNKNOWN)


class Journal:
    """One process's journal. Intents wait for the disk; later states are durable some time after."""

    def __init__(self, durable: Durable) -> None:
        self.durable = durable
        self.waiting: list[tuple[object, asyncio.Future]] = []
        self.buffered: list[tuple[bytes, State]] = []
        self.alive = True

    async def intend(self, intent, budgets):
        done = asyncio.get_running_loop().create_future()
        self.waiting.append((intent, done))
        await done

    def record(self, job_id, state, at, update=None, on_refund=None):
        if self.alive:
            self.buffered.append((job_id, state))

    def disk(self, *, full: bool) -> None:
        """Write all queued records; on a full disk intents fail and the others stay queued."""
        waiting, self.waiting = self.waiting, []
        for intent, done in waiting:
            if full:
                if not done.done():
                    done.set_exception(JournalUnavailable("full", quote=intent.quote))
                continue
            # It may be written although its request no longer waits.
            if intent.quote.job_id not in self.durable.states:
                self.durable.write(intent.quote.job_id, State.PAYING)
            if not done.done():
                done.set_result(None)
        if not full:
            self.flush()

    def flush(self) -> None:
        intended = {intent.quote.job_id for intent, _ in self.waiting}
        held = []
        for job_id, state in self.buffered:
            if job_id in intended:
                held.append((job_id, state))
            else:
                if job_id not in self.durable.states:
                    # Withdrawn before it was written: there is nothing to undo.
                    assert state is State.NOT_PAID
                    continue
                self.durable.write(job_id, state)
        self.buffered = held

    def believed(self, job_id: bytes) -> State | None:
        """The last state that was written, durable or not."""
        for noted, state in reversed(self.buffered):
            if noted == job_id:
                return state
        states = self.durable.states.get(job_id)
        return states[-1] if states else None


@dataclass
class Client:
    """One client's request and its response."""

    body: bytes
    stream: bool
    repeat: RepeatKeys
    key_id: str
    life: int
    quote_id: str | None = None
    asked_at: float = 0.0
    answer: ResultBuffer | None = None
    got: bytearray = field(default_factory=bytearray)
    finished: bool = False
    error: Exception | None = None
    joined: bool = False
    task: asyncio.Task | None = None
    kept: bool = False
    stored: bytes | None = None


class Life:
    """One process: a service and its state in memory."""

    def __init__(self, universe: "Universe", number: int) -> None:
        self.number = number
        self.universe = universe
        self.alive = True
        self.journal = Journal(universe.durable)
        self.quoting: list[asyncio.Future] = []
        self.background: list[asyncio.Task] = []
        self.clients: list[Client] = []
        self.held: list[tuple[str, Client]] = []
        self.leases = 0
        loop = universe.loop

        def inspect(order, quote):
            return HASH

        def spawn(coroutine):
            self.background.append(loop.create_task(coroutine))

        async def routing(order):
            return [Candidate("p1"), Candidate("p2")]

        self.memory = IdempotencyCache(
            CacheLimits(bytes_in_all=60, bytes_for_s=100, keys_for_s=KEYS_FOR_S, repeats_for_s=50), loop.time
        )
        inspector = ScriptedInspector(inspect=inspect)
        self.service = PurchaseService(
            quoting=QuoteRequester(
                self, QuotingRules(at_most=2), inspector=inspector, background=spawn, cancel_timeout_s=1
            ),
            executor=PurchaseExecutor(
                self,
                journal=self.journal,
                inspector=inspector,
                limits=SpendingLimits(),
                exposure=Trusting(),
                execute_timeout_s=1,
                now=universe.now,
            ),
            routing=routing,
            journal=self.journal,
            cache=self.memory,
            held_quotes=HeldQuotes(universe.now),
            brake=LoopBrake(0),
            buffer_limits=BufferLimits(window_bytes=16, whole_bytes=40),
            timeouts=Timeouts(grace_s=GRACE_S, limit_s=LIMIT_S),
            background=spawn,
            observer=Observer(),
            clock=loop.time,
        )

    # The upstream as this process sees it.

    async def request_quote(self, task, peer_id, timeout_s):
        answered = self.universe.loop.create_future()
        self.quoting.append(answered)
        await answered
        return self.universe.new_job(peer_id, self.number, task.body).quote

    async def execute(self, quote, task, timeout_s):
        events = self._executed(quote)
        event = await events.get()
        if isinstance(event, BaseException):
            raise event
        return event

    async def execute_stream(self, quote, task, timeout_s):
        events = self._executed(quote)
        while (event := await events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    async def cancel(self, quote, reason, timeout_s):
        await asyncio.sleep(0)

    def _executed(self, quote) -> asyncio.Queue:
        if not self.alive:
            raise Dead
        job = self.universe.jobs[quote.job_id]
        job.executes += 1
        assert job.executes == 1, "a job was executed twice"
        written = self.universe.durable.states.get(quote.job_id)
        assert written == [State.PAYING], f"executed with {written} in the journal"
        job.open = asyncio.Queue()
        return job.open

    # Steps of its clients.

    def begin(self, client: Client) -> None:
        self.clients.append(client)
        client.asked_at = self.universe.loop.seconds
        client.task = self.universe.loop.create_task(self._serve(client))

    async def _serve(self, client: Client) -> None:
        order = Order.of(_task(client.body, client.stream), request_id="r", key_id=client.key_id, limit_msat=None)
        self.leases += 1
        is_handed_over = False
        try:
            answer = self.service.find(order, client.repeat)
            client.joined = answer is not None
            if answer is None:
                answer = self.service.start(order, client.repeat, client.quote_id)
            client.answer = answer
            if client.kept:
                # It is answered at once, and its admission ticket is held until its job ends.
                is_handed_over = True
                self._keep(answer, client)
                return
            self.service.joined(answer)
            try:
                await answer.wait_head()
                async for block in answer.chunks():
                    client.got += block
                client.finished = True
            finally:
                self.service.left(answer)
        except Exception as error:  # noqa: BLE001 - the test inspects any exception
            client.error = error
        finally:
            if not is_handed_over:
                self.leases -= 1

    def _keep(self, answer: ResultBuffer, client: Client) -> None:
        def fail(_answer: ResultBuffer) -> None:
            raise Bug

        def ended(_answer: ResultBuffer) -> None:
            self.leases -= 1
            if answer.error is None and answer.readable:
                client.stored = b"".join(answer.blocks())

        answer.retained_for = client
        for hear in (fail, ended, fail):
            answer.when_ended(hear)

    def show(self, client: Client) -> None:
        """Ask for a quote only, to be taken by ``client`` later."""

        async def shown():
            order = Order.of(_task(client.body, client.stream), request_id="r", key_id=client.key_id, limit_msat=None)
            self.held.append(((await self.service.quote(order)).id, client))

        self.background.append(self.universe.loop.create_task(shown()))

    def kill(self) -> None:
        """Kill the process: none of its tasks may write, pay or answer afterwards."""
        self.alive = self.journal.alive = False
        tasks = [client.task for client in self.clients]
        tasks += [*self.background, *[one.task for one in self.service._running.values()]]
        for task in tasks:
            task.cancel()
        self.universe.loop.turn()
        assert all(task.done() for task in tasks)


class Universe:
    """The whole simulation, over all processes of the gateway."""

    def __init__(self) -> None:
        self.loop = HandClock()
        self.durable = Durable()
        self.jobs: dict[bytes, Job] = {}
        self._numbers = itertools.count()
        self.life = Life(self, 0)
        self.past: list[Life] = []

    def now(self):
        return NOW + timedelta(seconds=self.loop.seconds)

    def new_job(self, peer_id: str, life: int, body: bytes) -> Job:
        job_id = hashlib.sha256(str(next(self._numbers)).encode()).digest()
        expires_at = self.now() + timedelta(seconds=60)
        made = replace(quote(), peer_id=peer_id, job_id=job_id, expires_at=expires_at)
        job = self.jobs[job_id] = Job(made, life, body)
        return job

    def working(self) -> list[Job]:
        """The jobs of this life whose execute call is open."""
        running = {answer.purchase.quote.job_id for answer in self.life.service._running if answer.purchase is not None}
        return [job for id_, job in self.jobs.items() if job.open is not None and id_ in running]

    def advance(self, seconds: float) -> None:
        self.loop.seconds += seconds
        self.loop.turn()

    def restart(self) -> None:
        self.life.kill()
        self.past.append(self.life)
        self.durable.sweep()
        self.life = Life(self, self.life.number + 1)

    def clients(self) -> Iterator[Client]:
        for life in (*self.past, self.life):
            yield from life.clients

    def close(self) -> None:
        self.life.kill()
        self.loop.close()


def verdict_told(client: Client) -> Verdict | None:
    """The payment state in a client's response; None while it waits, or when it has left."""
    if client.finished:
        return Verdict.SETTLED
    if isinstance(client.error, PurchaseError):
        return client.error.verdict
    return None


def _all_but_bugs(loop: asyncio.AbstractEventLoop, context: dict) -> None:
    if not isinstance(context.get("exception"), Bug):
        loop.default_exception_handler(context)


def _task(body: bytes, stream: bool) -> Task:
    return Task(TaskKind.CHAT_COMPLETIONS, "m", body, stream=stream)
