"""``lcp-gateway withdrawals``: what customers pay out, and the operator's decisions on it."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from lcp_gateway.accounts.withdrawal_states import WithdrawalState
from lcp_gateway.accounts.withdrawals import WithdrawalNotFound
from lcp_gateway.cli.accounts.books import (
    USUAL_LIMIT,
    AccountArgument,
    AccountBooks,
    AfterOption,
    FromAccountOption,
    LimitOption,
    WhyOption,
    WithdrawalArgument,
    actor,
    with_books,
)
from lcp_gateway.cli.accounts.documents import (
    WITHDRAWAL_COLUMNS,
    format_amount,
    print_document,
    print_listing,
    withdrawal_document,
)
from lcp_gateway.cli.options import JsonOption, YesOption, command_group, text_option
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed, confirm

_STATES = [state for state in WithdrawalState if state is not WithdrawalState.REQUESTED]

app = command_group("List the withdrawals of customers, approve them, and end those whose outcome is unknown.")


def _state(word: str | None) -> WithdrawalState | None:
    if word is None:
        return None
    if word not in _STATES:
        raise CommandFailed(f"--status may be {', '.join(_STATES)}", exit_code=USAGE_ERROR)
    return WithdrawalState(word)


@app.command("list")
@with_books()
async def list_withdrawals(
    books: AccountBooks,
    *,
    account: FromAccountOption = None,
    status: Annotated[str | None, text_option("--status", metavar="STATE", help="In this state only.")] = None,
    limit: LimitOption = USUAL_LIMIT,
    after: AfterOption = None,
    json: JsonOption = False,
) -> None:
    """List withdrawals, the newest first."""
    page = partial(books.withdrawals.page, account_id=account, state=_state(status))
    await print_listing(page, WITHDRAWAL_COLUMNS, withdrawal_document, limit=limit, after=after, json=json)


@app.command()
@with_books()
async def show(books: AccountBooks, withdrawal_id: WithdrawalArgument, *, json: JsonOption = False) -> None:
    """Print one withdrawal."""
    found = await books.withdrawals.get(withdrawal_id)
    if found is None:
        raise WithdrawalNotFound
    print_document(withdrawal_document(found), json=json)


@app.command()
@with_books()
async def approve(
    books: AccountBooks, withdrawal_id: WithdrawalArgument, *, why: WhyOption, json: JsonOption = False
) -> None:
    """Approve a withdrawal that waits for it; a running gateway pays it within seconds."""
    await _decide(books, withdrawal_id, approves=True, why=why, json=json)


@app.command()
@with_books()
async def deny(
    books: AccountBooks, withdrawal_id: WithdrawalArgument, *, why: WhyOption, json: JsonOption = False
) -> None:
    """Deny a withdrawal that has not been paid; what it holds is released."""
    await _decide(books, withdrawal_id, approves=False, why=why, json=json)


@app.command()
@with_books()
async def resolve(
    books: AccountBooks,
    withdrawal_id: WithdrawalArgument,
    outcome: Annotated[str, typer.Argument(metavar="settled|failed", show_default=False)],
    *,
    why: WhyOption,
    fee_msat: Annotated[int, typer.Option(min=0, metavar="N", help="The routing fee of a settled one.")] = 0,
    yes: YesOption = False,
    json: JsonOption = False,
) -> None:
    """End a withdrawal by hand whose outcome is unknown and that no lnd can tell any more.

    Look at the node first (lncli trackpayment HASH): a payment that is in flight may settle later.
    """
    if outcome not in {"settled", "failed"}:
        raise CommandFailed("the outcome is settled or failed", exit_code=USAGE_ERROR)
    if fee_msat and outcome == "failed":
        raise CommandFailed("--fee-msat: only a settled withdrawal has a fee", exit_code=USAGE_ERROR)
    found = await books.withdrawals.get(withdrawal_id)
    if found is None:
        raise WithdrawalNotFound
    question = f"record that {format_amount(found.amount_msat)} were {'paid' if outcome == 'settled' else 'not paid'}?"
    confirm(question, yes=yes)
    resolved, _ = await books.withdrawals.resolve(
        withdrawal_id, settled=outcome == "settled", fee_msat=fee_msat, reason=why, actor=actor(), at=datetime.now(UTC)
    )
    print_document(withdrawal_document(resolved), json=json)


@app.command()
@with_books()
async def freeze(books: AccountBooks, account_id: AccountArgument, *, why: WhyOption) -> None:
    """Keep an account from withdrawing; withdrawals that are being paid go on."""
    await _freeze(books, account_id, frozen=True, why=why)


@app.command()
@with_books()
async def unfreeze(books: AccountBooks, account_id: AccountArgument, *, why: WhyOption) -> None:
    """Let an account withdraw again."""
    await _freeze(books, account_id, frozen=False, why=why)


async def _decide(books: AccountBooks, withdrawal_id: str, *, approves: bool, why: str, json: bool) -> None:
    decided, _ = await books.withdrawals.decide(
        withdrawal_id, approve=approves, reason=why, actor=actor(), at=datetime.now(UTC)
    )
    print_document(withdrawal_document(decided), json=json)


async def _freeze(books: AccountBooks, account_id: str, *, frozen: bool, why: str) -> None:
    changed = await books.withdrawals.freeze(account_id, frozen=frozen, reason=why, actor=actor(), at=datetime.now(UTC))
    now = "frozen" if frozen else "possible"
    typer.echo(f"withdrawals of {account_id} are {now}{'' if changed else ' already'}")
