"""What a gateway in the background has spent today, from the journal that it writes."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from lcp_gateway.cli.journal import JOURNAL_SETTINGS, opened_journal
from lcp_gateway.cli.outcome import CommandFailed
from lcp_gateway.cli.pid_file import Record
from lcp_gateway.cli.some_settings import some_settings
from lcp_gateway.config import Settings
from lcp_gateway.purchase.journal import Period
from lcp_gateway.store.queries import Books
from lcp_gateway.store.records import Filter

_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class SpentToday:
    """What was spent since midnight (UTC), in msat; routing fees are in it."""

    purchases: int
    settled_msat: int
    unknown_msat: int


class NoBooks(Exception):
    """The journal cannot be looked into; the message says why."""


def spent_today(record: Record, environ: Mapping[str, str]) -> SpentToday:
    """Add up what the gateway has spent today.

    Raises:
        NoBooks: its journal is off, or cannot be read.
    """
    try:
        # Its flags and its journal may be named as they are seen from its folder.
        with contextlib.chdir(record.folder):
            settings = _settings_of(record, environ)
            return asyncio.run(asyncio.wait_for(_read(settings), _TIMEOUT_S))
    except CommandFailed as error:
        raise NoBooks("; ".join(error.lines)) from None
    except TimeoutError:
        raise NoBooks(f"the journal did not answer within {_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise NoBooks(f"{record.folder}: {error.strerror}") from None


def _settings_of(record: Record, environ: Mapping[str, str]) -> Settings:
    problem = "its settings cannot be read any more: see lcp-gateway config check"
    try:
        wanted = some_settings(
            JOURNAL_SETTINGS, flags=record.flags, environ=environ, config=record.config
        )
    except ValueError:
        raise NoBooks(problem) from None
    if wanted.problems:
        raise NoBooks(problem)
    return wanted.settings


async def _read(settings: Settings) -> SpentToday:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    async with opened_journal(settings) as database:
        found = await Books(database).spend(Period.DAY, Filter(since=midnight))
    return SpentToday(
        purchases=sum(item.purchases for item in found),
        settled_msat=sum(item.settled_msat for item in found),
        unknown_msat=sum(item.unknown_msat for item in found),
    )
