"""What the doctor looks at where money is concerned: the journal."""

import os
from pathlib import Path

from lcp_gateway.cli.finding import Finding
from lcp_gateway.cli.journal import journal_file, opened_journal
from lcp_gateway.cli.outcome import CommandFailed
from lcp_gateway.config import Settings, journal_place, without_password
from lcp_gateway.purchase.money import format_sat
from lcp_gateway.store.database import DatabaseUnavailable
from lcp_gateway.store.queries import Books
from lcp_gateway.store.tables import HEAD


async def journal_finding(settings: Settings) -> Finding:
    """Open the journal and look what is open in it; one that does not exist yet is not made."""
    place = journal_place(settings)
    if place is None:
        return Finding("journal", True, "off: nothing is written down")
    path = journal_file(place)
    if path is not None and not path.exists():
        return _missing(path)
    try:
        async with opened_journal(settings) as database:
            open_now = await Books(database).outstanding()
            replaced = database.replaced
    except CommandFailed as error:
        return Finding("journal", False, str(error), "no gateway pays while it cannot write there")
    except DatabaseUnavailable as error:
        return Finding("journal", False, error.reason, "see journal_url")
    if replaced is not None:
        problem, _, remedy = replaced.partition(". ")
        return Finding("journal", False, problem, remedy)
    text = f"{without_password(str(place))}, version {HEAD}"
    if open_now.unknown:
        text += f"; {open_now.unknown} unknown ({format_sat(open_now.unknown_msat)})"
        return Finding(
            "journal", True, text, "lnd clears them up if it is configured; else: purchases resolve"
        )
    return Finding("journal", True, text)


def _missing(path: Path) -> Finding:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return Finding("journal", True, f"{path} is made at the first start")
    return Finding("journal", False, f"{path} cannot be made", f"{folder} cannot be written")
