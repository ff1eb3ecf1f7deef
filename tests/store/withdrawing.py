"""Withdrawals for tests of the store."""

import hashlib
from datetime import timedelta

from lcp_gateway.accounts.withdrawals import Liquidity, NewWithdrawal, WithdrawalRules
from lcp_gateway.purchase.money import Msat
from tests.store.journals import NOW

HOUR = timedelta(hours=1)
NODE = "03" + "cd" * 32
RULES = WithdrawalRules(enabled=True, min_msat=1, most_open=1_000)
RICH = Liquidity(Msat(10**12), NOW)


def invoice_hash(number) -> bytes:
    return hashlib.sha256(f"withdrawal {number}".encode()).digest()


def new(account_id, number, amount_msat=1_000, **changes) -> NewWithdrawal:
    """What would be written for an invoice; it differs in its hash from those of other numbers."""
    fields = {
        "key_id": "key_1",
        "payment_hash": invoice_hash(number),
        "payment_request": "lnbcrt1invoice",
        "fee_limit_msat": Msat(100),
        "names_amount": True,
        "expires_at": NOW + HOUR,
        "node_id": NODE,
        **changes,
    }
    return NewWithdrawal(account_id=account_id, amount_msat=Msat(amount_msat), **fields)
