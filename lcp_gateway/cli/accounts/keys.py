"""``lcp-gateway keys``: the keys of accounts; each is shown once, when it is made."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from lcp_gateway.accounts.callers import KeyRules, Scope
from lcp_gateway.accounts.documents import Document
from lcp_gateway.accounts.models import KeyKind, KeyRecord
from lcp_gateway.cli.accounts.books import (
    USUAL_LIMIT,
    AccountArgument,
    AccountBooks,
    AfterOption,
    KeyArgument,
    LimitOption,
    OptionalAccountArgument,
    actor,
    with_books,
)
from lcp_gateway.cli.accounts.documents import KEY_COLUMNS, key_document, print_document, print_listing
from lcp_gateway.cli.books.journal import read_expiry
from lcp_gateway.cli.options import JsonOption, command_group, text_option
from lcp_gateway.cli.output import CommandFailed
from lcp_gateway.purchase.money import Msat

_USUAL_SCOPES = tuple(sorted(KeyRules().scopes))
_SCOPES = ", ".join(Scope)


app = command_group("Make and revoke the keys of accounts.")


def _limit(subject: str) -> object:
    return typer.Option(min=0, metavar="N", help=f"{subject}; 0 sets no limit of its own.")


@app.command()
@with_books()
async def create(
    books: AccountBooks,
    account_id: AccountArgument,
    *,
    name: Annotated[str, text_option("--name", metavar="NAME", help="Its name, for display.")] = "key",
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help=f"Its permissions: {_SCOPES}; may be repeated. {' and '.join(_USUAL_SCOPES)} if not given.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        text_option("--model", metavar="MODEL", help="Only this model may be bought with it; may be repeated."),
    ] = None,
    max_price_msat: Annotated[int, _limit("The price of one purchase")] = 0,
    requests_per_minute: Annotated[int, _limit("Requests in one minute")] = 0,
    tokens_per_minute: Annotated[int, _limit("Tokens in one minute")] = 0,
    budget_hour_msat: Annotated[int, _limit("The spending in a calendar hour (UTC)")] = 0,
    budget_day_msat: Annotated[int, _limit("The spending in a day (UTC)")] = 0,
    budget_month_msat: Annotated[int, _limit("The spending in a month (UTC)")] = 0,
    concurrent_jobs: Annotated[int, _limit("Jobs at one time")] = 0,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help='Its expiry: "2027-01-31", or "30d" for days from now.')
    ] = None,
    agent: Annotated[bool, typer.Option("--agent", help="For a tool that takes only a URL.")] = False,
    json: JsonOption = False,
) -> None:
    """Make a key of an account, and print it: only now, since its text is not stored."""
    now = datetime.now(UTC)
    rules = KeyRules(
        scopes=frozenset(scope or _USUAL_SCOPES),
        models=frozenset(each.strip() for each in model or ()),
        max_price_msat=Msat(max_price_msat),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        budget_hour_msat=Msat(budget_hour_msat),
        budget_day_msat=Msat(budget_day_msat),
        budget_month_msat=Msat(budget_month_msat),
        concurrent_jobs=concurrent_jobs,
        expires_at=None if expires is None else read_expiry(expires, now),
    )
    kind = KeyKind.AGENT if agent else KeyKind.API
    made = await books.keys.create(account_id, name=name, actor=actor(), at=now, rules=rules, kind=kind)
    document: Document = {"key": made.text, **key_document(made.record)}
    if agent:
        document["agent_path"] = f"/api/agent/{made.text}/v1"
    print_document(document, json=json)
    if not json:
        typer.echo("the key is shown now and never again: only a hash of it is stored")


@app.command("list")
@with_books()
async def list_keys(
    books: AccountBooks,
    *,
    account_id: OptionalAccountArgument = None,
    limit: LimitOption = USUAL_LIMIT,
    after: AfterOption = None,
    json: JsonOption = False,
) -> None:
    """List the keys of an account, or all, the newest first."""
    if account_id is not None:
        await books.account(account_id)
    page = partial(books.keys.page, account_id)
    await print_listing(page, KEY_COLUMNS, key_document, limit=limit, after=after, json=json)


@app.command()
@with_books()
async def show(books: AccountBooks, key_id: KeyArgument, *, json: JsonOption = False) -> None:
    """Print a key with its permissions and limits."""
    _print(await books.keys.get(key_id), json=json)


@app.command()
@with_books()
async def revoke(books: AccountBooks, key_id: KeyArgument, *, json: JsonOption = False) -> None:
    """Revoke a key for good. Running gateways refuse it within a second."""
    _print(await books.keys.revoke(key_id, actor=actor(), at=datetime.now(UTC)), json=json)


def _print(record: KeyRecord | None, *, json: bool) -> None:
    if record is None:
        raise CommandFailed("there is no such key")
    print_document(key_document(record), json=json)
