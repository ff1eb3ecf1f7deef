"""Statements of accounts: what moved a balance, as a table, as JSON and as CSV."""

import asyncio
import csv
import sys

from lcp_gateway.accounts.records import Listing, StatementLine
from lcp_gateway.cli.account_books import AccountBooks, opened_books
from lcp_gateway.cli.account_forms import LINE_FIELDS, LINE_HEADINGS, line_document, line_row
from lcp_gateway.cli.listings import gathered, print_listing, tell_more
from lcp_gateway.config import Settings

_PAGE = 500


def print_statement(
    settings: Settings, account_id: str, *, limit: int, after: int | None, json: bool
) -> None:
    """Print lines of an account's statement, the newest first, as a table or as JSON.

    Raises:
        CommandFailed: the books cannot be used, or have no such account.
    """

    async def read() -> Listing[StatementLine]:
        async with opened_books(settings) as books:
            await books.account(account_id)
            return await gathered(
                lambda most, following: _page(books, account_id, most, following),
                limit,
                None if after is None else str(after),
            )

    print_listing(asyncio.run(read()), LINE_HEADINGS, line_row, line_document, json=json)


def print_csv(settings: Settings, account_id: str, *, limit: int | None, after: int | None) -> None:
    """Print the same as CSV, line by line: all of it where no limit is given.

    Raises:
        CommandFailed: as in ``print_statement``.
    """
    table = csv.writer(sys.stdout, lineterminator="\n")

    async def copy() -> str | None:
        left, following = limit, None if after is None else str(after)
        async with opened_books(settings) as books:
            await books.account(account_id)
            table.writerow(LINE_FIELDS)
            while True:
                most = _PAGE if left is None else min(left, _PAGE)
                found = await _page(books, account_id, most, following)
                table.writerows(line_document(line).values() for line in found.items)
                following = found.after
                left = None if left is None else left - len(found.items)
                if following is None or left == 0:
                    return following

    tell_more(asyncio.run(copy()))


async def _page(
    books: AccountBooks, account_id: str, limit: int, after: str | None
) -> Listing[StatementLine]:
    found = await books.ledger.statement(
        account_id, limit=limit, after=None if after is None else int(after)
    )
    return Listing(found.lines, None if found.after is None else str(found.after))
