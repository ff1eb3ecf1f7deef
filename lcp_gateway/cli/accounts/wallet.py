"""``lcp-gateway wallet``: the balances of customers and their top-ups."""

import asyncio
import io
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.accounts.documents import balance_document
from lcp_gateway.accounts.models import AccountNotFound, Topup, check_text
from lcp_gateway.accounts.repositories import InvoiceServiceUnavailable
from lcp_gateway.accounts.wallet import TopupRules, Wallet
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
    TOPUP_COLUMNS,
    format_amount,
    print_document,
    print_listing,
    print_statement,
    topup_document,
)
from lcp_gateway.cli.lnd import INVOICE_SETTINGS, OWN_NODE_SETTINGS, opened_invoice_issuer, own_node
from lcp_gateway.cli.options import JsonOption, command_group, load_settings, setting_flags, text_option
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed, print_json
from lcp_gateway.config import Settings
from lcp_gateway.constants import MSAT_PER_SAT
from lcp_gateway.lightning.lnd.records import LndError
from lcp_gateway.upstream_status import UpstreamStatus

# Where letters are dark on a light ground the code would be inverted, and many cameras cannot read such a code.
_WHITE_ON_BLACK, _USUAL_COLOURS = "\033[97;40m", "\033[0m"
_NO_WALLET = frozenset({UpstreamStatus.UNIMPLEMENTED, UpstreamStatus.UNAVAILABLE})


app = command_group("Show the wallets of accounts, and top them up.")


@app.command()
@with_books()
async def show(books: AccountBooks, account_id: AccountArgument, *, json: JsonOption = False) -> None:
    """Print the balance of an account, the part that open purchases hold, and the number of invoices that can be paid."""
    account = await books.account(account_id)
    payable = await books.topups.open_count(datetime.now(UTC), account_id=account_id)
    document = {"account_id": account_id, **balance_document(account.balance), "open_topups": payable}
    print_document(document, json=json)


@app.command()
@with_books()
async def topups(
    books: AccountBooks,
    account_id: AccountArgument,
    *,
    limit: LimitOption = USUAL_LIMIT,
    after: AfterOption = None,
    json: JsonOption = False,
) -> None:
    """List the top-ups of an account, the newest first."""
    await books.account(account_id)
    page = partial(books.topups.page, account_id)
    await print_listing(page, TOPUP_COLUMNS, topup_document, limit=limit, after=after, json=json)


@app.command()
@with_books()
async def transactions(
    books: AccountBooks,
    account_id: AccountArgument,
    *,
    limit: LimitOption = USUAL_LIMIT,
    after: AfterNumberOption = None,
    json: JsonOption = False,
) -> None:
    """List the movements of an account's balance, the newest first."""
    await print_statement(books, account_id, limit=limit, after=after, json=json)


@app.command()
@with_books(also=INVOICE_SETTINGS)
async def topup(
    books: AccountBooks,
    settings: Settings,
    account_id: AccountArgument,
    amount_sat: Annotated[int, typer.Argument(metavar="AMOUNT_SAT", min=1, show_default=False)],
    *,
    memo: Annotated[str, text_option(metavar="TEXT", help="The payer can read it in the invoice.")] = "",
    json: JsonOption = False,
) -> None:
    """Make an invoice that tops an account up. A running gateway credits it when it is paid."""
    made = await _top_up(settings, books, account_id, amount_sat, memo)
    print_document(topup_document(made), json=json)
    if sys.stdout.isatty() and not json:
        _draw(made.payment_request)


@app.command()
@setting_flags(also=OWN_NODE_SETTINGS, groups=())
def pay(
    payment_request: Annotated[str, typer.Argument(metavar="BOLT11", show_default=False)],
    config: Path | None,
    flags: Mapping[str, object],
    *,
    json: JsonOption = False,
) -> int:
    """Pay an invoice of a simulated node, as a customer would in a demonstration. No real money moves."""
    if not payment_request.isascii():
        raise CommandFailed("this is not a payment request", exit_code=USAGE_ERROR)
    node = own_node(load_settings(flags, config).settings)
    from lcp_gateway.lightning.lnd import demo  # noqa: PLC0415 - loads gRPC
    from lcp_gateway.lightning.lnd.stubs import LndNotInstalled  # noqa: PLC0415 - as above

    try:
        paid = asyncio.run(demo.pay(node, payment_request))
    except (LndNotInstalled, demo.DemoPaymentFailed) as error:
        raise CommandFailed(str(error)) from None
    except LndError as error:
        if error.status in _NO_WALLET:
            raise CommandFailed(
                f"there is no simulated node at {node} ({error.status}): only the wallet of one pays, and no real money"
            ) from None
        if error.status == UpstreamStatus.DEADLINE_EXCEEDED:
            raise CommandFailed(f"the node at {node} did not answer in time: it may be paid all the same") from None
        raise CommandFailed(f"the node at {node}: {error}") from None
    if json:
        print_json({"amount_msat": paid.amount_msat, "node": node, "real_money": False})
    else:
        typer.echo(f"paid {format_amount(paid.amount_msat)} out of the node's play wallet; no real money moved")
    return 0


@app.command()
@setting_flags(also=OWN_NODE_SETTINGS, groups=())
def invoice(
    amount_sat: Annotated[int, typer.Argument(metavar="AMOUNT_SAT", min=1, show_default=False)],
    config: Path | None,
    flags: Mapping[str, object],
) -> int:
    """Make an invoice of the customer of a simulated node, to withdraw to in a demonstration. No real money moves."""
    node = own_node(load_settings(flags, config).settings)
    from lcp_gateway.lightning.lnd import demo  # noqa: PLC0415 - loads gRPC
    from lcp_gateway.lightning.lnd.stubs import LndNotInstalled  # noqa: PLC0415 - as above

    try:
        typer.echo(asyncio.run(demo.make_invoice(node, amount_sat * MSAT_PER_SAT)))
    except LndNotInstalled as error:
        raise CommandFailed(str(error)) from None
    except LndError as error:
        raise CommandFailed(f"there is no simulated node at {node}, or it refuses: {error}") from None
    return 0


async def _top_up(settings: Settings, books: AccountBooks, account_id: str, amount_sat: int, memo: str) -> Topup:
    # Checked before lnd is asked: an invoice that the store then refuses would be made for nothing.
    memo = check_text(memo, "memo", may_be_empty=True)
    if (await books.account(account_id)).deleted_at is not None:
        raise AccountNotFound
    rules = TopupRules(
        settings.topup_min_msat,
        settings.topup_max_msat,
        max(1, round(settings.topup_expiry_s)),
        settings.topups_open_max,
    )
    async with opened_invoice_issuer(settings) as issuer:
        wallet = Wallet(books.ledger, books.topups, issuer, rules)
        try:
            made = await wallet.top_up(account_id, amount_sat * MSAT_PER_SAT, memo)
        except InvoiceServiceUnavailable as error:
            raise CommandFailed(str(error)) from None
    await books.acts.add(
        "topup.create", made.id, actor=actor(), at=made.created_at, account_id=account_id, amount_msat=made.amount_msat
    )
    return made


def _draw(payment_request: str) -> None:
    """Draw an invoice as a QR code; one that is too long for that stays a text."""
    import segno  # noqa: PLC0415 - only a terminal needs it

    try:
        # In upper case it is written in 5.5 bits a character, and the code fits into 80 columns.
        code = segno.make_qr(f"lightning:{payment_request}".upper(), error="l")
    except segno.DataOverflowError:
        return
    drawn = io.StringIO()
    code.terminal(out=drawn, compact=True)
    for line in drawn.getvalue().splitlines():
        sys.stdout.write(f"{_WHITE_ON_BLACK}{line}{_USUAL_COLOURS}\n")
