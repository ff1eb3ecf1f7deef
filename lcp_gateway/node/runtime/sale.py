"""One job that is sold: the machine of ``lcp/selling``, and the task that carries out its effects in their order.

The machine takes each event at once; what has to be durable is written before what follows from it, however long that takes.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Final

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.effects import Send
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.lcp.selling import Selling
from lcp_gateway.node.lcp.selling_events import (
    CancelInvoice,
    Compute,
    ComputeData,
    ComputeEnded,
    ComputeFailed,
    InvoiceFailed,
    InvoiceLost,
    InvoiceMade,
    InvoiceSettled,
    KeepSale,
    KeepSent,
    MakeInvoice,
    SaleEffect,
    SaleEvent,
    SaleOutcome,
    SalePhase,
    SettleInvoice,
    StopCompute,
)
from lcp_gateway.node.lcp.table import MESSAGE_TYPES
from lcp_gateway.node.ports import ComputeError, InvoiceState, LightningAway, StoredSale
from lcp_gateway.node.runtime.observer import JobEnd, Role
from lcp_gateway.node.runtime.parts import NodeParts
from lcp_gateway.node.runtime.peers import Peers

_PREIMAGE_BYTES: Final = 32
_MAX_WAITING: Final = 64
"""How many effects may wait, behind a disk that is full for instance, when a refusal is added to them."""
_ENDS: Final = {
    SaleOutcome.DELIVERED: JobEnd.DELIVERED,
    SaleOutcome.FAILED: JobEnd.FAILED,
    SaleOutcome.CANCELLED: JobEnd.CANCELLED,
    SaleOutcome.EXPIRED: JobEnd.EXPIRED,
}


@dataclass(frozen=True, slots=True)
class _RecordEnd:
    """Record the job's end in the store, behind the effects that came before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleHooks:
    """What all sales of a node ask and tell it.

    ``may_run`` says whether paid jobs are run now: while the node stops they wait for its next run.
    ``watch`` is told the payment hash of each invoice that is made, with its sale; ``moved`` each sale whose phase has changed,
    with the one before; ``kept`` each sale that keeps more bytes of its result.
    """

    may_run: Callable[[], bool]
    watch: Callable[[bytes, "Sale"], None]
    moved: Callable[["Sale", SalePhase], None]
    kept: Callable[["Sale", int], None]


class Sale:
    """A job of one peer. ``reserved_bytes`` and ``result_bytes`` are what it takes of the bounds, ``expires_at`` Unix seconds."""

    def __init__(
        self,
        machine: Selling,
        parts: NodeParts,
        peers: Peers,
        hooks: SaleHooks,
        *,
        protocol: Protocol,
        peer_id: str,
        job_id: bytes,
        model: str,
        expires_at: float,
        restored: StoredSale | None = None,
    ) -> None:
        self.machine = machine
        self.protocol = protocol
        self.peer_id = peer_id
        self.job_id = job_id
        self.model = model
        self.reserved_bytes = len(restored.kept.body) if restored else 0
        self.result_bytes = sum(len(one.payload) for one in restored.sent) if restored else 0
        self.expires_at = expires_at
        self.is_runnable = restored is None or bool(restored.kept.body)
        """Whether the request is there: where nothing of it was kept, no payment may come any more."""
        self.price_msat = restored.kept.quote.price_msat if restored else 0
        self.payment_hash = restored.kept.payment_hash if restored else b""
        self.repeats = 0
        """How often the peer has asked again for its quote and result."""
        self.handed_at = 0.0
        """When messages of its result were last handed over for sending, in Unix seconds; 0 for those of an earlier run."""
        self._parts = parts
        self._peers = peers
        self._hooks = hooks
        self._preimage = restored.hold_preimage if restored else None
        self._stored = restored is not None
        self._ended_at = 0
        self._told = machine.outcome
        # Whether it was paid when its end was last recorded. Of a job that ended in an earlier run, that is looked up first.
        self._recorded = False if machine.outcome else None
        self._effects: deque[SaleEffect | _RecordEnd] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._done = asyncio.Event()
        self._compute: asyncio.Task[None] | None = None

    @property
    def phase(self) -> SalePhase:
        """Where the job is."""
        return self.machine.phase

    @property
    def is_idle(self) -> bool:
        """Whether nothing of the job is under way here."""
        return not self._effects and self._worker is None and self._compute is None

    @property
    def end(self) -> JobEnd:
        """How the job ended."""
        if self.machine.outcome is SaleOutcome.FAILED and not self.machine.paid:
            return JobEnd.UNPAID
        return _ENDS[self.machine.outcome or SaleOutcome.EXPIRED]

    def on(self, event: SaleEvent) -> None:
        """Take an event; the effects follow in the job's own task."""
        before = self.machine.phase
        for effect in self.machine.on(self._parts.clock(), event):
            if isinstance(effect, StopCompute):
                self._stop_compute()
            elif not self._is_refusal(effect) or len(self._effects) < _MAX_WAITING:
                self._effects.append(effect)
            if isinstance(effect, KeepSent):
                self._hooks.kept(self, sum(len(one.payload) for one in effect.messages))
        if self.machine.phase is not before:
            self._hooks.moved(self, before)
        self._report()
        self._begin_work()

    async def sent(self) -> None:
        """Return once its backend is not at work, and nothing of its result waits to be sent."""
        while running := {task for task in (self._compute, self._worker) if task is not None}:
            await asyncio.wait(running)
        if (peer := self._peers.get(self.peer_id)) is not None:
            await peer.outbox.until_below(self.job_id, 0)

    def stop(self) -> None:
        """Stop what is under way; the job is forgotten."""
        self._stop_compute()
        self._effects.clear()
        if self._worker is not None:
            self._worker.cancel()

    async def forget_stored(self) -> None:
        """Remove the job from disk, but for its line of history."""
        if self._stored:
            await self._parts.store.forget_sale(self.peer_id, self.job_id)

    async def _work(self) -> None:
        while self._effects:
            await self._carry_out(self._effects.popleft())

    def _begin_work(self) -> None:
        while self._effects and self._worker is None:
            effect = self._effects.popleft()
            if not self._carry_out_at_once(effect):
                self._effects.appendleft(effect)
                self._worker = self._parts.tasks.once("sale", self._work)
                self._worker.add_done_callback(self._worked)

    def _worked(self, worker: asyncio.Task[None]) -> None:
        self._worker = None
        self._done.set()
        if not worker.cancelled():
            # Behind an effect that failed as no part of this program should, the others follow.
            self._begin_work()

    def _carry_out_at_once(self, effect: SaleEffect | _RecordEnd) -> bool:
        """Carry out an effect that waits for nothing; False for others. Most are: a task for each would cost as much again."""
        parts = self._parts
        match effect:
            case Send():
                self._send(effect)
            case KeepSent():
                return not parts.store.keeps_jobs
            case _RecordEnd():
                return not self._stored
            case Compute():
                if self._hooks.may_run():
                    self._compute = parts.tasks.once("compute", partial(self._run, effect))
            case _:
                return False
        return True

    async def _carry_out(self, effect: SaleEffect | _RecordEnd) -> None:
        parts = self._parts
        if self._carry_out_at_once(effect):
            return
        match effect:
            case KeepSent(messages):
                await self._durable("keep_sent", lambda: parts.store.keep_sent(self.peer_id, self.job_id, messages))
            case MakeInvoice():
                await self._make_invoice(effect)
            case KeepSale():
                await self._keep(effect)
            case _RecordEnd():
                await self._durable("end_sale", self._end_stored)
            case CancelInvoice(payment_hash):
                await parts.tasks.persist("cancel_invoice", lambda: parts.invoices.cancel(payment_hash), LightningAway)
            case SettleInvoice():
                await self._settle()

    def _send(self, message: Send) -> None:
        peer = self._peers.get(self.peer_id)
        if peer is None:
            return
        if self._is_refusal(message):
            peer.answer(self.job_id, message)
        elif peer.put(self.job_id, [message]):
            self.handed_at = self._parts.clock()

    def _is_refusal(self, effect: SaleEffect) -> bool:
        """Return whether an effect refuses a message and does not end the job: a peer can ask for such errors without end."""
        is_error = isinstance(effect, Send) and MESSAGE_TYPES[effect.message_type][1] == "error"
        return is_error and self.machine.outcome is None

    async def _make_invoice(self, effect: MakeInvoice) -> None:
        self._preimage = os.urandom(_PREIMAGE_BYTES) if effect.hold else None
        try:
            made = await self._parts.invoices.make(
                description_hash=effect.description_hash,
                amount_msat=effect.price_msat,
                expiry_s=effect.expiry_s,
                hold_preimage=self._preimage,
            )
        except LightningAway as error:
            self._parts.log.problem("make_invoice", error)
            self.on(InvoiceFailed("the invoice could not be made"))
            return
        self.payment_hash, self.price_msat = made.payment_hash, effect.price_msat
        self._hooks.watch(made.payment_hash, self)
        self.on(InvoiceMade(made.payment_request, made.payment_hash))

    async def _keep(self, kept: KeepSale) -> None:
        sale = StoredSale(peer_id=self.peer_id, protocol=self.protocol, kept=kept, hold_preimage=self._preimage)
        self._stored = self._parts.store.keeps_jobs
        self.expires_at = kept.quote.quote_expiry
        await self._durable("keep_sale", lambda: self._parts.store.keep_sale(sale))

    async def _durable(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        await self._parts.tasks.persist(name, step, OSError)

    async def _settle(self) -> None:
        preimage, invoices = self._preimage, self._parts.invoices
        if preimage is None:
            raise AssertionError("a payment is held by a hold invoice")

        async def step() -> None:
            try:
                await invoices.settle(preimage)
            except LightningAway:
                if await invoices.state(sha256(preimage).digest()) is not InvoiceState.CANCELLED:
                    raise
                # The payment went back to the peer: nothing of the result may follow.
                self._effects.clear()
                self.on(InvoiceLost())
            else:
                self.on(InvoiceSettled())

        await self._parts.tasks.persist("settle_invoice", step, LightningAway)

    async def _run(self, effect: Compute) -> None:
        if self._parts.compute is None:
            raise AssertionError("a node that sells has a backend")
        try:
            result = self._parts.compute.run(
                job_id=self.job_id,
                task_kind=effect.task_kind,
                model=effect.model,
                body=effect.body,
                stream=effect.stream,
            )
            async with contextlib.aclosing(result) as chunks:
                async for data in chunks:
                    self.on(ComputeData(data))
                    await self._room()
        except ComputeError as error:
            self._ran(ComputeFailed(error.code, error.message))
        except Exception as error:  # noqa: BLE001 - a backend may raise anything: the peer has paid, and has to be told
            self._parts.log.problem("compute", error)
            self._ran(ComputeFailed(ErrorCode.RATE_LIMITED, "backend unavailable"))
        else:
            self._ran(ComputeEnded())

    def _ran(self, event: ComputeEnded | ComputeFailed) -> None:
        self._compute = None
        self.on(event)

    async def _room(self) -> None:
        """Return once what was produced is on its way: a slow peer slows its own job's backend."""
        while self._worker is not None:
            self._done.clear()
            await self._done.wait()
        peer = self._peers.get(self.peer_id)
        if peer is None or not peer.outbox.waiting_bytes(self.job_id):
            return
        # Where sending waits for nothing, it is sent in the next turn of the loop.
        await asyncio.sleep(0)
        if not peer.outbox.waiting_bytes(self.job_id):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._parts.delays.gather_s):
                await peer.outbox.until_below(self.job_id, 0)
        await peer.outbox.until_below(self.job_id, self._parts.bounds.window_bytes)

    def _stop_compute(self) -> None:
        if self._compute is not None:
            self._compute.cancel()
            self._compute = None

    def _report(self) -> None:
        machine = self.machine
        if machine.outcome is None:
            return
        if self._told is None:
            self._told = machine.outcome
            self._ended_at = int(self._parts.clock())
            self._parts.observer.job_ended(
                role=Role.SELLER, end=self.end, model=self.model, paid_msat=self.price_msat if machine.paid else 0
            )
        if self._recorded is not machine.paid:
            # Once more where the payment comes after the end.
            self._recorded = machine.paid
            self._effects.append(_RecordEnd())

    async def _end_stored(self) -> None:
        machine, end = self.machine, self.end
        await self._parts.store.end_sale(
            self.peer_id,
            self.job_id,
            outcome=end.value,
            price_msat=self.price_msat,
            paid=machine.paid,
            # Quotes that no peer pays are the rule: their lines would displace those of jobs that were run.
            line=machine.paid or end is JobEnd.UNPAID,
            model=self.model,
            ended_at=self._ended_at or int(self._parts.clock()),
        )
