"""Queries of the journal: purchases, spending, usage, open payments, peers, budgets. Reads only."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    TextClause,
    and_,
    bindparam,
    case,
    func,
    literal,
    not_,
    or_,
    select,
    text,
)

from lcp_gateway.purchase.money import Budget, Msat, Period, Refund
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.outcome import RULINGS
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.records import (
    BudgetState,
    GroupBy,
    KeyUse,
    Outstanding,
    PeerTotals,
    PurchaseCursor,
    PurchaseFilter,
    PurchasePage,
    PurchaseRecord,
    Spend,
    UsageReport,
    UsageSums,
)
from lcp_gateway.purchase.states import State
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import HAS_KEY, OPEN_STATES, budget_spend, purchases
from lcp_gateway.store.database.statements import AnySelect, fetch, fetch_one, fetch_page, follows, newest_first
from lcp_gateway.store.database.times import (
    MICROS_PER_DAY,
    MICROS_PER_HOUR,
    from_micros,
    from_micros_or_none,
    next_period_start,
    period_start,
    to_micros,
)
from lcp_gateway.store.journal.budgets import counter_of, scope_of
from lcp_gateway.store.journal.purchases import record_of

_JOB_DIGITS = 64
_LAST_PURCHASES = 10_000

_COLUMNS: Final = {GroupBy.MODEL: purchases.c.model, GroupBy.KEY: purchases.c.key_id, GroupBy.PEER: purchases.c.peer_id}
_COST = purchases.c.price_msat + func.coalesce(purchases.c.fee_msat, purchases.c.fee_cap_msat)
_IS_OPEN = purchases.c.state.in_([state.value for state in OPEN_STATES])
_IS_UNDELIVERED = purchases.c.state == State.UNDELIVERED.value
_IS_SOLD = purchases.c.account_id.is_not(None)
_WAS_PAID = purchases.c.state != State.NOT_PAID.value
# A row of an earlier gateway, and one that no customer is charged for, has no charge.
_CHARGE = func.coalesce(purchases.c.charge_msat, 0)
_IS_REFUNDED = and_(_IS_UNDELIVERED, func.coalesce(purchases.c.refund_undelivered, False))
_GROUP, _STARTS = "usage_group", "usage_starts"
_BY_MICROS = {Period.HOUR: MICROS_PER_HOUR, Period.DAY: MICROS_PER_DAY, Period.MONTH: MICROS_PER_DAY}
_IS_LOST = and_(
    _IS_UNDELIVERED,
    # A purchase with an unknown ending counts.
    not_(
        or_(
            *(
                and_(
                    func.coalesce(purchases.c.received, "") == received.value,
                    func.coalesce(purchases.c.ended_by, "") == ended_by.value,
                )
                for received, row in RULINGS.items()
                for ended_by, ruling in row.items()
                if not ruling.blames_provider
            )
        )
    ),
)


def _sum_where(condition: ColumnElement[bool], amount: ColumnElement[int] = _COST) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, amount), else_=0)), 0)


_SUMS = (
    func.count(),
    _sum_where(_IS_UNDELIVERED, literal(1)),
    _sum_where(~_IS_OPEN),
    _sum_where(_IS_OPEN),
    _sum_where(_IS_UNDELIVERED),
    _sum_where(and_(~_IS_OPEN, ~_IS_REFUNDED), _CHARGE),
    _sum_where(_IS_OPEN, _CHARGE),
    _sum_where(and_(~_IS_OPEN, _IS_SOLD)),
)
"""In the order of the fields of ``UsageSums``."""

_LAST_USED = (
    select(purchases.c.paying_at)
    .where(HAS_KEY, purchases.c.key_id == bindparam("of_key"))
    .order_by(purchases.c.paying_at.desc())
    .limit(1)
)


class Books:
    """Every method reads one consistent view of the durable journal, and raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def purchase(self, job_id: bytes) -> PurchaseRecord | None:
        """Return a purchase, or None."""
        return await fetch_one(self._database, select(purchases).where(purchases.c.job_id == job_id), record_of)

    async def beginning_with(self, prefix: str) -> Sequence[PurchaseRecord]:
        """Return purchases whose job id begins with these hexadecimal digits; two where there are more."""
        least, most = (bytes.fromhex(prefix.ljust(_JOB_DIGITS, filling)) for filling in "0f")
        return await self._records(
            select(purchases).where(purchases.c.job_id >= least, purchases.c.job_id <= most).limit(2)
        )

    async def page(
        self, which: PurchaseFilter, *, limit: int = 100, after: PurchaseCursor | None = None
    ) -> PurchasePage:
        """Return purchases, the newest first."""
        query = select(purchases).where(*_conditions(which))
        time, key = purchases.c.paying_at, purchases.c.job_id
        if after is not None:
            query = query.where(follows(time, key, to_micros(after.paying_at), after.job_id))
        query = newest_first(query, time, key)
        found = await fetch_page(self._database, query, record_of, limit, lambda last: last.job_id.hex())
        if found.after is None:
            return PurchasePage(found.items, None)
        last = found.items[-1]
        return PurchasePage(found.items, PurchaseCursor(last.paying_at, last.job_id))

    async def unknowns(self, *, limit: int = 100) -> Sequence[PurchaseRecord]:
        """Return the unknown purchases, the oldest first."""
        return await self._records(
            select(purchases)
            .where(purchases.c.state == State.UNKNOWN.value)
            .order_by(purchases.c.paying_at, purchases.c.job_id)
            .limit(limit)
        )

    async def spend(self, period: Period, which: PurchaseFilter) -> Sequence[Spend]:
        """Return spending by period, model, peer and key, the oldest period first. Unpaid purchases are left out."""
        # Months differ in length, which no two databases compute alike: they are added up from days.
        slot = MICROS_PER_HOUR if period is Period.HOUR else MICROS_PER_DAY
        starts = (purchases.c.paying_at - purchases.c.paying_at % slot).label("starts")
        keys = (starts, purchases.c.model, purchases.c.peer_id, purchases.c.key_id)
        sums_of = (func.count(), _sum_where(~_IS_OPEN), _sum_where(_IS_OPEN), _sum_where(_IS_UNDELIVERED))
        query = select(*keys, *sums_of).where(*_conditions(which), _WAS_PAID).group_by(*keys)

        def work(connection: Connection) -> list[Spend]:
            sums: dict[tuple[int, str, str, str], list[int]] = {}
            for start, model, peer_id, key_id, *numbers in connection.execute(query):
                key = (int(period_start(period, start)), model, peer_id, key_id)
                total = sums.setdefault(key, [0] * len(numbers))
                # Sums of 64-bit numbers come as decimals from PostgreSQL.
                total[:] = (had + int(more) for had, more in zip(total, numbers, strict=True))
            return [
                Spend(from_micros(start), model, peer_id, key_id, count, *map(Msat, amounts))
                for (start, model, peer_id, key_id), (count, *amounts) in sorted(sums.items())
            ]

        return await self._database.read(work)

    async def usage(
        self, by: GroupBy, period: Period, which: PurchaseFilter, *, most: int, by_charge: bool
    ) -> UsageReport:
        """Return usage by period and the ``most`` largest groups, by their charges or by their cost."""
        conditions = tuple(_conditions(which))
        return await self._database.read(
            lambda connection: _read_usage(connection, by, period, conditions, most=most, by_charge=by_charge)
        )

    async def total(self, since: datetime) -> UsageSums:
        """Return the sums of all purchases since a time."""
        query = select(*_SUMS).where(_WAS_PAID, purchases.c.paying_at >= to_micros(since))
        return await self._database.read(lambda connection: UsageSums(*map(int, connection.execute(query).one())))

    async def key_use(self, key_ids: Sequence[str], at: datetime) -> Mapping[str, KeyUse]:
        """Return the use of each key at a time."""
        return await self._database.read(lambda connection: _read_key_use(connection, key_ids, at))

    async def outstanding(self) -> Outstanding:
        """Return the sums of the open purchases."""
        query = (
            select(purchases.c.state, func.count(), func.sum(_COST), func.min(purchases.c.paying_at))
            .where(_IS_OPEN)
            .group_by(purchases.c.state)
        )

        def work(connection: Connection) -> Outstanding:
            rows = {state: rest for state, *rest in connection.execute(query)}
            unknown, unknown_msat, oldest = rows.get(State.UNKNOWN.value, (0, 0, None))
            paying, paying_msat, _ = rows.get(State.PAYING.value, (0, 0, None))
            return Outstanding(
                unknown, Msat(int(unknown_msat)), from_micros_or_none(oldest), paying, Msat(int(paying_msat))
            )

        return await self._database.read(work)

    async def peers(self, *, since: datetime | None = None) -> Sequence[PeerTotals]:
        """Return the totals of each peer, by its id. Settled purchases that are still being delivered are left out."""
        columns = (
            _count(State.DELIVERED),
            _sum_where(purchases.c.state == State.DELIVERED.value),
            _count(State.UNDELIVERED),
            _sum_where(_IS_UNDELIVERED),
            _count(State.NOT_PAID),
            _count(State.UNKNOWN),
            _sum_where(purchases.c.state == State.UNKNOWN.value),
            _sum_where(_IS_LOST),
        )
        query = (
            select(purchases.c.peer_id, *columns)
            .where(*_conditions(PurchaseFilter(since=since)))
            .group_by(purchases.c.peer_id)
            .order_by(purchases.c.peer_id)
        )

        def work(connection: Connection) -> list[PeerTotals]:
            return [
                # Sums of 64-bit numbers come as decimals from PostgreSQL.
                PeerTotals(peer_id, *(Msat(int(number)) for number in numbers))
                for peer_id, *numbers in connection.execute(query)
            ]

        return await self._database.read(work)

    async def models_of_peers(self, protocol_version: int) -> Sequence[tuple[str, TaskKind, str]]:
        """Return which peers of a version of the protocol delivered which kind of task with which model, lately.

        The last purchases are read, not all of them.
        """
        columns = (purchases.c.peer_id, purchases.c.task_kind, purchases.c.model)
        conditions = (*columns, purchases.c.protocol_version, purchases.c.state, purchases.c.kind)
        last = select(*conditions).order_by(purchases.c.paying_at.desc()).limit(_LAST_PURCHASES).subquery()
        query = (
            select(last.c.peer_id, last.c.task_kind, last.c.model)
            .where(
                last.c.protocol_version == protocol_version,
                last.c.state == State.DELIVERED.value,
                last.c.kind == ProviderSource.LCP.value,
            )
            .distinct()
        )

        def work(connection: Connection) -> list[tuple[str, TaskKind, str]]:
            return [(peer_id, TaskKind(kind), model) for peer_id, kind, model in connection.execute(query)]

        return await self._database.read(work)

    async def withheld(self) -> tuple[int, Msat]:
        """Return how many charges wait for the operator's decision, and their sum."""
        query = select(func.count(), func.coalesce(func.sum(purchases.c.charge_msat), 0)).where(
            purchases.c.refund.is_not(None), purchases.c.refund == Refund.WITHHELD.value
        )

        def work(connection: Connection) -> tuple[int, Msat]:
            count, amount_msat = connection.execute(query).one()
            return count, Msat(int(amount_msat))

        return await self._database.read(work)

    async def budgets(self, budgets: Sequence[Budget], at: datetime) -> Sequence[BudgetState]:
        """Return the amounts spent and left of each budget at a time, in the order of the budgets."""
        micros = to_micros(at)

        def work(connection: Connection) -> list[BudgetState]:
            return [_budget_state(connection, budget, micros) for budget in budgets]

        return await self._database.read(work)

    async def _records(self, query: AnySelect) -> list[PurchaseRecord]:
        return await fetch(self._database, query, record_of)


def _budget_state(connection: Connection, budget: Budget, micros: int) -> BudgetState:
    counter = counter_of(budget, micros)
    spent = connection.execute(
        select(budget_spend.c.spent_msat).where(
            budget_spend.c.scope == counter.scope,
            budget_spend.c.starts_at == counter.starts_at,
            budget_spend.c.period == counter.period,
        )
    ).scalar()
    spent_msat = Msat(spent or 0)
    return BudgetState(
        budget,
        spent_msat,
        Msat(max(0, budget.limit_msat - spent_msat)),
        from_micros(counter.starts_at),
        from_micros(next_period_start(budget.period, micros)),
    )


def _read_usage(
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
    chosen = (*conditions, _WAS_PAID)
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


def _read_key_use(connection: Connection, key_ids: Sequence[str], at: datetime) -> dict[str, KeyUse]:
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


def _count(state: State) -> ColumnElement[int]:
    return func.count(case((purchases.c.state == state.value, 1)))


def _conditions(which: PurchaseFilter) -> Iterator[ColumnElement[bool] | TextClause]:
    if which.states is not None:
        yield purchases.c.state.in_([state.value for state in which.states])
    if which.key_id:
        # Stated so that the index of keys is used.
        yield HAS_KEY
    for name in ("model", "peer_id", "key_id", "account_id"):
        if (value := getattr(which, name)) is not None:
            yield purchases.c[name] == value
    if which.since is not None:
        yield purchases.c.paying_at >= to_micros(which.since)
    if which.refunds is not None:
        yield purchases.c.refund.in_([refund.value for refund in which.refunds])
    if which.until is not None:
        yield purchases.c.paying_at < to_micros(which.until)
