"""/api/admin/overview: the operator's figures on one page: health, customers' money, unknown payments, today and this month."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from aiohttp import web

from lcp_gateway.accounts.repositories import LedgerRepository
from lcp_gateway.clock import utc_now
from lcp_gateway.http.fields import json_response, rfc3339, rfc3339_or_none
from lcp_gateway.http.queries import Query
from lcp_gateway.purchase.records import PurchaseBooks, UsageSums

_HELD_S: Final = 10.0
_SUMS: Final = (
    *("purchases", "undelivered", "settled_msat", "unknown_msat", "undelivered_msat"),
    *("charged_msat", "held_msat"),
)


@dataclass(frozen=True, slots=True)
class OverviewSources:
    """What the overview shows. ``books`` is None without a journal, ``ledger`` without accounts, ``lnd`` without an lnd.

    ``health`` returns the report of /readyz.
    """

    auth: str
    health: Callable[[], Awaitable[Mapping[str, object]]]
    books: PurchaseBooks | None
    ledger: LedgerRepository | None
    lnd: Callable[[], Mapping[str, object]] | None


class OverviewRoutes:
    """Serves the operator; the figures of the books are up to ten seconds old."""

    def __init__(
        self,
        sources: OverviewSources,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """``clock`` is monotonic, in seconds."""
        self._sources = sources
        self._clock = clock
        self._now = now
        self._taken_at = 0.0
        self._reading: asyncio.Task[dict[str, object]] | None = None

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /api/admin/overview: health, customers' balances, lnd, unknown payments, and the sums of day and month."""
        Query(request, ())
        reading = self._reading
        is_over = reading is not None and reading.done()
        if (
            reading is None
            or (is_over and (reading.cancelled() or reading.exception() is not None))
            or (is_over and self._clock() - self._taken_at > _HELD_S)
        ):
            self._taken_at = self._clock()
            reading = self._reading = asyncio.create_task(self._read())
        figures = await asyncio.shield(reading)
        lnd = None if self._sources.lnd is None else dict(self._sources.lnd())
        return json_response(
            {
                "object": "lcp.overview",
                "auth": self._sources.auth,
                "health": _health(await self._sources.health()),
                "lnd": lnd,
                "solvency": _solvency(figures["customers"], lnd),
                **figures,
            }
        )

    async def _read(self) -> dict[str, object]:
        now = self._now()
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        sources = self._sources
        figures: dict[str, object] = {"as_of": rfc3339(now), "customers": None, "refunds_withheld": None}
        figures |= {"open": None, "today": None, "month": None}
        if (ledger := sources.ledger) is not None:
            totals = await ledger.totals()
            figures["customers"] = {
                "accounts": totals.accounts,
                "balance_msat": totals.balance_msat,
                "held_msat": totals.held_msat,
            }
        if (books := sources.books) is not None:
            outstanding = await books.outstanding()
            figures["open"] = {
                "unknown": outstanding.unknown,
                "unknown_msat": outstanding.unknown_msat,
                "oldest_at": rfc3339_or_none(outstanding.oldest_at),
                "paying": outstanding.paying,
                "paying_msat": outstanding.paying_msat,
            }
            sells = sources.ledger is not None
            figures["today"] = _sums(await books.total(midnight), sells=sells)
            figures["month"] = _sums(await books.total(midnight.replace(day=1)), sells=sells)
            if sells:
                count, amount_msat = await books.withheld()
                figures["refunds_withheld"] = {"count": count, "amount_msat": amount_msat}
        return figures


def _sums(sums: UsageSums, *, sells: bool) -> dict[str, int | None]:
    found: dict[str, int | None] = {name: getattr(sums, name) for name in _SUMS}
    # What customers paid, without what their purchases cost, fees and losses included.
    found["margin_msat"] = sums.charged_msat - sums.sold_msat if sells else None
    return found


def _health(report: Mapping[str, object]) -> dict[str, object]:
    return {
        "status": report["status"],
        "reasons": report["reasons"],
        "tasks": report.get("tasks", {}),
        "jobs_in_flight": report["jobs_in_flight"],
    }


def _solvency(customers: object, lnd: Mapping[str, object] | None) -> dict[str, object] | None:
    """Return whether the node could pay out all balances; not known, rather than zero, where no lnd answers."""
    if not isinstance(customers, dict):
        return None
    owed_msat = customers["balance_msat"]
    local_msat = None if lnd is None else lnd.get("local_msat")
    is_known = isinstance(local_msat, int)
    return {
        "known": is_known,
        "owed_msat": owed_msat,
        "local_balance_msat": local_msat if is_known else None,
        "is_solvent": local_msat >= owed_msat if isinstance(local_msat, int) else None,
    }
