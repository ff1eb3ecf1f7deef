"""Asking the person at the terminal before something is done for good."""

import sys

import typer

from lcp_gateway.cli.outcome import USAGE_ERROR, CommandFailed


def confirm(question: str, *, yes: bool) -> None:
    """Go on if ``yes`` was given with the command, or is answered.

    Raises:
        CommandFailed: nobody is there to be asked.
        typer.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandFailed("nobody is there to confirm it: add --yes", exit_code=USAGE_ERROR)
    typer.confirm(question, abort=True)
