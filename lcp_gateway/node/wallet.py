"""A wallet whose payments are simulated: a balance, a route's fee and time, and the ways in which paying fails."""

import asyncio

import grpc

from lcp_gateway.node.config import WalletConfig
from lcp_gateway.node.events import EventKind
from lcp_gateway.node.jobs import Job, JobLog, PaymentState
from lcp_gateway.node.status import CallError, failed_precondition

MAX_FEE_MSAT = 10_000_000
"""The daemon's fixed limit on routing fees, 10,000 sat."""


class Wallet:
    """Pays jobs' invoices, each at most once."""

    def __init__(self, config: WalletConfig, log: JobLog) -> None:
        self._config = config
        self._log = log
        self._under_way: set[asyncio.Task[None]] = set()
        self.balance_msat = config.balance_msat
        self.spent_msat = 0
        self.fees_msat = 0
        self.payments = 0
        self.received_msat = 0

    def receive(self, amount_msat: int) -> None:
        """Take in what somebody paid to one of the node's invoices."""
        self.balance_msat += amount_msat
        self.received_msat += amount_msat

    async def pay(self, job: Job, *, no_route: bool = False) -> None:
        """Pay a job's invoice and wait for the preimage. The payment goes on when the caller does not wait.

        Raises:
            CallError: it was paid already or is being paid (UNAVAILABLE), or cannot be (FAILED_PRECONDITION).
        """
        if job.payment is PaymentState.SETTLED:
            raise CallError(grpc.StatusCode.UNAVAILABLE, "payment failed: invoice is already paid")
        if job.payment is PaymentState.IN_FLIGHT:
            raise CallError(grpc.StatusCode.UNAVAILABLE, "payment failed: payment is in transition")
        fee = self.fee_msat(job.price_msat)
        if no_route or job.price_msat < self._config.min_htlc_msat or fee > MAX_FEE_MSAT:
            self._refuse(job, "FAILURE_REASON_NO_ROUTE")
        if job.price_msat + fee > self.balance_msat:
            self._refuse(job, "FAILURE_REASON_INSUFFICIENT_BALANCE")
        self.balance_msat -= job.price_msat + fee
        job.payment = PaymentState.IN_FLIGHT
        job.fee_msat = fee
        self._log.record(EventKind.PAID, job)
        if self._config.payment_latency_s > 0:
            task = asyncio.create_task(self._settle_later(job))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            await asyncio.shield(task)
        else:
            self._settle(job)

    def fee_msat(self, amount_msat: int) -> int:
        """What a route for an amount costs."""
        return self._config.fee_base_msat + amount_msat * self._config.fee_ppm // 1_000_000

    async def close(self) -> None:
        """Abandon what is in flight, as a daemon that is stopped does."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _refuse(self, job: Job, reason: str) -> None:
        self._log.record(EventKind.UNPAID, job, reason)
        raise failed_precondition(f"payment failed: {reason}")

    async def _settle_later(self, job: Job) -> None:
        await asyncio.sleep(self._config.payment_latency_s)
        self._settle(job)

    def _settle(self, job: Job) -> None:
        job.payment = PaymentState.SETTLED
        self.spent_msat += job.price_msat
        self.fees_msat += job.fee_msat
        self.payments += 1
        self._log.record(EventKind.SETTLED, job)
