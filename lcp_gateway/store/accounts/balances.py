"""Customers' money within one transaction: amounts held, taken and refunded, with their ledger entries.

The ledger is double entry: every movement is one entry in the customer's book and its opposite in one of the operator's.
A row of ``balances`` carries the sum of a customer's entries, and the amount held, so that one locked row is enough
to know the available balance; the audit proves it equal to the entries.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, insert, select, update

from lcp_gateway.accounts.models import Balance, Cause
from lcp_gateway.purchase.money import LARGEST_MSAT, Msat
from lcp_gateway.store.database.schema import balances, ledger_entries
from lcp_gateway.store.database.statements import AnySelect, Parameters, execute_in, execute_many

LIGHTNING = "lightning"
"""The book of payments over Lightning, which is negative: customers' money comes from it."""
REVENUE = "revenue"
ADJUSTMENTS = "adjustments"
_CUSTOMER = "customer:"

LARGEST_AMOUNT = LARGEST_MSAT

_OPPOSITES = {
    Cause.TOPUP: LIGHTNING,
    Cause.PURCHASE: REVENUE,
    Cause.REFUND: REVENUE,
    Cause.ADJUSTMENT: ADJUSTMENTS,
    Cause.WITHDRAWAL: LIGHTNING,
    Cause.EARNING: REVENUE,
}


def book_of(account_id: str) -> str:
    """Return the name of a customer's book."""
    return f"{_CUSTOMER}{account_id}"


def account_of(book: str) -> str | None:
    """Return the account of a book; None for the operator's books."""
    return book.removeprefix(_CUSTOMER) if book.startswith(_CUSTOMER) else None


def _lock(parameters: Parameters) -> AnySelect:
    (account_ids,) = parameters
    return (
        select(balances.c.account_id, balances.c.balance_msat, balances.c.held_msat)
        .where(balances.c.account_id.in_(account_ids))
        # Always in the same order, or two gateways would wait for each other.
        .order_by(balances.c.account_id)
        .with_for_update()
    )


_ADD = (
    update(balances)
    .where(balances.c.account_id == bindparam("of_account"))
    .values(
        balance_msat=balances.c.balance_msat + bindparam("more_msat"),
        held_msat=balances.c.held_msat + bindparam("more_held_msat"),
    )
)
# Inline: the ids of the rows are not read back.
_INSERT = insert(ledger_entries).inline()


@dataclass(slots=True)
class _Change:
    """The changes of one account in one transaction."""

    balance_msat: int = 0
    held_msat: int = 0


class Balances:
    """The balances that one transaction touches: locked, read, added to, and written back at its end."""

    def __init__(self) -> None:
        self._found: dict[str, Balance] = {}
        self._changes: dict[str, _Change] = {}
        self._entries: list[dict[str, object]] = []

    def lock(self, connection: Connection, also: Iterable[str] = ()) -> None:
        """Lock and read the balances of the accounts that were changed so far, and of those of ``also``."""
        wanted = {*self._changes, *also}
        if wanted:
            found = execute_in(connection, _lock, sorted(wanted))
            self._found = {
                account_id: Balance(Msat(balance_msat), Msat(held_msat))
                for account_id, balance_msat, held_msat in found
            }

    def get(self, account_id: str) -> Balance | None:
        """Return a locked balance with the changes of this transaction; None where there is no such account."""
        found = self._found.get(account_id)
        if found is None:
            return None
        change = self._changes.get(account_id, _Change())
        return Balance(Msat(found.balance_msat + change.balance_msat), Msat(found.held_msat + change.held_msat))

    def available_msat(self, account_id: str) -> Msat:
        """Return the available balance; 0 where there is no such account."""
        found = self.get(account_id)
        return Msat(0) if found is None else found.available_msat

    def hold(self, account_id: str, amount_msat: int) -> None:
        """Hold more, or less where it is negative."""
        self._of(account_id).held_msat += amount_msat

    def move(self, account_id: str, amount_msat: int, cause: Cause, cause_id: str, at_micros: int) -> None:
        """Credit the customer, or debit where the amount is negative; an amount of 0 leaves no entry."""
        if not amount_msat:
            return
        self._of(account_id).balance_msat += amount_msat
        self._enter(book_of(account_id), _OPPOSITES[cause], amount_msat, cause, cause_id, at_micros)

    def transfer(
        self, payer: str, receiver: str, amount_msat: int, cause: Cause, cause_id: str, at_micros: int
    ) -> None:
        """Move an amount from one customer to another."""
        self._of(payer).balance_msat -= amount_msat
        self._of(receiver).balance_msat += amount_msat
        self._enter(book_of(receiver), book_of(payer), amount_msat, cause, cause_id, at_micros)

    def write(self, connection: Connection) -> None:
        """Write the changes.

        Raises:
            IntegrityError: a cause was counted before, or a balance would be below what is held: roll back.
        """
        changes = [
            {"of_account": account_id, "more_msat": change.balance_msat, "more_held_msat": change.held_msat}
            for account_id, change in sorted(self._changes.items())
            if change.balance_msat or change.held_msat
        ]
        if changes:
            execute_many(connection, _ADD, changes)
        if self._entries:
            execute_many(connection, _INSERT, self._entries)

    def _enter(self, book: str, opposite: str, amount_msat: int, cause: Cause, cause_id: str, at_micros: int) -> None:
        movement = {"tx": secrets.randbits(63), "at": at_micros, "cause": cause.value, "cause_id": cause_id}
        self._entries += (
            {**movement, "book": book, "amount_msat": amount_msat},
            {**movement, "book": opposite, "amount_msat": -amount_msat},
        )

    def _of(self, account_id: str) -> _Change:
        return self._changes.setdefault(account_id, _Change())
