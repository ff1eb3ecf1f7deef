"""Options that commands of every kind share."""

from typing import Annotated

import typer

from lcp_gateway.cli.outcome import USAGE_ERROR, CommandFailed

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


def a_text(param: typer.CallbackParam, text: str | None) -> str | None:
    """Let a text of the command line pass that is one; for an option that is looked up or kept.

    Raises:
        CommandFailed: it holds bytes that are no UTF-8, which no database and no request takes.
    """
    _check(param, text)
    return text


def texts(param: typer.CallbackParam, each: list[str] | None) -> list[str] | None:
    """Do the same for an option that may be repeated."""
    for text in each or ():
        _check(param, text)
    return each


def _check(param: typer.CallbackParam, text: str | None) -> None:
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        name = param.opts[0]
        shown = name if name.startswith("-") else name.upper()
        raise CommandFailed(f"{shown}: is not UTF-8 text", exit_code=USAGE_ERROR) from None
