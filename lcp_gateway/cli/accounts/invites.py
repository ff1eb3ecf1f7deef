"""``lcp-gateway invites``: codes with which persons may open an account in the console by themselves."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from lcp_gateway.accounts.documents import Document
from lcp_gateway.accounts.invites import USUAL_LIFETIME
from lcp_gateway.cli.accounts.books import USUAL_LIMIT, AccountBooks, AfterOption, LimitOption, actor, an_id, with_books
from lcp_gateway.cli.accounts.documents import INVITE_COLUMNS, invite_document, print_document, print_listing
from lcp_gateway.cli.books.journal import read_expiry
from lcp_gateway.cli.options import JsonOption, command_group, text_option
from lcp_gateway.cli.output import CommandFailed

app = command_group('Make and revoke invites, with which persons open accounts (registration = "invite").')


@app.command()
@with_books()
async def create(
    books: AccountBooks,
    *,
    note: Annotated[str, text_option("--note", metavar="TEXT", help="A note to yourself, for the list.")] = "",
    expires: Annotated[
        str, typer.Option(metavar="WHEN", help='Its expiry: "2027-01-31", or "30d" for days from now.')
    ] = f"{USUAL_LIFETIME.days}d",
    json: JsonOption = False,
) -> None:
    """Make an invite, and print its code: only now, since it is not stored."""
    now = datetime.now(UTC)
    expires_at = read_expiry(expires, now)
    made = await books.registrations.create_invite(note=note, expires_at=expires_at, actor=actor(), at=now)
    document: Document = {"invite": made.code, **invite_document(made.record)}
    print_document(document, json=json)
    if not json:
        typer.echo("the invite is shown now and never again: only a hash of it is stored")


@app.command("list")
@with_books()
async def list_invites(
    books: AccountBooks, *, limit: LimitOption = USUAL_LIMIT, after: AfterOption = None, json: JsonOption = False
) -> None:
    """List invites, the newest first."""
    page = books.registrations.invites
    await print_listing(page, INVITE_COLUMNS, invite_document, limit=limit, after=after, json=json)


@app.command()
@with_books()
async def revoke(
    books: AccountBooks,
    invite_id: Annotated[str, typer.Argument(metavar="INVITE_ID", show_default=False, callback=an_id)],
    *,
    json: JsonOption = False,
) -> None:
    """Revoke an invite. An account that was opened with it stays."""
    found = await books.registrations.revoke_invite(invite_id, actor=actor(), at=datetime.now(UTC))
    if found is None:
        raise CommandFailed("there is no such invite")
    print_document(invite_document(found), json=json)
