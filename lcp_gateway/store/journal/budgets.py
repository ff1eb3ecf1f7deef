"""Counters of budgets and of refunds: one number for each scope and calendar period, changed beside the purchase itself.

Every purchase is counted in every period of the gateway and of its key, whether or not a budget is set today: a budget
that is set tomorrow finds the right number, and a release needs no record of where the amount was reserved.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, select, update

from lcp_gateway.purchase.money import Budget, Period, Refund, RefundLimits
from lcp_gateway.store.database.schema import budget_spend
from lcp_gateway.store.database.statements import AnySelect, Parameters, execute_in, execute_many, insert_for
from lcp_gateway.store.database.times import MICROS_PER_HOUR, period_start

WHOLE_GATEWAY = ""
_OF_ALL = "refunds"


class Counter(NamedTuple):
    """The key of one counter, in the order in which the rows are locked."""

    scope: str
    starts_at: int
    period: str


def scope_of(key_id: str | None) -> str:
    """Return the scope of a credential, or of the whole gateway where there is none."""
    return f"key:{key_id}" if key_id else WHOLE_GATEWAY


def counters_of(key_id: str, at_micros: int) -> Sequence[Counter]:
    """Return every counter that a purchase of this key at this time belongs to."""
    hour = at_micros // MICROS_PER_HOUR
    whole = tuple(_counters(None, hour).values())
    return (*whole, *_counters(key_id, hour).values()) if key_id else whole


def counter_of(budget: Budget, at_micros: int) -> Counter:
    """Return the counter that a budget limits at this time."""
    return _counters(budget.key_id, at_micros // MICROS_PER_HOUR)[budget.period]


@lru_cache(maxsize=1024)
def _counters(key_id: str | None, hour: int) -> Mapping[Period, Counter]:
    """Return the counters of one scope: within an hour, the shortest of the periods, they are the same."""
    at_micros = hour * MICROS_PER_HOUR
    return {period: Counter(scope_of(key_id), period_start(period, at_micros), period.value) for period in Period}


def _lock(parameters: Parameters) -> AnySelect:
    scopes, starts = parameters
    return (
        select(budget_spend.c.scope, budget_spend.c.starts_at, budget_spend.c.period, budget_spend.c.spent_msat)
        .where(budget_spend.c.scope.in_(scopes), budget_spend.c.starts_at.in_(starts))
        # Always in the same order, or two gateways would wait for each other.
        .order_by(budget_spend.c.scope, budget_spend.c.starts_at, budget_spend.c.period)
        .with_for_update()
    )


_ADD = (
    update(budget_spend)
    .where(
        budget_spend.c.scope == bindparam("of_scope"),
        budget_spend.c.starts_at == bindparam("of_start"),
        budget_spend.c.period == bindparam("of_period"),
    )
    .values(spent_msat=budget_spend.c.spent_msat + bindparam("more_msat"))
)


class Counters:
    """The counters that one transaction touches: locked, read, added to, and written back at its end."""

    def __init__(self) -> None:
        self._spent: dict[Counter, int] = {}
        self._more: dict[Counter, int] = {}

    def lock(self, connection: Connection, needed: Sequence[Counter], also: Iterable[Counter] = ()) -> None:
        """Lock and read counters, inserting those of ``needed`` that are missing, but not those of ``also``."""
        wanted = {*needed, *also}
        if not wanted:
            return
        self._read(connection, wanted)
        missing = sorted({counter for counter in needed if counter not in self._spent})
        if missing:
            # Missing rows cannot be locked: they are inserted first, by this or another gateway, and then locked.
            connection.execute(
                insert_for(connection, budget_spend).on_conflict_do_nothing(),
                [{**counter._asdict(), "spent_msat": 0} for counter in missing],
            )
            self._read(connection, wanted)

    def spent_msat(self, counter: Counter) -> int:
        """Return the amount spent or reserved, with the additions of this transaction."""
        return self._spent.get(counter, 0) + self._more.get(counter, 0)

    def add(self, counters: Iterable[Counter], amount_msat: int) -> None:
        """Count more, or less where it is negative."""
        for counter in counters:
            self._more[counter] = self._more.get(counter, 0) + amount_msat

    def write(self, connection: Connection) -> None:
        """Write the additions."""
        changes = [
            {
                "of_scope": counter.scope,
                "of_start": counter.starts_at,
                "of_period": counter.period,
                "more_msat": amount_msat,
            }
            for counter, amount_msat in sorted(self._more.items())
            if amount_msat
        ]
        if changes:
            execute_many(connection, _ADD, changes)

    def _read(self, connection: Connection, wanted: set[Counter]) -> None:
        found = execute_in(
            connection,
            _lock,
            sorted({counter.scope for counter in wanted}),
            sorted({counter.starts_at for counter in wanted}),
        )
        self._spent = {Counter(scope, starts_at, period): spent for scope, starts_at, period, spent in found}


def refund_counters(account_id: str, at_micros: int) -> tuple[Counter, Counter]:
    """Return the counters of refunds on the day of this time: of the account, and of all."""
    day = period_start(Period.DAY, at_micros)
    return (Counter(f"refund:{account_id}", day, Period.DAY.value), Counter(_OF_ALL, day, Period.DAY.value))


class DayOfRefunds:
    """The refunds of one transaction, counted beside those of the day so far.

    The counters are locked before those of budgets, by every transaction that touches both.
    """

    def __init__(self, limits: RefundLimits) -> None:
        self._limits = limits
        self._counters = Counters()

    def lock(self, connection: Connection, refunds: Iterable[tuple[str, int]]) -> None:
        """Lock and read the counters of the accounts and times."""
        needed = {counter for refund in refunds for counter in refund_counters(*refund)}
        self._counters.lock(connection, sorted(needed))

    def decide(self, account_id: str, amount_msat: int, at_micros: int) -> Refund:
        """Count a refund, or withhold it where it would take a counter over its limit."""
        counters = refund_counters(account_id, at_micros)
        limits = (self._limits.account_day_msat, self._limits.day_msat)
        for counter, limit_msat in zip(counters, limits, strict=True):
            if limit_msat and self._counters.spent_msat(counter) + amount_msat > limit_msat:
                return Refund.WITHHELD
        self._counters.add(counters, amount_msat)
        return Refund.GIVEN

    def write(self, connection: Connection) -> None:
        """Write the counted refunds."""
        self._counters.write(connection)
