"""What changed lately in the books, as the streams of events ask for it: purchases, balances and top-ups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from lcp_gateway.accounts.models import Balance, Topup
from lcp_gateway.purchase.records import PurchaseRecord


@dataclass(frozen=True, slots=True)
class Watched:
    """What one client watches: ``is_whole`` for everything, else the purchases of these accounts and of these keys.

    ``since`` bounds how far back purchases are looked at, by their last change. ``seen`` are changes that were told
    already, by job id in microseconds. ``open_topups`` are the top-ups that were open when they were last told.
    """

    since: datetime
    is_whole: bool = False
    account_ids: frozenset[str] = frozenset()
    key_ids: frozenset[str] = frozenset()
    seen: Mapping[bytes, int] = field(default_factory=dict)
    open_topups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Changes:
    """Purchases that changed, the oldest change first, without those seen; the balances; the top-ups that are open or were.

    ``is_cut`` says that more purchases changed than are returned, the newest ones.
    """

    purchases: Sequence[PurchaseRecord]
    is_cut: bool
    balances: Mapping[str, Balance]
    topups: Sequence[Topup]


class ChangeFeed(Protocol):
    """The books as the streams of events read them; every method raises ``DatabaseUnavailable``."""

    async def changes(self, watched: Watched, *, limit: int) -> Changes:
        """Return what changed, ``limit`` purchases at most."""
        ...
