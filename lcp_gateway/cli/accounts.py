"""``lcp-gateway accounts``: customers, corrections of what they have, and the proof that the books agree."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.accounts.records import Account, AdminAct, Audit, Balance, Listing
from lcp_gateway.cli.account_books import actor, opened_books
from lcp_gateway.cli.account_forms import (
    ACCOUNT_HEADINGS,
    ACT_HEADINGS,
    account_document,
    account_row,
    act_document,
    act_row,
    amount,
    audit_document,
    balance_document,
    pairs,
)
from lcp_gateway.cli.account_options import (
    USUAL_LIMIT,
    AccountArgument,
    AfterNumberOption,
    AfterOption,
    JsonOption,
    LimitOption,
)
from lcp_gateway.cli.confirming import confirm
from lcp_gateway.cli.flags import load_or_complain, setting_flags
from lcp_gateway.cli.groups import command_group
from lcp_gateway.cli.journal import JOURNAL_SETTINGS
from lcp_gateway.cli.listings import gathered, print_document, print_listing
from lcp_gateway.cli.output import plain, print_json, print_pairs
from lcp_gateway.cli.program import RUNTIME_ERROR, USAGE_ERROR, CommandFailed
from lcp_gateway.cli.statements import print_csv, print_statement
from lcp_gateway.config import Settings
from lcp_gateway.purchase.money import Msat

NameArgument = Annotated[str, typer.Argument(metavar="NAME", show_default=False)]

app = command_group("Keep the accounts of customers.")


@app.command()
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def create(
    name: NameArgument,
    config: Path | None,
    flags: Mapping[str, object],
    *,
    json: JsonOption = False,
) -> int:
    """Make an account with nothing on it."""
    settings = load_or_complain(flags, config).settings

    async def work() -> Account:
        async with opened_books(settings) as books:
            return await books.accounts.create(name, actor=actor(), at=datetime.now(UTC))

    print_document(account_document(asyncio.run(work())), json=json)
    return 0


@app.command("list")
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def list_accounts(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted ones as well.")] = False,
    limit: LimitOption = USUAL_LIMIT,
    after: AfterOption = None,
    json: JsonOption = False,
) -> int:
    """List accounts and what is on them, the newest first."""
    settings = load_or_complain(flags, config).settings

    async def read() -> Listing[Account]:
        async with opened_books(settings) as books:
            return await gathered(
                lambda most, following: books.accounts.page(
                    limit=most, after=following, with_deleted=deleted
                ),
                limit,
                after,
            )

    print_listing(asyncio.run(read()), ACCOUNT_HEADINGS, account_row, account_document, json=json)
    return 0


@app.command()
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def show(
    account_id: AccountArgument,
    config: Path | None,
    flags: Mapping[str, object],
    *,
    json: JsonOption = False,
) -> int:
    """Print one account and what is on it."""
    account = _account(load_or_complain(flags, config).settings, account_id)
    print_document(account_document(account), json=json)
    return 0


@app.command()
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def rename(
    account_id: AccountArgument,
    name: NameArgument,
    config: Path | None,
    flags: Mapping[str, object],
    *,
    json: JsonOption = False,
) -> int:
    """Give an account another name."""
    settings = load_or_complain(flags, config).settings

    async def work() -> Account:
        async with opened_books(settings) as books:
            await books.accounts.rename(account_id, name, actor=actor(), at=datetime.now(UTC))
            return await books.account(account_id)

    print_document(account_document(asyncio.run(work())), json=json)
    return 0


@app.command()
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def delete(
    account_id: AccountArgument,
    config: Path | None,
    flags: Mapping[str, object],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    json: JsonOption = False,
) -> int:
    """Forget whose account it was and revoke its keys. The books keep its bare id, and what was left of its balance."""
    settings = load_or_complain(flags, config).settings
    account = _account(settings, account_id)
    if account.deleted_at is not None:
        raise CommandFailed("the account was deleted before; nothing was changed")
    left = amount(account.balance.balance_msat)
    confirm(f"Delete {account.id} ({plain(account.name)}) with {left}, for good?", yes=yes)

    async def work() -> Account:
        async with opened_books(settings) as books:
            await books.accounts.delete(account_id, actor=actor(), at=datetime.now(UTC))
            return await books.account(account_id)

    print_document(account_document(asyncio.run(work())), json=json)
    return 0


# A negative amount looks like an option, and is none that anybody knows.
@app.command(context_settings={"ignore_unknown_options": True})
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def adjust(
    account_id: AccountArgument,
    amount_msat: Annotated[int, typer.Argument(metavar="AMOUNT_MSAT", show_default=False)],
    config: Path | None,
    flags: Mapping[str, object],
    *,
    reason: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Why; it is kept in the log.", show_default=False),
    ],
    json: JsonOption = False,
) -> int:
    """Give an account an amount by hand, or take it where it is negative: never more than is there and not held."""
    settings = load_or_complain(flags, config).settings

    async def work() -> Balance:
        async with opened_books(settings) as books:
            return await books.ledger.adjust(
                account_id,
                Msat(amount_msat),
                reason=reason,
                actor=actor(),
                at=datetime.now(UTC),
            )

    print_document({"id": account_id, **balance_document(asyncio.run(work()))}, json=json)
    return 0


@app.command()
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def statement(
    account_id: AccountArgument,
    config: Path | None,
    flags: Mapping[str, object],
    *,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help=f"At most so many; {USUAL_LIMIT} if not given, with --csv all."
        ),
    ] = None,
    after: AfterNumberOption = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    json: JsonOption = False,
) -> int:
    """Print what moved an account's balance, the newest first."""
    if csv and json:
        raise CommandFailed("either --csv or --json, not both", exit_code=USAGE_ERROR)
    settings = load_or_complain(flags, config).settings
    if csv:
        print_csv(settings, account_id, limit=limit, after=after)
    else:
        print_statement(settings, account_id, limit=limit or USUAL_LIMIT, after=after, json=json)
    return 0


@app.command()
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def audit(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    json: JsonOption = False,
) -> int:
    """Look whether all the books agree with one another; ends with 1 when something is wrong."""
    settings = load_or_complain(flags, config).settings

    async def read() -> Audit:
        async with opened_books(settings) as books:
            return await books.ledger.audit()

    found = asyncio.run(read())
    if json:
        print_json(audit_document(found))
    else:
        _print_audit(found)
    return 0 if found.ok else RUNTIME_ERROR


@app.command()
@setting_flags(also=JOURNAL_SETTINGS, groups=())
def log(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    limit: LimitOption = USUAL_LIMIT,
    after: AfterNumberOption = None,
    json: JsonOption = False,
) -> int:
    """List what administrators did, the latest first."""
    settings = load_or_complain(flags, config).settings

    async def read() -> Listing[AdminAct]:
        async with opened_books(settings) as books:
            return await gathered(
                lambda most, following: books.acts.page(limit=most, after=following),
                limit,
                None if after is None else str(after),
            )

    print_listing(asyncio.run(read()), ACT_HEADINGS, act_row, act_document, json=json)
    return 0


def _account(settings: Settings, account_id: str) -> Account:
    async def read() -> Account:
        async with opened_books(settings) as books:
            return await books.account(account_id)

    return asyncio.run(read())


def _print_audit(found: Audit) -> None:
    document = audit_document(found)
    del document["ok"], document["problems"], document["books"]
    print_pairs(
        [
            *pairs(document),
            *((f"book {name}", amount(msat)) for name, msat in sorted(found.books.items())),
        ]
    )
    for problem in found.problems:
        typer.echo(f"wrong: {plain(problem)}")
    typer.echo("the books agree" if found.ok else "the books do NOT agree")
