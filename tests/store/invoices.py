"""Top-ups for tests."""

import hashlib
from datetime import timedelta

from lcp_gateway.purchase.money import Msat
from tests.store.journals import NOW

HOUR = timedelta(hours=1)


def hash_of(number) -> bytes:
    return hashlib.sha256(f"top-up {number}".encode()).digest()


async def asked(topups, account_id, number, *, amount_msat=1_000, **changes):
    fields = {"expires_at": NOW + HOUR, "at": NOW, **changes}
    return await topups.create(
        account_id,
        payment_hash=hash_of(number),
        amount_msat=Msat(amount_msat),
        payment_request="lnbcrt1invoice",
        **fields,
    )
