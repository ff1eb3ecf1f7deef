"""What the doctor looks at where money is concerned: the journal, and lnd."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

from lcp_gateway.cli.finding import Finding
from lcp_gateway.cli.journal import journal_file, opened_journal
from lcp_gateway.cli.lnd import opened_lnd
from lcp_gateway.cli.outcome import CommandFailed
from lcp_gateway.cli.output import plain
from lcp_gateway.config import Settings, journal_place, without_password
from lcp_gateway.lightning.payments import LndError
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
    except CommandFailed as error:
        return Finding("journal", False, str(error), "no gateway pays while it cannot write there")
    except DatabaseUnavailable as error:
        return Finding("journal", False, error.reason, "see journal_url")
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


async def lnd_findings(settings: Settings) -> AsyncIterator[Finding]:
    """Ask lnd how it is, where one is configured."""
    try:
        async with opened_lnd(settings) as lnd:
            if lnd is None:
                return
            info = await lnd.info()
            synced = info.synced_to_chain
            yield Finding(
                "lnd",
                synced,
                f"{plain(info.alias)} {plain(info.version)} on {plain(info.network)}, block {info.block_height}, "
                f"{'synced' if synced else 'not synced'}",
                "" if synced else "wait until lnd has caught up with the chain",
            )
            if settings.network and info.invoice_prefix != settings.network:
                yield Finding(
                    "lnd network",
                    False,
                    f"lnd is on {plain(info.network)}, network is set to {settings.network}",
                    "one of the two is wrong: every quote will be refused",
                )
            balance, channels = await lnd.balance(), await lnd.channels()
            usable = channels.active > 0 and channels.spendable_msat > 0
            yield Finding(
                "lnd channels",
                usable,
                f"{channels.active} active, {channels.inactive} not; "
                f"{format_sat(balance.local_msat)} ours, {format_sat(channels.largest_spendable_msat)} "
                "at most in one payment",
                "" if usable else "nothing can be paid: open a channel, or wait for its peer",
            )
    except CommandFailed as error:
        yield Finding("lnd", False, str(error), "see lnd_tls_cert and lnd_macaroon_file")
    except LndError as error:
        yield Finding("lnd", False, str(error), "see lnd_grpc_addr and what the macaroon may read")
