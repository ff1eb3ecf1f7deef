"""How the commands that look at a request are told of it, and of the endpoint that it is for."""

from typing import Annotated

import typer

from lcp_gateway.cli.market import KINDS
from lcp_gateway.cli.outcome import USAGE_ERROR, CommandFailed
from lcp_gateway.purchase.task import TaskKind

_REQUEST = 'The request as a client would send it; "-" is standard input.'


def _body_argument(words: str) -> object:
    return typer.Argument(metavar="[BODYFILE]", help=words, show_default=False)


def _kind_option(flag: str) -> object:
    return typer.Option(
        flag, metavar="|".join(KINDS), help="The endpoint that it is for.", show_default=False
    )


BodyArgument = Annotated[str | None, _body_argument(_REQUEST)]
BodyOrShortArgument = Annotated[
    str | None, _body_argument(f"{_REQUEST} A short one when left out.")
]
KindOption = Annotated[str | None, _kind_option("--kind")]
EndpointOption = Annotated[str | None, _kind_option("--endpoint")]


def read_kind(flag: str, word: str | None) -> TaskKind | None:
    """Read the endpoint; none where ``flag`` was not given.

    Raises:
        CommandFailed: there is no such endpoint.
    """
    if word is None:
        return None
    if word not in KINDS:
        raise CommandFailed(f"{flag}: must be {' or '.join(KINDS)}", exit_code=USAGE_ERROR)
    return KINDS[word]
