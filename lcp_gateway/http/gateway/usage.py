"""/api/usage and /api/budgets: what was spent by period and group, and what is left of each budget."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from aiohttp import web

from lcp_gateway.accounts.callers import Caller, View, view_of
from lcp_gateway.accounts.documents import csv_line
from lcp_gateway.accounts.models import KeyRecord
from lcp_gateway.accounts.repositories import KeyRepository
from lcp_gateway.clock import utc_now
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import bad_request
from lcp_gateway.http.fields import json_response, list_response, rfc3339, rfc3339_or_none
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.gateway.purchases import (
    ACCOUNT,
    FORMAT,
    KEY,
    MODEL,
    PEER,
    Format,
    KeyNames,
    csv_response,
    need_books,
    read_filter,
)
from lcp_gateway.http.queries import SINCE, UNTIL, Query, choice
from lcp_gateway.purchase.money import Budget, Msat, Period
from lcp_gateway.purchase.records import BudgetState, GroupBy, PurchaseBooks, PurchaseFilter, UsageReport, UsageSums

USAGE_QUERY: Final = (
    choice("by", "Grouped by this; peer is for operators.", GroupBy, GroupBy.MODEL),
    choice("period", "Added up by this calendar period, in UTC.", Period, Period.DAY),
    *(SINCE, UNTIL, MODEL, KEY, PEER, ACCOUNT, FORMAT),
)
CUSTOMER_SUMS: Final = ("purchases", "undelivered", "charged_msat", "held_msat")
"""The sums that a customer sees."""
ALL_SUMS: Final = (*CUSTOMER_SUMS, "settled_msat", "unknown_msat", "undelivered_msat")
"""The sums that the operator sees."""

_MOST_GROUPS: Final = 12
_MOST_PERIODS: Final = 1_000
_USUAL_AGE: Final = {
    Period.HOUR: timedelta(hours=48),
    Period.DAY: timedelta(days=30),
    Period.MONTH: timedelta(days=365),
}
_SHORTEST: Final = {Period.HOUR: timedelta(hours=1), Period.DAY: timedelta(days=1), Period.MONTH: timedelta(days=28)}
_HELD_S: Final = 10.0
_MOST_HELD: Final = 64
_WARNING_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class _Held:
    taken_at: float
    as_of: datetime
    report: "asyncio.Task[UsageReport]"


@dataclass(slots=True, eq=False)
class UsageRoutes:
    """Serves every caller the sums of the purchases that it may see.

    ``books`` is None without a journal; ``clock`` is monotonic, in seconds.
    """

    books: PurchaseBooks | None
    _: KW_ONLY
    key_names: KeyNames
    api_limits: ApiLimits
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = utc_now
    _held: OrderedDict[tuple[object, ...], _Held] = field(init=False, default_factory=OrderedDict)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /api/usage: purchases added up by period and group; the twelve largest groups, and all others."""
        books, view = need_books(self.books), view_of(request[CONTEXT].caller)
        query = Query(request, USAGE_QUERY)
        by = query.choice("by", GroupBy, GroupBy.MODEL)
        if by is GroupBy.PEER and not view.sees_cost:
            raise bad_request("peer is for operators", "by", "invalid_value")
        period = query.choice("period", Period, Period.DAY)
        form = query.choice("format", Format, Format.JSON)
        now = self.now()
        which = read_filter(query, view)
        if which is None:
            which, report, as_of = PurchaseFilter(since=now), UsageReport(UsageSums(), [], []), now
        else:
            which = _bounded(which, period, now)
            async with self.api_limits.turn(request):
                report, as_of = await self._report(books, by, period, which, view)
        names = {}
        if by is GroupBy.KEY:
            names = dict(await self.key_names({group for group, _ in report.groups if group}))
        if form is Format.CSV:
            return await _csv(request, by, report, view, names)
        return json_response(
            {
                "object": "lcp.usage",
                "by": by.value,
                "period": period.value,
                "since": rfc3339_or_none(which.since),
                "until": rfc3339_or_none(which.until),
                "as_of": rfc3339(as_of),
                "totals": _sums(report.totals, view),
                "groups": [{**_group(group, names), **_sums(sums, view)} for group, sums in report.groups],
                "data": [
                    {"starts_at": rfc3339(start), **_group(group, names), **_sums(sums, view)}
                    for start, group, sums in report.data
                ],
            }
        )

    async def _report(
        self, books: PurchaseBooks, by: GroupBy, period: Period, which: PurchaseFilter, view: View
    ) -> tuple[UsageReport, datetime]:
        """Read the sums; those of the whole gateway, which take long, are held for some seconds and read once at a time."""
        if not view.is_whole or which.account_id is not None or which.key_id is not None:
            report = await books.usage(by, period, which, most=_MOST_GROUPS, by_charge=not view.sees_cost)
            return report, self.now()
        name = (by, period, which.model, which.peer_id, which.since, which.until)
        held = self._held.get(name)
        failed = held is not None and held.report.done() and (held.report.cancelled() or held.report.exception())
        if held is None or failed or (held.report.done() and self.clock() - held.taken_at > _HELD_S):
            reading = asyncio.ensure_future(books.usage(by, period, which, most=_MOST_GROUPS, by_charge=False))
            held = self._held[name] = _Held(self.clock(), self.now(), reading)
            self._held.move_to_end(name)
            if len(self._held) > _MOST_HELD:
                self._held.popitem(last=False)
        # A client that leaves must not take the sums from the others that wait for them.
        return await asyncio.shield(held.report), held.as_of


def _bounded(which: PurchaseFilter, period: Period, now: datetime) -> PurchaseFilter:
    """Return the filter with its beginning, and refuse one of too many periods."""
    since, until = which.since, which.until
    if since is None:
        since = _start_of(period, (until or now) - _USUAL_AGE[period])
    if ((until or now) - since) / _SHORTEST[period] > _MOST_PERIODS:
        raise bad_request(f"more than {_MOST_PERIODS} periods: since must be later", "since", "invalid_value")
    return replace(which, since=since)


def _start_of(period: Period, at: datetime) -> datetime:
    start = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if period is not Period.HOUR:
        start = start.replace(hour=0)
    return start.replace(day=1) if period is Period.MONTH else start


def _sums(sums: UsageSums, view: View) -> dict[str, int]:
    return {name: getattr(sums, name) for name in (ALL_SUMS if view.sees_cost else CUSTOMER_SUMS)}


def _group(group: str | None, names: dict[str, str]) -> dict[str, str | None]:
    return {"id": group, "name": "other" if group is None else names.get(group, group or "-")}


async def _csv(
    request: web.Request, by: GroupBy, report: UsageReport, view: View, names: dict[str, str]
) -> web.StreamResponse:
    response = csv_response(request, f"usage-by-{by.value}")
    await response.prepare(request)
    fields = ALL_SUMS if view.sees_cost else CUSTOMER_SUMS
    lines = [csv_line(("starts_at", by.value, "name", *fields))]
    lines += [
        csv_line((rfc3339(start), *_group(group, names).values(), *_sums(sums, view).values()))
        for start, group, sums in report.data
    ]
    await response.write(b"".join(lines))
    await response.write_eof()
    return response


BudgetsFor = Callable[[str], Sequence[Budget]]
"""Returns the budgets of the settings for a key: the gateway's, and those of every key."""


@dataclass(frozen=True, slots=True)
class BudgetRoutes:
    """Serves every caller the budgets that it is bound by and may know.

    ``keys`` is None without accounts.
    """

    books: PurchaseBooks | None
    _: KW_ONLY
    budgets_for: BudgetsFor
    keys: KeyRepository | None
    now: Callable[[], datetime] = utc_now

    async def list(self, request: web.Request) -> web.Response:
        """Serve GET /api/budgets: the budgets, what is spent of them, and when they begin anew."""
        Query(request, ())
        books, caller = need_books(self.books), request[CONTEXT].caller
        view = view_of(caller)
        budgets: list[tuple[Budget, str | None]] = []
        if caller.account_id is None or view.is_whole:
            budgets += [(budget, None) for budget in self.budgets_for(caller.key_id)]
        else:
            for record in await self._records(caller, view):
                budgets += [(budget, record.name) for budget in self._of_key(record)]
        found = await books.budgets([budget for budget, _ in budgets], self.now())
        return list_response((_budget(state, name) for state, (_, name) in zip(found, budgets, strict=True)), None)

    async def _records(self, caller: Caller, view: View) -> Sequence[KeyRecord]:
        if self.keys is None or caller.account_id is None:
            return ()
        if view.key_id is not None:
            record = await self.keys.get(view.key_id)
            return () if record is None else (record,)
        page = await self.keys.page(caller.account_id, limit=_MOST_PERIODS)
        return [record for record in page.items if record.revoked_at is None]

    def _of_key(self, record: KeyRecord) -> Sequence[Budget]:
        """Return the budgets of a customer's key: its own, and those that the settings give every key."""
        rules = record.rules
        own = {
            Period.HOUR: rules.budget_hour_msat,
            Period.DAY: rules.budget_day_msat,
            Period.MONTH: rules.budget_month_msat,
        }
        found = {budget.period: budget for budget in self.budgets_for(record.id) if budget.key_id is not None}
        for period, limit_msat in own.items():
            usual = found.get(period)
            if limit_msat and (usual is None or limit_msat < usual.limit_msat):
                found[period] = Budget(period, Msat(limit_msat), record.id)
        return [found[period] for period in Period if period in found]


def _budget(state: BudgetState, key_name: str | None) -> dict[str, object]:
    budget = state.budget
    return {
        "object": "lcp.budget",
        "scope": "gateway" if budget.key_id is None else "key",
        "key_id": budget.key_id,
        "key_name": key_name,
        "period": budget.period.value,
        "limit_msat": budget.limit_msat,
        "spent_msat": state.spent_msat,
        "left_msat": state.left_msat,
        "starts_at": rfc3339(state.starts_at),
        "resets_at": rfc3339(state.ends_at),
        "is_warning": state.spent_msat >= _WARNING_SHARE * budget.limit_msat,
    }
