"""Statements of accounts: what moved a balance, as a table, as JSON and as CSV."""

import csv
import sys

from lcp_gateway.accounts.records import Listing, StatementLine
from lcp_gateway.cli.account_books import AccountBooks
from lcp_gateway.cli.account_forms import LINE_FIELDS, LINE_HEADINGS, line_document, line_row
from lcp_gateway.cli.listings import gathered, print_listing, tell_more

_PAGE = 500


async def print_statement(
    books: AccountBooks, account_id: str, *, limit: int, after: int | None, json: bool
) -> None:
    """Print lines of an account's statement, the newest first, as a table or as JSON.

    Raises:
        NoSuchAccount: there never was one of this id.
    """
    await books.account(account_id)
    found = await gathered(
        lambda most, following: _page(books, account_id, most, following),
        limit,
        None if after is None else str(after),
    )
    print_listing(found, LINE_HEADINGS, line_row, line_document, json=json)


async def print_csv(
    books: AccountBooks, account_id: str, *, limit: int | None, after: int | None
) -> None:
    """Print the same as CSV, line by line: all of it where no limit is given.

    Raises:
        NoSuchAccount: as in ``print_statement``.
    """
    await books.account(account_id)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(LINE_FIELDS)
    left, following = limit, None if after is None else str(after)
    while True:
        most = _PAGE if left is None else min(left, _PAGE)
        found = await _page(books, account_id, most, following)
        table.writerows(line_document(line).values() for line in found.items)
        following = found.after
        left = None if left is None else left - len(found.items)
        if following is None or left == 0:
            break
    tell_more(following)


async def _page(
    books: AccountBooks, account_id: str, limit: int, after: str | None
) -> Listing[StatementLine]:
    found = await books.ledger.statement(
        account_id, limit=limit, after=None if after is None else int(after)
    )
    return Listing(found.lines, None if found.after is None else str(found.after))
