"""Runs `lcp-gateway node` with a wallet that settles, fails and holds payments, as a route over other nodes does.

A payment's outcome depends on its hash alone, so that a run can be repeated. A payment goes on when its caller has gone.
"""

import asyncio
import enum
import sys

from lcp_gateway.cli import main
from lcp_gateway.node.memory.payments import NO_ROUTE
from lcp_gateway.node.server import SimulatedLightning
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
    begin = SimulatedLightning.before_payment

    async def held(self, payer, invoice):
        fate = fate_of(invoice.payment_hash)
        reason = NO_ROUTE if fate is Fate.FAILS else await begin(self, payer, invoice)
        if reason is None:
            held = fate in {Fate.HELD_THEN_SETTLES, Fate.HELD_THEN_FAILS}
            await asyncio.sleep(held_s(invoice.payment_hash) if held else SOON_S)
        return NO_ROUTE if fate is Fate.HELD_THEN_FAILS else reason

    SimulatedLightning.before_payment = held


if __name__ == "__main__":
    tell_preimages()
    hold_payments()
    sys.exit(main())
