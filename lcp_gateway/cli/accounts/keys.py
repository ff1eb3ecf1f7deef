"""``lcp-gateway keys``: the keys of accounts, each shown once, when it is made."""

from datetime import UTC, datetime
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
from lcp_gateway.cli.accounts.documents import (
    KEY_HEADINGS,
    gather_pages,
    key_document,
    key_row,
    print_document,
    print_listing,
)
from lcp_gateway.cli.books.journal import read_age
from lcp_gateway.cli.options import JsonOption, command_group, utf8_text, utf8_texts
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.purchase.money import Msat

_USUAL_SCOPES = tuple(sorted(KeyRules().scopes))
_SCOPES = ", ".join(Scope)


def _limit(flag: str, what: str) -> object:
    return typer.Option(flag, min=0, metavar="N", help=f"{what}; 0 sets no limit of its own.")


app = command_group("Make and revoke the keys of accounts.")


@app.command()
@with_books()
async def create(
    books: AccountBooks,
    account_id: AccountArgument,
    *,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What it is called.", callback=utf8_text)
    ] = "key",
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            "--scope",
            metavar="SCOPE",
            help=f"What it may be used for: {_SCOPES}; may be repeated. {' and '.join(_USUAL_SCOPES)} if not given.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Good for this model alone; may be repeated.",
            callback=utf8_texts,
        ),
    ] = None,
    max_price_msat: Annotated[int, _limit("--max-price-msat", "What one purchase may cost")] = 0,
    requests_per_minute: Annotated[
        int, _limit("--requests-per-minute", "Requests in one minute")
    ] = 0,
    tokens_per_minute: Annotated[int, _limit("--tokens-per-minute", "Tokens in one minute")] = 0,
    budget_hour_msat: Annotated[
        int, _limit("--budget-hour-msat", "What may be spent in a calendar hour (UTC)")
    ] = 0,
    budget_day_msat: Annotated[int, _limit("--budget-day-msat", "The same in a day")] = 0,
    budget_month_msat: Annotated[int, _limit("--budget-month-msat", "The same in a month")] = 0,
    concurrent_jobs: Annotated[int, _limit("--concurrent-jobs", "Jobs at one time")] = 0,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN", help='Good until then: "2027-01-31", or "30d" for days from now.'
        ),
    ] = None,
    agent: Annotated[
        bool, typer.Option("--agent", help="For a tool that takes nothing but a URL.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Make a key of an account, and print it: this once, for it is not kept."""
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
        expires_at=_until(expires, now),
    )
    kind = KeyKind.AGENT if agent else KeyKind.API
    made = await books.keys.create(
        account_id, name=name, actor=actor(), at=now, rules=rules, kind=kind
    )
    document: Document = {"key": made.text, **key_document(made.record)}
    if agent:
        document["agent_path"] = f"/api/agent/{made.text}/v1"
    print_document(document, json=json)
    if not json:
        typer.echo("the key is shown now and never again: what is kept of it cannot be turned back")
    return 0


@app.command("list")
@with_books()
async def list_keys(
    books: AccountBooks,
    *,
    account_id: OptionalAccountArgument = None,
    limit: LimitOption = USUAL_LIMIT,
    after: AfterOption = None,
    json: JsonOption = False,
) -> int:
    """List the keys of an account, or all, the newest first."""
    if account_id is not None:
        await books.account(account_id)
    found = await gather_pages(
        lambda most, following: books.keys.page(account_id, limit=most, after=following),
        limit,
        after,
    )
    now = datetime.now(UTC)
    print_listing(found, KEY_HEADINGS, lambda record: key_row(record, now), key_document, json=json)
    return 0


@app.command()
@with_books()
async def show(books: AccountBooks, key_id: KeyArgument, *, json: JsonOption = False) -> int:
    """Print what a key may do: everything that is known of it."""
    _print(await books.keys.get(key_id), json=json)
    return 0


@app.command()
@with_books()
async def revoke(books: AccountBooks, key_id: KeyArgument, *, json: JsonOption = False) -> int:
    """Let a key in no more, for good. Gateways that run know of it within a second."""
    _print(await books.keys.revoke(key_id, actor=actor(), at=datetime.now(UTC)), json=json)
    return 0


def _print(record: KeyRecord | None, *, json: bool) -> None:
    if record is None:
        raise CommandFailed("there is no such key")
    print_document(key_document(record), json=json)


def _until(text: str | None, now: datetime) -> datetime | None:
    """Read a date or a time (UTC where it names no zone), or an age, which is counted on from ``now``.

    Raises:
        CommandFailed: it is none of these, or is over.
    """
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text.strip())
        at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        try:
            at = now + read_age(text)
        except (CommandFailed, OverflowError):
            raise CommandFailed(
                f'--expires: {text!r:.40} is no time: write "2027-01-31", "2027-01-31T12:00Z" or "30d"',
                exit_code=USAGE_ERROR,
            ) from None
    if at <= now:
        raise CommandFailed("--expires: this time is over", exit_code=USAGE_ERROR)
    return at
