"""The options that say which purchases a command is about."""

import inspect
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

import typer

from lcp_gateway.cli.journal import read_time
from lcp_gateway.cli.options import a_text
from lcp_gateway.purchase.refunds import Refund
from lcp_gateway.purchase.states import State
from lcp_gateway.store.records import Filter


def purchase_filter(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command options for a choice of purchases; it is called with what they come to as ``which``."""
    before = inspect.signature(command, eval_str=True).parameters
    options = inspect.signature(_chosen, eval_str=True).parameters

    def with_options(**values: object) -> int:
        chosen = {name: values.pop(name) for name in options}
        # typer has read them by the types that stand at `_chosen`.
        return command(which=_chosen(**chosen), **values)  # type: ignore[arg-type]

    with_options.__doc__ = command.__doc__
    with_options.__name__ = command.__name__
    own = [parameter for name, parameter in before.items() if name != "which"]
    with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*own, *options.values()]
    )
    return with_options


def _chosen(
    *,
    state: Annotated[
        list[State] | None,
        typer.Option("--state", metavar="STATE", help="In this state; may be repeated."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Of this model.", callback=a_text),
    ] = None,
    peer: Annotated[
        str | None,
        typer.Option("--peer", metavar="PEER_ID", help="From this peer.", callback=a_text),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY_ID", help="With this key.", callback=a_text),
    ] = None,
    refund: Annotated[
        list[Refund] | None,
        typer.Option(
            "--refund",
            metavar="given|withheld|granted|denied",
            help="Undelivered, with this become of the charge; may be repeated.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="WHEN", help='Not before: "2026-01-31", or "7d" for days ago.'
        ),
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="WHEN", help="Before.")] = None,
) -> Filter:
    now = datetime.now(UTC)
    return Filter(
        states=state or None,
        model=model,
        peer_id=peer.lower() if peer else None,
        key_id=key,
        since=read_time(since, now),
        until=read_time(until, now),
        refunds=refund or None,
    )
