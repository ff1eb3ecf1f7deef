"""The ledger: the customers' balances, their movements, corrections by hand, and the audit.

The audit proves that the books agree: entries with one another, balances with entries, holds and charges with purchases.
It reads everything in one consistent view, in pieces that do not grow with the books.
"""

import dataclasses
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import islice

from sqlalchemy import Connection, and_, case, func, select
from sqlalchemy.exc import IntegrityError

from lcp_gateway.accounts.models import (
    AccountNotFound,
    AdjustmentExceedsBalance,
    AdjustmentIdReused,
    Audit,
    Balance,
    Cause,
    InvalidAmount,
    Statement,
    StatementLine,
    TopupState,
    Totals,
    check_text,
)
from lcp_gateway.accounts.withdrawal_states import OPEN_STATES as OPEN_WITHDRAWALS
from lcp_gateway.accounts.withdrawal_states import WithdrawalState
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.quote import Payee
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.admin_log import write_admin_action
from lcp_gateway.store.accounts.balances import LARGEST_AMOUNT, REVENUE, Balances, account_of, book_of
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.database.schema import (
    OPEN_STATES,
    accounts,
    balances,
    ledger_entries,
    purchases,
    topups,
    withdrawals,
)
from lcp_gateway.store.database.statements import MAX_ROWS, fetch_one
from lcp_gateway.store.database.times import from_micros, to_micros

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
_BOOKS = select(ledger_entries.c.book, func.sum(ledger_entries.c.amount_msat), func.count()).group_by(
    ledger_entries.c.book
)
_BALANCES = select(balances.c.account_id, balances.c.balance_msat, balances.c.held_msat)
_HOLDS = (
    select(purchases.c.account_id, func.sum(purchases.c.charge_msat))
    .where(purchases.c.state.in_(_OPEN), purchases.c.account_id.is_not(None))
    .group_by(purchases.c.account_id)
)
_WITHDRAWALS_HOLD = (
    select(withdrawals.c.account_id, func.sum(withdrawals.c.amount_msat + withdrawals.c.fee_limit_msat))
    .where(withdrawals.c.state.in_(tuple(state.value for state in OPEN_WITHDRAWALS)))
    .group_by(withdrawals.c.account_id)
)
_WITHDRAWN = case(
    (
        withdrawals.c.state == WithdrawalState.SETTLED.value,
        withdrawals.c.amount_msat + func.coalesce(withdrawals.c.fee_msat, 0),
    ),
    else_=0,
)
_OF_WITHDRAWAL = (
    and_(
        ledger_entries.c.cause.in_((Cause.WITHDRAWAL.value, Cause.TRANSFER.value)),
        ledger_entries.c.cause_id == withdrawals.c.id,
        ledger_entries.c.book == "customer:" + withdrawals.c.account_id,
    ),
)
_WRONG_WITHDRAWALS = (
    select(withdrawals.c.id, withdrawals.c.state, _WITHDRAWN, func.coalesce(ledger_entries.c.amount_msat, 0))
    .join_from(withdrawals, ledger_entries, *_OF_WITHDRAWAL, isouter=True)
    .where(_WITHDRAWN + func.coalesce(ledger_entries.c.amount_msat, 0) != 0)
    .limit(_MOST_PROBLEMS)
)
_WITHDRAWALS_OF_NOTHING = (
    select(ledger_entries.c.cause_id)
    .join_from(ledger_entries, withdrawals, withdrawals.c.id == ledger_entries.c.cause_id, isouter=True)
    .where(ledger_entries.c.cause.in_((Cause.WITHDRAWAL.value, Cause.TRANSFER.value)), withdrawals.c.id.is_(None))
    .distinct()
    .limit(_MOST_PROBLEMS)
)
_TAKEN = case(
    (purchases.c.state.in_((*_OPEN, State.NOT_PAID.value)), 0),
    (and_(purchases.c.state == State.UNDELIVERED.value, purchases.c.refund_undelivered.is_(True)), 0),
    else_=purchases.c.charge_msat,
)
_CHARGED = (
    select(purchases.c.job_id, purchases.c.account_id, purchases.c.state, _TAKEN)
    .where(purchases.c.account_id.is_not(None))
    .order_by(purchases.c.job_id)
    .limit(_AT_ONCE)
)
_HOW_MANY = select(func.count()).where(purchases.c.account_id.is_not(None))
_OF_PURCHASES = select(ledger_entries.c.cause_id, ledger_entries.c.book, ledger_entries.c.amount_msat).where(
    ledger_entries.c.cause.in_((Cause.PURCHASE.value, Cause.REFUND.value))
)
_EARNINGS = (
    select(
        purchases.c.job_id,
        purchases.c.payee_id,
        purchases.c.state,
        purchases.c.price_msat,
        purchases.c.commission_ppm,
        purchases.c.earned_msat,
    )
    .where(purchases.c.payee_id.is_not(None))
    .order_by(purchases.c.job_id)
    .limit(_AT_ONCE)
)
_EARNED = select(ledger_entries.c.cause_id, ledger_entries.c.book, ledger_entries.c.amount_msat).where(
    ledger_entries.c.cause == Cause.EARNING.value, ledger_entries.c.book != REVENUE
)
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
                func.coalesce(ledger_entries.c.amount_msat, 0) != func.coalesce(topups.c.received_msat, 0),
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
    """Return the sums of all balances."""
    lives = select(func.count()).select_from(accounts).where(accounts.c.deleted_at.is_(None))
    sums = select(func.coalesce(func.sum(balances.c.balance_msat), 0), func.coalesce(func.sum(balances.c.held_msat), 0))
    balance_msat, held_msat = connection.execute(sums).one()
    # Sums of 64-bit numbers come as decimals from PostgreSQL.
    return Totals(connection.execute(lives).scalar_one(), Msat(int(balance_msat)), Msat(int(held_msat)))


def audit(connection: Connection) -> Audit:
    """Check everything; the result lists at most a hundred problems, with ids and amounts."""
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
    yield from _problems_of_balances(connection, books)
    for topup_id, state, received_msat, credited_msat in connection.execute(_CREDITS):
        yield (f"top-up {topup_id} is {state} with {received_msat or 0} msat, {credited_msat or 0} msat were credited")
    for topup_id in connection.execute(_CREDITS_OF_NOTHING).scalars():
        yield f"{topup_id} was credited and is no top-up"
    for withdrawal_id, state, due_msat, entered_msat in connection.execute(_WRONG_WITHDRAWALS):
        yield f"withdrawal {withdrawal_id} is {state} and took {due_msat} msat, its entries say {-entered_msat} msat"
    for withdrawal_id in connection.execute(_WITHDRAWALS_OF_NOTHING).scalars():
        yield f"{withdrawal_id} has entries and is no withdrawal"
    yield from _problems_of_charges(connection)
    yield from _problems_of_earnings(connection)


def _problems_of_balances(connection: Connection, books: Mapping[str, int]) -> Iterator[str]:
    holds = {account_id: int(held) for account_id, held in connection.execute(_HOLDS)}
    for account_id, held in connection.execute(_WITHDRAWALS_HOLD):
        holds[account_id] = holds.get(account_id, 0) + int(held)
    entered = {
        account_id: amount_msat for book, amount_msat in books.items() if (account_id := account_of(book)) is not None
    }
    for account_id, balance_msat, held_msat in connection.execute(_BALANCES):
        entered_msat = entered.pop(account_id, 0)
        if entered_msat != balance_msat:
            yield f"{account_id} has {balance_msat} msat, its entries sum to {entered_msat} msat"
        open_msat = holds.pop(account_id, 0)
        if open_msat != held_msat:
            yield (
                f"of {account_id} {held_msat} msat are held, its open purchases and withdrawals come to {open_msat} msat"
            )
    for account_id in entered:
        yield f"{account_id} has entries and no balance"
    for account_id, open_msat in holds.items():
        if open_msat:
            yield f"{account_id} has open purchases or withdrawals and no balance"


def _problems_of_charges(connection: Connection) -> Iterator[str]:
    """Compare the amount taken for each purchase with its entries, in the order of the purchases' ids.

    Entries of purchases that retention deleted since have nothing to be compared with.
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


def _problems_of_earnings(connection: Connection) -> Iterator[str]:
    """Compare what the price of each delivered purchase earns its node's owner with the entries, in the same order."""
    query = _EARNINGS
    while found := connection.execute(query).all():
        first, last = found[0][0], found[-1][0]
        within = ledger_entries.c.cause_id.between(first.hex(), last.hex())
        entered = {cause_id: (book, amount) for cause_id, book, amount in connection.execute(_EARNED.where(within))}
        for job_id, payee_id, state, price_msat, commission_ppm, earned_msat in found:
            due_msat = 0
            if state == State.DELIVERED.value:
                due_msat = Payee("", payee_id, commission_ppm or 0).earned_msat(price_msat)
            book, entered_msat = entered.get(job_id.hex(), (book_of(payee_id), 0))
            if (entered_msat, earned_msat or 0, book) != (due_msat, due_msat, book_of(payee_id)):
                yield (
                    f"purchase {job_id.hex()} is {state} and earns {payee_id} {due_msat} msat, "
                    f"{entered_msat} msat were credited to {book}"
                )
        query = _EARNINGS.where(purchases.c.job_id > last)


class Ledger:
    """The repository of balances and their entries. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def balance(self, account_id: str) -> Balance | None:
        """Return the balance of an account; None where there never was one."""
        query = select(balances.c.balance_msat, balances.c.held_msat).where(balances.c.account_id == account_id)

        return await fetch_one(self._database, query, lambda row: Balance(**row))

    async def statement(self, account_id: str, *, limit: int = 100, after: int | None = None) -> Statement:
        """Return the entries of an account, the newest first, with the balance after each. Holds are no entries."""
        limit = max(1, min(limit, MAX_ROWS))
        of_book = ledger_entries.c.book == book_of(account_id)
        lines = select(ledger_entries).where(of_book)
        total = select(func.coalesce(func.sum(ledger_entries.c.amount_msat), 0)).where(of_book)
        if after is not None:
            lines = lines.where(ledger_entries.c.id < after)
            total = total.where(ledger_entries.c.id < after)
        lines = lines.order_by(ledger_entries.c.id.desc()).limit(limit + 1)

        def work(connection: Connection) -> Statement:
            balance_msat = int(connection.execute(total).scalar_one())
            found = []
            for row in connection.execute(lines).mappings():
                found.append(
                    StatementLine(
                        row["id"],
                        from_micros(row["at"]),
                        Msat(row["amount_msat"]),
                        Msat(balance_msat),
                        Cause(row["cause"]),
                        row["cause_id"].partition(":")[0],
                    )
                )
                balance_msat -= row["amount_msat"]
            return Statement(found[:limit], found[limit - 1].id if len(found) > limit else None)

        return await self._database.read(work)

    async def adjust(
        self,
        account_id: str,
        amount_msat: Msat,
        *,
        reason: str,
        actor: str,
        at: datetime,
        adjustment_id: str | None = None,
    ) -> Balance:
        """Credit a customer by hand, or debit where the amount is negative; return the balance after it.

        With an id of the caller's own it happens once, however often it is called. A deleted account can be adjusted, so
        that its books can be closed.

        Raises:
            AccountNotFound: there never was one.
            AdjustmentExceedsBalance: it would take more than is available.
            AdjustmentIdReused: another adjustment has the id.
            InvalidAmount: it is 0 or too large.
            InvalidText: the reason cannot be one.
        """
        if not 0 < abs(amount_msat) < LARGEST_AMOUNT:
            raise InvalidAmount
        reason = check_text(reason, "reason")
        name = f"adj_{secrets.token_hex(12)}" if adjustment_id is None else adjustment_id

        def work(connection: Connection) -> Balance:
            moved = Balances()
            moved.lock(connection, [account_id])
            before = moved.get(account_id)
            if before is None:
                raise AccountNotFound
            if _is_done(connection, account_id, amount_msat, name):
                return before
            if before.available_msat + amount_msat < 0:
                raise AdjustmentExceedsBalance(before.available_msat)
            moved.move(account_id, amount_msat, Cause.ADJUSTMENT, name, to_micros(at))
            moved.write(connection)
            write_admin_action(
                connection,
                at,
                actor,
                "account.adjust",
                account_id,
                adjustment_id=name,
                amount_msat=amount_msat,
                reason=reason,
            )
            return Balance(Msat(before.balance_msat + amount_msat), before.held_msat)

        try:
            return await self._database.write(work)
        except (IntegrityError, sqlite3.IntegrityError):
            # Another gateway used the id for another account at the same time.
            raise AdjustmentIdReused from None

    async def audit(self) -> Audit:
        """Check whether all the books agree with one another. Reads every entry and every charged purchase."""
        found = await self._database.read(audit)
        if (replaced := self._database.replaced) is not None:
            # The books of an empty journal agree with one another, even if it lost everything.
            return dataclasses.replace(found, problems=(replaced, *found.problems))
        return found

    async def totals(self) -> Totals:
        """Return the sums of all balances."""
        return await self._database.read(totals)


def _is_done(connection: Connection, account_id: str, amount_msat: int, name: str) -> bool:
    query = select(ledger_entries.c.book, ledger_entries.c.amount_msat).where(
        ledger_entries.c.cause == Cause.ADJUSTMENT.value, ledger_entries.c.cause_id == name
    )
    found = {book: amount for book, amount in connection.execute(query)}  # noqa: C416 - rows are no pairs to a type checker
    if found and found.get(book_of(account_id)) != amount_msat:
        raise AdjustmentIdReused
    return bool(found)
