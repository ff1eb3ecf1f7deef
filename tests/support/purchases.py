"""Stand-ins for the ports of the purchase package: a scripted upstream and a journal in memory."""

import asyncio
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from lcp_gateway.purchase.inspection import QuoteInspector
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import Order, Task, TaskKind
from lcp_gateway.purchase.ports import Result, ResultStatus, StreamBegin, StreamEnd
from lcp_gateway.purchase.quote import Quote

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PEER = "02" + "ab" * 32
TASK = Task(TaskKind.CHAT_COMPLETIONS, "m", b'{"model":"m","messages":[1]}', stream=False)
HASH = b"\x33" * 32


def order(task: Task = TASK, *, key_id: str = "", limit_msat=None) -> Order:
    return Order.of(task, request_id="req_1", key_id=key_id, limit_msat=limit_msat)


def quote(price_msat: int = 5_000, expires_in_s: int = 300) -> Quote:
    return Quote(
        peer_id=PEER,
        job_id=b"\x11" * 32,
        price_msat=Msat(price_msat),
        expires_at=NOW + timedelta(seconds=expires_in_s),
        terms_hash=b"\x22" * 32,
        payment_request="lnbcrt1",
        protocol_version=2,
    )


def result(body: bytes = b"answer", **changes) -> Result:
    fields = {
        "status": ResultStatus.OK,
        "body": body,
        "sha256": hashlib.sha256(body).digest(),
        "length": len(body),
        "content_type": "application/json",
        "content_encoding": "identity",
        "message": "",
    }
    return Result(**{**fields, **changes})


def stream_events(*chunks: bytes, **changes) -> list:
    whole = b"".join(chunks)
    digest = hashlib.sha256(whole).digest()
    return [
        StreamBegin("text/event-stream", "identity"),
        *chunks,
        StreamEnd(digest, len(whole)),
        result(b"", sha256=digest, length=len(whole), **changes),
    ]


@dataclass
class ScriptedUpstream:
    """Returns the given quote, result or events; an exception among them is raised instead."""

    quoted: Quote = field(default_factory=quote)
    outcome: object = None
    events: list = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    closed: bool = False

    async def request_quote(self, task, peer_id, timeout_s):
        self.calls.append("quote")
        if isinstance(self.outcome, BaseException) and self.outcome.args[:1] == ("quote",):
            raise self.outcome
        return self.quoted

    async def execute(self, quote, task, timeout_s):
        self.calls.append("execute")
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    async def execute_stream(self, quote, task, timeout_s):
        self.calls.append("execute")
        try:
            for event in self.events:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self.closed = True

    async def cancel(self, quote, reason, timeout_s):
        self.calls.append(f"cancel: {reason}")


@dataclass
class MemoryJournal:
    """Records every state in order, and the upstream calls made before each."""

    upstream: ScriptedUpstream
    states: list[str] = field(default_factory=list)
    calls_at: list[tuple[str, ...]] = field(default_factory=list)
    intents: list = field(default_factory=list)
    refusal: BaseException | None = None

    async def intend(self, intent, budgets):
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        self.intents.append(intent)
        self.states.append("paying")
        self.calls_at.append(tuple(self.upstream.calls))

    async def find(self, job_id):
        return None

    def record(self, job_id, state, at, update=None, on_refund=None):
        self.states.append(state.value)
        self.calls_at.append(tuple(self.upstream.calls))


@dataclass
class Trusting:
    """An exposure that trusts every peer and records its calls."""

    states: list = field(default_factory=list)

    def check(self, quote):
        pass

    def paying(self, quote):
        self.states.append("paying")

    def ended(self, quote, state):
        self.states.append(state.value)

    def released(self, quote):
        self.states.append("released")

    def quoted(self, peer_id):
        pass

    def weigh(self, quote):
        pass


class ScriptedInspector(QuoteInspector):
    """The checks before a payment, with ``inspect(order, quote)`` in place of the checks of a quote."""

    def __init__(self, limits=None, exposure=None, inspect=lambda _order, _quote: HASH) -> None:
        super().__init__(limits=limits or SpendingLimits(), exposure=exposure or Trusting(), check_invoice=inspect)
        self.at_quote = inspect
