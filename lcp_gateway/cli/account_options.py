"""Arguments and options that the commands on accounts share."""

from typing import Annotated

import typer

from lcp_gateway.cli.outcome import USAGE_ERROR, CommandFailed

USUAL_LIMIT = 50
_LAST_NUMBER = 2**63 - 1


def _an_id(text: str | None) -> str | None:
    # What is no text at all on the command line, a database does not even take as a question.
    if text is not None and not (text.isascii() and text.isprintable()):
        raise CommandFailed("an id is made of letters, digits and _", exit_code=USAGE_ERROR)
    return text


def _id_argument(metavar: str) -> object:
    return typer.Argument(metavar=metavar, show_default=False, callback=_an_id)


AccountArgument = Annotated[str, _id_argument("ACCOUNT_ID")]
OptionalAccountArgument = Annotated[str | None, _id_argument("ACCOUNT_ID")]
KeyArgument = Annotated[str, _id_argument("KEY_ID")]

LimitOption = Annotated[int, typer.Option(min=1, metavar="N", help="At most so many.")]
AfterOption = Annotated[
    str | None,
    typer.Option("--after", metavar="ID", help="Those that follow this one.", callback=_an_id),
]
AfterNumberOption = Annotated[
    int | None,
    typer.Option(
        "--after", min=0, max=_LAST_NUMBER, metavar="ID", help="Those that follow this one."
    ),
]
