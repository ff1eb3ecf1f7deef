"""Lists that come in pages: how they are gathered; and how they, and single documents, are printed."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from lcp_gateway.accounts.records import Listing
from lcp_gateway.cli.account_forms import pairs
from lcp_gateway.cli.outcome import complain
from lcp_gateway.cli.output import print_json, print_pairs, print_table

T = TypeVar("T")


async def gathered(
    page: Callable[[int, str | None], Awaitable[Listing[T]]], limit: int, after: str | None
) -> Listing[T]:
    """Give up to ``limit`` items; ``page`` takes limit and after, and may give fewer at a time."""
    items: list[T] = []
    while True:
        found = await page(limit - len(items), after)
        items += found.items
        after = found.after
        if after is None or len(items) >= limit:
            return Listing(items, after)


def print_listing(
    found: Listing[T],
    headings: Sequence[str],
    row: Callable[[T], Sequence[str]],
    document: Callable[[T], object],
    *,
    json: bool,
) -> None:
    """Print what was found as a table, or as a JSON array, and say on standard error when there is more."""
    if json:
        print_json([document(item) for item in found.items])
    else:
        print_table(headings, map(row, found.items))
    tell_more(found.after)


def print_document(document: Mapping[str, object], *, json: bool) -> None:
    """Print one document, in words or as a JSON object."""
    if json:
        print_json(document)
    else:
        print_pairs(pairs(document))


def tell_more(after: str | None) -> None:
    """Say how to get at what follows, where something does."""
    if after is not None:
        complain(f"there are more: see --limit, or go on with --after {after}")
