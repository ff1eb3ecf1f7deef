"""The books of accounts for commands: opened beside gateways that may be writing to them; and the options for accounts."""

import contextlib
import functools
import os
import pwd
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import typer

from lcp_gateway.accounts.models import Account, AccountError, AccountNotFound, InvalidAmount, InvalidText
from lcp_gateway.cli.books.journal import opened_journal, with_journal
from lcp_gateway.cli.options import text_option
from lcp_gateway.cli.output import RUNTIME_ERROR, USAGE_ERROR, CommandFailed
from lcp_gateway.config import Settings
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.admin_log import AdminLog
from lcp_gateway.store.accounts.keys import Keys
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.accounts.nodes import Nodes
from lcp_gateway.store.accounts.registrations import Registrations
from lcp_gateway.store.accounts.topups import Topups
from lcp_gateway.store.accounts.withdrawals import Withdrawals

_LAST_NUMBER = 2**63 - 1


def an_id(text: str | None) -> str | None:
    """Return the argument of a command that is an id."""
    # A database refuses a query with bytes that are not text.
    if text is not None and not (text.isascii() and text.isprintable()):
        raise CommandFailed("an id is made of letters, digits and _", exit_code=USAGE_ERROR)
    return text


def _id_argument(metavar: str) -> object:
    return typer.Argument(metavar=metavar, show_default=False, callback=an_id)


AccountArgument = Annotated[str, _id_argument("ACCOUNT_ID")]
OptionalAccountArgument = Annotated[str | None, _id_argument("ACCOUNT_ID")]
KeyArgument = Annotated[str, _id_argument("KEY_ID")]
WithdrawalArgument = Annotated[str, _id_argument("WITHDRAWAL_ID")]

USUAL_LIMIT = 50
LimitOption = Annotated[int, typer.Option(min=1, metavar="N", help="At most N.")]
AfterOption = Annotated[
    str | None, typer.Option("--after", metavar="ID", help="Only those after this one.", callback=an_id)
]
AfterNumberOption = Annotated[
    int | None, typer.Option("--after", min=0, max=_LAST_NUMBER, metavar="ID", help="Only those after this one.")
]

FromAccountOption = Annotated[str | None, text_option("--account", metavar="ACCOUNT_ID", help="Of this account only.")]
WhyOption = Annotated[str, text_option("--why", metavar="TEXT", help="Your reason, for the log of administrators.")]


@dataclass(frozen=True, slots=True)
class AccountBooks:
    """The tables about customers."""

    accounts: Accounts
    keys: Keys
    ledger: Ledger
    topups: Topups
    withdrawals: Withdrawals
    registrations: Registrations
    nodes: Nodes
    acts: AdminLog

    async def account(self, account_id: str) -> Account:
        """Return one account, deleted or not.

        Raises:
            AccountNotFound: there never was one.
        """
        found = await self.accounts.get(account_id)
        if found is None:
            raise AccountNotFound
        return found


@contextlib.asynccontextmanager
async def opened_books(settings: Settings) -> AsyncIterator[AccountBooks]:
    """Open the books in the journal of the settings, which must exist, and close them after the block."""
    async with opened_journal(settings) as database:
        try:
            yield AccountBooks(
                Accounts(database),
                Keys(database),
                Ledger(database),
                Topups(database),
                Withdrawals(database),
                Registrations(database),
                Nodes(database),
                AdminLog(database),
            )
        except (InvalidAmount, InvalidText) as error:
            raise CommandFailed(str(error), exit_code=USAGE_ERROR) from None
        except AccountError as error:
            raise CommandFailed(str(error), exit_code=RUNTIME_ERROR) from None


def actor() -> str:
    """Return the actor for the admin log: the effective user, not the one that the environment names."""
    uid = os.geteuid()
    try:
        return f"cli:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"cli:{uid}"


with_books = functools.partial(with_journal, opened=opened_books)
"""Add to a command the flags of ``with_journal``; its first parameter is the ``AccountBooks``."""
