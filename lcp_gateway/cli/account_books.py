"""The books of accounts as commands use them: opened beside gateways that may be writing to them."""

import contextlib
import os
import pwd
from collections.abc import AsyncIterator
from dataclasses import dataclass

from lcp_gateway.accounts.records import (
    Account,
    AccountError,
    BadAmount,
    BadText,
    NoSuchAccount,
)
from lcp_gateway.cli.journal import opened_journal
from lcp_gateway.cli.outcome import RUNTIME_ERROR, USAGE_ERROR, CommandFailed
from lcp_gateway.config import Settings
from lcp_gateway.store.accounts import Accounts
from lcp_gateway.store.admin_log import AdminLog
from lcp_gateway.store.keys import Keys
from lcp_gateway.store.ledger import Ledger
from lcp_gateway.store.topups import Topups


@dataclass(frozen=True, slots=True)
class AccountBooks:
    """Everything that is kept about customers."""

    accounts: Accounts
    keys: Keys
    ledger: Ledger
    topups: Topups
    acts: AdminLog

    async def account(self, account_id: str) -> Account:
        """Give one account, deleted or not.

        Raises:
            NoSuchAccount: there never was one.
        """
        found = await self.accounts.get(account_id)
        if found is None:
            raise NoSuchAccount
        return found


@contextlib.asynccontextmanager
async def opened_books(settings: Settings) -> AsyncIterator[AccountBooks]:
    """Open the books in the journal of the settings, which must exist, and close them after the block.

    What the block asks for and cannot be had is told as an error of the command.

    Raises:
        CommandFailed: as in ``opened_journal``; and for every ``AccountError`` of the block.
    """
    async with opened_journal(settings) as database:
        try:
            yield AccountBooks(
                Accounts(database),
                Keys(database),
                Ledger(database),
                Topups(database),
                AdminLog(database),
            )
        except (BadAmount, BadText) as error:
            raise CommandFailed(str(error), exit_code=USAGE_ERROR) from None
        except AccountError as error:
            raise CommandFailed(str(error), exit_code=RUNTIME_ERROR) from None


def actor() -> str:
    """Say who does it, for the log of acts: the user whose rights are used, not what the environment says."""
    uid = os.geteuid()
    try:
        return f"cli:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"cli:{uid}"
