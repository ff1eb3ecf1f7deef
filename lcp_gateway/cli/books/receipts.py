"""``lcp-gateway receipt``: receipts written from the journal, and checked offline."""

import asyncio
import json as json_format
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.cli.options import JsonOption, command_group, load_settings, read_input, setting_flags
from lcp_gateway.cli.output import RUNTIME_ERROR, CommandFailed, print_json, printable

_LARGEST_RECEIPT_BYTES = 1_000_000

app = command_group("Write and check receipts.")


@app.command()
def verify(
    file: Annotated[str, typer.Argument(metavar="FILE", help='The receipt; "-" is standard input.')],
    *,
    request: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The request's bytes, to check them too.")
    ] = None,
    result: Annotated[Path | None, typer.Option(metavar="FILE", help="The result's bytes, to check them too.")] = None,
    json: JsonOption = False,
) -> int:
    """Recompute all fields of a receipt that can be recomputed. Offline; ends with 1 when one does not hold."""
    from lcp_gateway.lightning.receipts import is_sound, verify_receipt  # noqa: PLC0415 - `show` needs none of it

    findings = verify_receipt(
        _document(file),
        request=read_input(str(request)) if request else None,
        result=read_input(str(result)) if result else None,
    )
    right = is_sound(findings)
    if json:
        print_json(
            {
                "holds": right,
                "findings": [
                    {"subject": finding.subject, "outcome": finding.outcome, "words": finding.words}
                    for finding in findings
                ],
            }
        )
    else:
        for finding in findings:
            typer.echo(f"{finding.outcome:8}  {finding.subject:16}  {printable(finding.words)}")
        typer.echo("the receipt holds" if right else "the receipt does NOT hold")
    return 0 if right else RUNTIME_ERROR


@app.command()
@setting_flags(also=("journal_url", "embedded"), groups=())
def show(
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID", show_default=False)],
    config: Path | None,
    flags: Mapping[str, object],
) -> int:
    """Write the receipt of a purchase to standard output."""
    from lcp_gateway.cli.books.journal import opened_journal, read_job_prefix, read_only_settings  # noqa: PLC0415 - `verify` needs no database
    from lcp_gateway.cli.books.purchases import one_purchase  # noqa: PLC0415 - as above
    from lcp_gateway.lightning.receipts import document  # noqa: PLC0415 - as above
    from lcp_gateway.store.journal.receipts import receipt_of  # noqa: PLC0415 - as above

    wanted = read_job_prefix(job_id)
    settings = read_only_settings(load_settings(flags, config).settings)

    async def read() -> object:
        async with opened_journal(settings) as journal:
            record, _ = await one_purchase(journal, wanted)
            return document(receipt_of(record))

    print_json(asyncio.run(read()))
    return 0


def _document(file: str) -> Mapping[str, object]:
    raw = read_input(file)
    if len(raw) > _LARGEST_RECEIPT_BYTES:
        raise CommandFailed(f"{file}: too large for a receipt")
    try:
        found = json_format.loads(raw)
    except (ValueError, RecursionError):
        raise CommandFailed(f"{file}: not JSON") from None
    if not isinstance(found, dict):
        raise CommandFailed(f"{file}: a receipt is a JSON object")
    return found
