"""The proof that the books agree: entries with one another, balances with entries, holds and charges with purchases.

Everything is read in one consistent view, in pieces that do not grow with the books.
"""

from collections.abc import Iterator, Mapping
from itertools import islice

from sqlalchemy import Connection, and_, case, func, select

from lcp_gateway.accounts.records import Audit, Cause, TopupState, Totals
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.states import State
from lcp_gateway.store.balances import account_of
from lcp_gateway.store.tables import (
    OPEN_STATES,
    accounts,
    balances,
    ledger_entries,
    purchases,
    topups,
)

_MOST_PROBLEMS = 100
_AT_ONCE = 1_000
_OPEN = tuple(state.value for state in OPEN_STATES)
_CUSTOMERS = "customers"

_UNBALANCED = (
    select(ledger_entries.c.tx)
    .group_by(ledger_entries.c.tx)
    .having(func.sum(ledger_entries.c.amount_msat) != 0)
    .limit(_MOST_PROBLEMS)
)
_BOOKS = select(
    ledger_entries.c.book, func.sum(ledger_entries.c.amount_msat), func.count()
).group_by(ledger_entries.c.book)
_BALANCES = select(balances.c.account_id, balances.c.balance_msat, balances.c.held_msat)
_HOLDS = (
    select(purchases.c.account_id, func.sum(purchases.c.charge_msat))
    .where(purchases.c.state.in_(_OPEN), purchases.c.account_id.is_not(None))
    .group_by(purchases.c.account_id)
)
_TAKEN = case(
    (purchases.c.state.in_((*_OPEN, State.NOT_PAID.value)), 0),
    (
        and_(
            purchases.c.state == State.UNDELIVERED.value, purchases.c.refund_undelivered.is_(True)
        ),
        0,
    ),
    else_=purchases.c.charge_msat,
)
_CHARGED = (
    select(purchases.c.job_id, purchases.c.account_id, purchases.c.state, _TAKEN)
    .where(purchases.c.account_id.is_not(None))
    .order_by(purchases.c.job_id)
    .limit(_AT_ONCE)
)
_HOW_MANY = select(func.count()).where(purchases.c.account_id.is_not(None))
_OF_PURCHASES = select(
    ledger_entries.c.cause_id, ledger_entries.c.book, ledger_entries.c.amount_msat
).where(ledger_entries.c.cause.in_((Cause.PURCHASE.value, Cause.REFUND.value)))
_CREDITS = (
    select(topups.c.id, topups.c.state, topups.c.received_msat, ledger_entries.c.amount_msat)
    .join_from(
        topups,
        ledger_entries,
        and_(
            ledger_entries.c.cause == Cause.TOPUP.value,
            ledger_entries.c.cause_id == topups.c.id,
            ledger_entries.c.book == "customer:" + topups.c.account_id,
        ),
        isouter=True,
    )
    .where(
        case(
            (
                topups.c.state == TopupState.SETTLED.value,
                func.coalesce(ledger_entries.c.amount_msat, 0)
                != func.coalesce(topups.c.received_msat, 0),
            ),
            else_=ledger_entries.c.amount_msat.is_not(None),
        )
    )
    .limit(_MOST_PROBLEMS)
)
_CREDITS_OF_NOTHING = (
    select(ledger_entries.c.cause_id)
    .join_from(ledger_entries, topups, topups.c.id == ledger_entries.c.cause_id, isouter=True)
    .where(ledger_entries.c.cause == Cause.TOPUP.value, topups.c.id.is_(None))
    .distinct()
    .limit(_MOST_PROBLEMS)
)


def totals(connection: Connection) -> Totals:
    """Give what all customers have together."""
    lives = select(func.count()).select_from(accounts).where(accounts.c.deleted_at.is_(None))
    sums = select(
        func.coalesce(func.sum(balances.c.balance_msat), 0),
        func.coalesce(func.sum(balances.c.held_msat), 0),
    )
    balance_msat, held_msat = connection.execute(sums).one()
    # Sums of 64-bit numbers come as decimals from PostgreSQL.
    return Totals(
        connection.execute(lives).scalar_one(), Msat(int(balance_msat)), Msat(int(held_msat))
    )


def audit(connection: Connection) -> Audit:
    """Look at everything. What is wrong is said with ids and amounts, at most a hundred times."""
    books: dict[str, int] = {}
    entries = 0
    for book, amount_msat, count in connection.execute(_BOOKS):
        books[book] = int(amount_msat)
        entries += count
    problems = list(islice(_problems(connection, books), _MOST_PROBLEMS))
    summed: dict[str, Msat] = {_CUSTOMERS: Msat(0)}
    for book, amount_msat in books.items():
        name = book if account_of(book) is None else _CUSTOMERS
        summed[name] = Msat(summed.get(name, 0) + amount_msat)
    charged = connection.execute(_HOW_MANY).scalar_one()
    return Audit(problems, totals(connection), summed, entries, charged)


def _problems(connection: Connection, books: Mapping[str, int]) -> Iterator[str]:
    for tx in connection.execute(_UNBALANCED).scalars():
        yield f"the entries of movement {tx} do not sum to zero"
    yield from _balances(connection, books)
    for topup_id, state, received_msat, credited_msat in connection.execute(_CREDITS):
        yield (
            f"top-up {topup_id} is {state} with {received_msat or 0} msat, "
            f"{credited_msat or 0} msat were credited"
        )
    for topup_id in connection.execute(_CREDITS_OF_NOTHING).scalars():
        yield f"{topup_id} was credited and is no top-up"
    yield from _charges(connection)


def _balances(connection: Connection, books: Mapping[str, int]) -> Iterator[str]:
    holds = {account_id: int(held) for account_id, held in connection.execute(_HOLDS)}
    entered = {
        account_id: amount_msat
        for book, amount_msat in books.items()
        if (account_id := account_of(book)) is not None
    }
    for account_id, balance_msat, held_msat in connection.execute(_BALANCES):
        entered_msat = entered.pop(account_id, 0)
        if entered_msat != balance_msat:
            yield f"{account_id} has {balance_msat} msat, its entries sum to {entered_msat} msat"
        open_msat = holds.pop(account_id, 0)
        if open_msat != held_msat:
            yield (
                f"of {account_id} {held_msat} msat are held, its open purchases are charged at "
                f"{open_msat} msat"
            )
    for account_id in entered:
        yield f"{account_id} has entries and no balance"
    for account_id, open_msat in holds.items():
        if open_msat:
            yield f"{account_id} has open purchases and no balance"


def _charges(connection: Connection) -> Iterator[str]:
    """Compare what each purchase says was taken with the entries, purchases being in the order of their ids.

    Entries of purchases that were forgotten since have nothing to be compared with.
    """
    query = _CHARGED
    while found := connection.execute(query).all():
        first, last = found[0][0], found[-1][0]
        entered: dict[str, dict[str, int]] = {}
        # What follows the job id in the name of a refund comes before any letter.
        within = ledger_entries.c.cause_id.between(first.hex(), f"{last.hex()}z")
        for cause_id, book, amount_msat in connection.execute(_OF_PURCHASES.where(within)):
            account_id = account_of(book)
            if account_id is not None:
                sums = entered.setdefault(cause_id.partition(":")[0], {})
                sums[account_id] = sums.get(account_id, 0) - amount_msat
        for job_id, account_id, state, taken_msat in found:
            sums = entered.get(job_id.hex(), {})
            sums.setdefault(account_id, 0)
            if sums != {account_id: taken_msat}:
                yield (
                    f"purchase {job_id.hex()} is {state} and charged at {taken_msat} msat to "
                    f"{account_id}, its entries say {sums}"
                )
        query = _CHARGED.where(purchases.c.job_id > last)
