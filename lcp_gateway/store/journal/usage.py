"""Usage: purchases added up by period and by model, key or provider, for an account, a key or the whole gateway."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Connection, TextClause, and_, bindparam, case, func, literal, or_, select, text

from lcp_gateway.purchase.money import Msat, Period
from lcp_gateway.purchase.records import GroupBy, KeyUse, UsageReport, UsageSums
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.schema import HAS_KEY, OPEN_STATES, budget_spend, purchases
from lcp_gateway.store.database.times import (
    MICROS_PER_DAY,
    MICROS_PER_HOUR,
    from_micros,
    from_micros_or_none,
    next_period_start,
    period_start,
    to_micros,
)
from lcp_gateway.store.journal.budgets import scope_of

_OPEN = tuple(state.value for state in OPEN_STATES)
_COLUMNS: Final = {GroupBy.MODEL: purchases.c.model, GroupBy.KEY: purchases.c.key_id, GroupBy.PEER: purchases.c.peer_id}
_COST = purchases.c.price_msat + func.coalesce(purchases.c.fee_msat, purchases.c.fee_cap_msat)
_IS_OPEN = purchases.c.state.in_(_OPEN)
_IS_UNDELIVERED = purchases.c.state == State.UNDELIVERED.value
_IS_SOLD = purchases.c.account_id.is_not(None)
_PAID = purchases.c.state != State.NOT_PAID.value
# A row of an earlier gateway, and one that no customer is charged for, has no charge.
_CHARGE = func.coalesce(purchases.c.charge_msat, 0)
_IS_REFUNDED = and_(_IS_UNDELIVERED, func.coalesce(purchases.c.refund_undelivered, False))
_GROUP, _STARTS = "usage_group", "usage_starts"
_BY_MICROS = {Period.HOUR: MICROS_PER_HOUR, Period.DAY: MICROS_PER_DAY, Period.MONTH: MICROS_PER_DAY}


def _sum(condition: ColumnElement[bool], amount: ColumnElement[int]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, amount), else_=0)), 0)


_SUMS = (
    func.count(),
    _sum(_IS_UNDELIVERED, literal(1)),
    _sum(~_IS_OPEN, _COST),
    _sum(_IS_OPEN, _COST),
    _sum(_IS_UNDELIVERED, _COST),
    _sum(and_(~_IS_OPEN, ~_IS_REFUNDED), _CHARGE),
    _sum(_IS_OPEN, _CHARGE),
    _sum(and_(~_IS_OPEN, _IS_SOLD), _COST),
)
"""In the order of the fields of ``UsageSums``."""


def read_usage(
    connection: Connection,
    by: GroupBy,
    period: Period,
    conditions: Iterable[ColumnElement[bool] | TextClause],
    *,
    most: int,
    by_charge: bool,
) -> UsageReport:
    """Return usage by period and the ``most`` largest groups; the others are one group, so that the result is bounded.

    ``by_charge`` ranks the groups by their charges, rather than by their cost.
    """
    chosen = (*conditions, _PAID)
    column = _COLUMNS[by]
    rank = func.sum(_CHARGE if by_charge else _COST)
    largest = connection.execute(
        select(column).where(*chosen).group_by(column).order_by(rank.desc(), column).limit(most + 1)
    ).scalars()
    groups = [str(name) for name in largest]
    is_cut = len(groups) > most
    del groups[most:]
    # Months differ in length, which no two databases compute alike: they are added up from days.
    slot = _BY_MICROS[period]
    starts = (purchases.c.paying_at - purchases.c.paying_at % slot).label(_STARTS)
    named = case((column.in_(groups), column), else_=None) if is_cut else column
    # By their labels: a database does not see that two equal expressions with parameters are one.
    query = select(starts, named.label(_GROUP), *_SUMS).where(*chosen).group_by(text(_STARTS), text(_GROUP))
    totals = UsageSums()
    of_groups: dict[str | None, UsageSums] = {name: UsageSums() for name in groups}
    of_periods: dict[tuple[int, str | None], UsageSums] = {}
    for start, group, *numbers in connection.execute(query):
        # Sums of 64-bit numbers come as decimals from PostgreSQL.
        sums = UsageSums(*map(int, numbers))
        totals.add(sums)
        of_groups.setdefault(group, UsageSums()).add(sums)
        of_periods.setdefault((int(period_start(period, start)), group), UsageSums()).add(sums)
    return UsageReport(
        totals,
        list(of_groups.items()),
        [
            (from_micros(start), group, sums)
            for (start, group), sums in sorted(of_periods.items(), key=lambda item: (item[0][0], item[0][1] or ""))
        ],
    )


def read_total(connection: Connection, since: datetime) -> UsageSums:
    """Return the sums of all purchases since a time."""
    query = select(*_SUMS).where(_PAID, purchases.c.paying_at >= to_micros(since))
    return UsageSums(*map(int, connection.execute(query).one()))


_LAST_USED = (
    select(purchases.c.paying_at)
    .where(HAS_KEY, purchases.c.key_id == bindparam("of_key"))
    .order_by(purchases.c.paying_at.desc())
    .limit(1)
)


def read_key_use(connection: Connection, key_ids: Sequence[str], at: datetime) -> dict[str, KeyUse]:
    """Return the use of each key: one look-up in an index for each, which no history slows down."""
    micros = to_micros(at)
    starts = {period: period_start(period, micros) for period in Period}
    scopes = {scope_of(key_id): key_id for key_id in key_ids}
    spent: dict[str, dict[Period, Msat]] = {key_id: dict.fromkeys(Period, Msat(0)) for key_id in key_ids}
    counters = budget_spend.c
    if scopes:
        found = connection.execute(
            select(counters.scope, counters.period, counters.spent_msat).where(
                counters.scope.in_(scopes),
                or_(*(and_(counters.period == p.value, counters.starts_at == start) for p, start in starts.items())),
            )
        )
        for scope, period, spent_msat in found:
            spent[scopes[scope]][Period(period)] = Msat(spent_msat)
    resets_at = {period: from_micros(next_period_start(period, micros)) for period in Period}
    return {
        key_id: KeyUse(
            from_micros_or_none(connection.execute(_LAST_USED, {"of_key": key_id}).scalar()), spent[key_id], resets_at
        )
        for key_id in key_ids
    }
