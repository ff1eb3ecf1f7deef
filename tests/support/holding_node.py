"""Runs `lcp-gateway node` with a wallet that settles, fails and holds payments, as a route over other nodes does.

A payment's outcome depends on its hash alone, so that a run can be repeated. A payment goes on when its caller has gone.
"""

import asyncio
import enum
import sys

from lcp_gateway.cli import main
from lcp_gateway.node.events import EventKind
from lcp_gateway.node.jobs import Job, JobPayment
from lcp_gateway.node.status import failed_precondition
from lcp_gateway.node.wallets import Wallet
from tests.support.telling_node import tell_preimages

SOON_S = 0.02
LONGEST_HOLD_S = 2.5


class Fate(enum.Enum):
    SETTLES = enum.auto()
    HELD_THEN_SETTLES = enum.auto()
    HELD_THEN_FAILS = enum.auto()
    FAILS = enum.auto()


def fate_of(payment_hash: bytes) -> Fate:
    """Return a payment's outcome: of 256, 190 settle soon, 26 after a hold, 24 fail after one, 16 at once."""
    number = payment_hash[0]
    if number < 190:
        return Fate.SETTLES
    if number < 216:
        return Fate.HELD_THEN_SETTLES
    return Fate.HELD_THEN_FAILS if number < 240 else Fate.FAILS


def held_s(payment_hash: bytes) -> float:
    """Return how long a held payment is held."""
    return 0.2 + (LONGEST_HOLD_S - 0.2) * payment_hash[1] / 255


def hold_payments() -> None:
    pay = Wallet.pay

    async def settle_later(self: Wallet, job: Job) -> None:
        held = fate_of(job.payment_hash) is Fate.HELD_THEN_SETTLES
        await asyncio.sleep(held_s(job.payment_hash) if held else SOON_S)
        self._settle(job)

    async def fail_later(self: Wallet, job: Job) -> None:
        await asyncio.sleep(held_s(job.payment_hash))
        self.balance_msat += job.price_msat + job.fee_msat
        self._events.record_job(EventKind.UNPAID, job, "FAILURE_REASON_NO_ROUTE")

    async def held(self: Wallet, job: Job, *, no_route: bool = False) -> None:
        fate = fate_of(job.payment_hash)
        if job.payment is not JobPayment.NONE or fate is not Fate.HELD_THEN_FAILS:
            await pay(self, job, no_route=no_route or fate is Fate.FAILS)
            return
        job.fee_msat = self.fee_msat(job.price_msat)
        self.balance_msat -= job.price_msat + job.fee_msat
        job.payment = JobPayment.IN_FLIGHT
        self._events.record_job(EventKind.PAID, job)
        task = asyncio.create_task(fail_later(self, job))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.shield(task)
        raise failed_precondition("payment failed: FAILURE_REASON_NO_ROUTE")

    Wallet.pay = held
    Wallet._settle_later = settle_later


if __name__ == "__main__":
    tell_preimages()
    hold_payments()
    sys.exit(main())
