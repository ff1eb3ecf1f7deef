"""``lcp-gateway accounts``: the accounts of customers, corrections of their balances, and the audit of the books."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from lcp_gateway.accounts.documents import audit_document, balance_document
from lcp_gateway.accounts.keys import SIGN_IN_RULES
from lcp_gateway.accounts.models import Audit
from lcp_gateway.cli.accounts.books import (
    USUAL_LIMIT,
    AccountArgument,
    AccountBooks,
    AfterNumberOption,
    AfterOption,
    LimitOption,
    actor,
    with_books,
)
from lcp_gateway.cli.accounts.documents import (
    ACCOUNT_COLUMNS,
    ACTION_COLUMNS,
    account_document,
    action_document,
    format_amount,
    pairs,
    print_csv,
    print_document,
    print_listing,
    print_statement,
)
from lcp_gateway.cli.options import JsonOption, YesOption, command_group, text_option, utf8_text
from lcp_gateway.cli.output import (
    RUNTIME_ERROR,
    USAGE_ERROR,
    CommandFailed,
    confirm,
    print_json,
    print_pairs,
    printable,
)
from lcp_gateway.purchase.money import Msat

NameArgument = Annotated[str, typer.Argument(metavar="NAME", show_default=False, callback=utf8_text)]

app = command_group("Manage the accounts of customers.")


@app.command()
@with_books()
async def create(
    books: AccountBooks,
    name: NameArgument,
    *,
    sign_in_key: Annotated[
        bool, typer.Option("--sign-in-key", help="Make its key for the console as well, and print it: only now.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make an account with an empty balance."""
    now = datetime.now(UTC)
    made = await books.accounts.create(name, actor=actor(), at=now)
    document = account_document(made)
    if sign_in_key:
        key = await books.keys.create(made.id, name="sign-in key", actor=actor(), at=now, rules=SIGN_IN_RULES)
        document["key"] = key.text
    print_document(document, json=json)
    if sign_in_key and not json:
        typer.echo("the key is shown now and never again: only a hash of it is stored")


@app.command("list")
@with_books()
async def list_accounts(
    books: AccountBooks,
    *,
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted ones as well.")] = False,
    limit: LimitOption = USUAL_LIMIT,
    after: AfterOption = None,
    json: JsonOption = False,
) -> None:
    """List accounts and their balances, the newest first."""
    page = partial(books.accounts.page, with_deleted=deleted)
    await print_listing(page, ACCOUNT_COLUMNS, account_document, limit=limit, after=after, json=json)


@app.command()
@with_books()
async def show(books: AccountBooks, account_id: AccountArgument, *, json: JsonOption = False) -> None:
    """Print one account and its balance."""
    print_document(account_document(await books.account(account_id)), json=json)


@app.command()
@with_books()
async def rename(
    books: AccountBooks, account_id: AccountArgument, name: NameArgument, *, json: JsonOption = False
) -> None:
    """Change the name of an account."""
    await books.accounts.rename(account_id, name, actor=actor(), at=datetime.now(UTC))
    print_document(account_document(await books.account(account_id)), json=json)


@app.command()
@with_books()
async def delete(
    books: AccountBooks, account_id: AccountArgument, *, yes: YesOption = False, json: JsonOption = False
) -> None:
    """Delete the name of an account and revoke its keys. The books keep its bare id, and the rest of its balance."""
    account = await books.account(account_id)
    if account.deleted_at is not None:
        raise CommandFailed("the account was deleted before; nothing was changed")
    left = format_amount(account.balance.balance_msat)
    confirm(f"Delete {account.id} ({printable(account.name)}) with {left}, for good?", yes=yes)
    await books.accounts.delete(account_id, actor=actor(), at=datetime.now(UTC))
    print_document(account_document(await books.account(account_id)), json=json)


# A negative amount looks like an unknown option.
@app.command(context_settings={"ignore_unknown_options": True})
@with_books()
async def adjust(
    books: AccountBooks,
    account_id: AccountArgument,
    amount_msat: Annotated[int, typer.Argument(metavar="AMOUNT_MSAT", show_default=False)],
    *,
    reason: Annotated[str, text_option(metavar="TEXT", help="The reason; it is stored in the log.")],
    json: JsonOption = False,
) -> None:
    """Add an amount to a balance by hand, or take it where it is negative: never more than is available."""
    balance = await books.ledger.adjust(
        account_id, Msat(amount_msat), reason=reason, actor=actor(), at=datetime.now(UTC)
    )
    print_document({"id": account_id, **balance_document(balance)}, json=json)


@app.command()
@with_books()
async def statement(
    books: AccountBooks,
    account_id: AccountArgument,
    *,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=f"At most N; {USUAL_LIMIT} if not given, with --csv all.")
    ] = None,
    after: AfterNumberOption = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    json: JsonOption = False,
) -> None:
    """Print the movements of an account's balance, the newest first."""
    if csv and json:
        raise CommandFailed("either --csv or --json, not both", exit_code=USAGE_ERROR)
    if csv:
        await print_csv(books, account_id, limit=limit, after=after)
    else:
        most = limit or USUAL_LIMIT
        await print_statement(books, account_id, limit=most, after=after, json=json)


@app.command()
@with_books()
async def audit(books: AccountBooks, *, json: JsonOption = False) -> int:
    """Check that all the books agree with one another; exits with 1 when they do not."""
    found = await books.ledger.audit()
    if json:
        print_json(audit_document(found))
    else:
        _print_audit(found)
    return 0 if found.ok else RUNTIME_ERROR


@app.command()
@with_books()
async def log(
    books: AccountBooks, *, limit: LimitOption = USUAL_LIMIT, after: AfterNumberOption = None, json: JsonOption = False
) -> None:
    """List the actions of administrators, the latest first."""
    await print_listing(books.acts.page, ACTION_COLUMNS, action_document, limit=limit, after=after, json=json)


def _print_audit(found: Audit) -> None:
    document = audit_document(found)
    del document["ok"], document["problems"], document["books"]
    books = [(f"book {name}", format_amount(msat)) for name, msat in sorted(found.books.items())]
    print_pairs(pairs(document) + books)
    for problem in found.problems:
        typer.echo(f"wrong: {printable(problem)}")
    typer.echo("the books agree" if found.ok else "the books do NOT agree")
