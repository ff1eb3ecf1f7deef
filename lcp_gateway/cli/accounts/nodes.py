"""``lcp-gateway nodes``: the nodes of accounts, what they earned, and the operator's terms."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from lcp_gateway.accounts.nodes import Earned, NodeRecord
from lcp_gateway.cli.accounts.books import (
    USUAL_LIMIT,
    AccountBooks,
    AfterOption,
    FromAccountOption,
    LimitOption,
    WhyOption,
    actor,
    with_books,
)
from lcp_gateway.cli.accounts.documents import print_document, print_listing
from lcp_gateway.cli.options import JsonOption, command_group, utf8_text
from lcp_gateway.cli.output import Columns, format_time
from lcp_gateway.constants import NODE_PREFIX
from lcp_gateway.purchase.money import PPM_PER_PERCENT, Msat, format_sat, to_ppm

NodeArgument = Annotated[str, typer.Argument(metavar="NODE_ID", show_default=False, callback=utf8_text)]

_NONE = Earned(0, Msat(0), Msat(0))

app = command_group("List the nodes of accounts and what they earned, set a commission, keep one out.")


@app.command("list")
@with_books()
async def list_nodes(
    books: AccountBooks,
    *,
    account: FromAccountOption = None,
    limit: LimitOption = USUAL_LIMIT,
    after: AfterOption = None,
    json: JsonOption = False,
) -> None:
    """List the nodes of accounts, the newest first."""
    earned = await books.nodes.earned(account)

    def of(node: NodeRecord) -> Earned:
        return earned.get(NODE_PREFIX + node.id, _NONE)

    columns: Columns[NodeRecord] = {
        "id": lambda node: node.id,
        "account": lambda node: node.account_id,
        "commission": _commission,
        "state": lambda node: "frozen" if node.is_frozen else "good",
        "delivered": lambda node: str(of(node).delivered),
        "earned": lambda node: format_sat(of(node).earned_msat),
        "commissions": lambda node: format_sat(of(node).commission_msat),
        "connected": lambda node: format_time(node.connected_at),
    }
    page = partial(books.nodes.page, account)
    await print_listing(page, columns, lambda node: _document(node, of(node)), limit=limit, after=after, json=json)


@app.command()
@with_books()
async def commission(
    books: AccountBooks,
    node_id: NodeArgument,
    percent: Annotated[float, typer.Argument(metavar="PERCENT", min=0, max=100, show_default=False)],
    *,
    why: WhyOption,
    json: JsonOption = False,
) -> None:
    """Set the commission of a node; it holds for requests from now on."""
    changed = await books.nodes.set(
        node_id, commission_ppm=to_ppm(percent), reason=why, actor=actor(), at=datetime.now(UTC)
    )
    print_document(_document(changed, _NONE), json=json)


@app.command()
@with_books()
async def freeze(books: AccountBooks, node_id: NodeArgument, *, why: WhyOption, json: JsonOption = False) -> None:
    """Keep a node out; a running gateway ends its connection within seconds."""
    await _freeze(books, node_id, frozen=True, why=why, json=json)


@app.command()
@with_books()
async def unfreeze(books: AccountBooks, node_id: NodeArgument, *, why: WhyOption, json: JsonOption = False) -> None:
    """Let a node in again."""
    await _freeze(books, node_id, frozen=False, why=why, json=json)


async def _freeze(books: AccountBooks, node_id: str, *, frozen: bool, why: str, json: bool) -> None:
    changed = await books.nodes.set(node_id, frozen=frozen, reason=why, actor=actor(), at=datetime.now(UTC))
    print_document(_document(changed, _NONE), json=json)


def _commission(node: NodeRecord) -> str:
    return "usual" if node.commission_ppm is None else f"{node.commission_ppm / PPM_PER_PERCENT:g} %"


def _document(node: NodeRecord, earned: Earned) -> dict[str, object]:
    return {
        "id": node.id,
        "account_id": node.account_id,
        "name": node.name,
        "key_id": node.key_id,
        "commission": _commission(node),
        "frozen": node.is_frozen,
        "delivered": earned.delivered,
        "earned_msat": earned.earned_msat,
        "commission_msat": earned.commission_msat,
        "created_at": format_time(node.created_at),
        "connected_at": format_time(node.connected_at),
    }
