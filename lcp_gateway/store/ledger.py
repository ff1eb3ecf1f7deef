"""The ledger: what customers have, how it came about, and corrections by hand."""

import dataclasses
import secrets
import sqlite3
from datetime import datetime

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import IntegrityError

from lcp_gateway.accounts.records import (
    Audit,
    BadAmount,
    Balance,
    BalanceTooLow,
    Cause,
    IdReused,
    NoSuchAccount,
    Statement,
    StatementLine,
    Totals,
    check_text,
)
from lcp_gateway.purchase.money import Msat
from lcp_gateway.store.admin_log import write_act
from lcp_gateway.store.audit import audit, totals
from lcp_gateway.store.balances import LARGEST_AMOUNT, Balances, book_of
from lcp_gateway.store.database import Database
from lcp_gateway.store.tables import balances, ledger_entries
from lcp_gateway.store.times import from_micros, to_micros

_MOST = 1_000


class Ledger:
    """Customers' money. Every method raises ``DatabaseUnavailable``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def balance(self, account_id: str) -> Balance | None:
        """Give what an account has; None where there never was one."""
        query = select(balances.c.balance_msat, balances.c.held_msat).where(
            balances.c.account_id == account_id
        )

        def work(connection: Connection) -> Balance | None:
            row = connection.execute(query).one_or_none()
            return None if row is None else Balance(Msat(row[0]), Msat(row[1]))

        return await self._database.read(work)

    async def statement(
        self, account_id: str, *, limit: int = 100, after: int | None = None
    ) -> Statement:
        """Give what moved an account's balance, the newest first, at most 1,000 lines at a time.

        What is held has not moved yet, and is not among it.
        """
        limit = max(1, min(limit, _MOST))
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
        """Give a customer an amount by hand, or take it where it is negative; gives the balance after it.

        With an id of the caller's own it happens once, however often it is called. Who did it, and why, stands in the
        log of acts. A deleted account can be adjusted, so that its books can be closed.

        Raises:
            NoSuchAccount: there never was one.
            BalanceTooLow: it would take what is held, or what is not there.
            IdReused: the id was that of another adjustment.
            BadAmount: it is nothing, or more than anybody has.
            BadText: the reason cannot be one.
        """
        if not 0 < abs(amount_msat) < LARGEST_AMOUNT:
            raise BadAmount
        reason = check_text(reason, "reason")
        name = f"adj_{secrets.token_hex(12)}" if adjustment_id is None else adjustment_id

        def work(connection: Connection) -> Balance:
            moved = Balances()
            moved.lock(connection, [account_id])
            before = moved.get(account_id)
            if before is None:
                raise NoSuchAccount
            if _is_done(connection, account_id, amount_msat, name):
                return before
            if before.available_msat + amount_msat < 0:
                raise BalanceTooLow(before.available_msat)
            moved.move(account_id, amount_msat, Cause.ADJUSTMENT, name, to_micros(at))
            moved.write(connection)
            write_act(
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
            # Another gateway used the id for another account at the same moment.
            raise IdReused from None

    async def audit(self) -> Audit:
        """Look whether all the books agree with one another. Reads everything there is: not for every minute."""
        found = await self._database.read(audit)
        if (replaced := self._database.replaced) is not None:
            # Books that are gone as a whole agree with one another.
            return dataclasses.replace(found, problems=(replaced, *found.problems))
        return found

    async def totals(self) -> Totals:
        """Give what all customers have together."""
        return await self._database.read(totals)


def _is_done(connection: Connection, account_id: str, amount_msat: int, name: str) -> bool:
    query = select(ledger_entries.c.book, ledger_entries.c.amount_msat).where(
        ledger_entries.c.cause == Cause.ADJUSTMENT.value, ledger_entries.c.cause_id == name
    )
    found = {book: amount for book, amount in connection.execute(query)}  # noqa: C416 - rows are no pairs to a type checker
    if found and found.get(book_of(account_id)) != amount_msat:
        raise IdReused
    return bool(found)
