"""The journal for commands: opened beside a gateway that may be writing to it; and the parsing of times and ids."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.cli.options import load_settings, parameters_of, setting_flags, with_parameters
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed, report, user_name
from lcp_gateway.config import Settings, journal_place, without_password
from lcp_gateway.store.database.engines import BadDatabaseUrl, Database, DatabaseUnavailable, open_database
from lcp_gateway.store.database.schema import TooNew

JOURNAL_SETTINGS = ("journal_url", "embedded")
"""The settings that say which journal it is."""

_JOB_ID = re.compile(r"[0-9a-f]{64}")
_JOB_PREFIX = re.compile(r"[0-9a-f]{8,64}")
_AGE = re.compile(r"(\d{1,6})(m|h|d|w)")
_AGE_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def read_only_settings(settings: Settings) -> Settings:
    """Return the settings whose journal is read: the embedded node's where no other gateway has run, which is reported."""
    if settings.embedded or settings.journal_url:
        return settings
    embedded = settings.model_copy(update={"embedded": True})
    place, other = journal_place(settings), journal_place(embedded)
    if not isinstance(place, Path) or not isinstance(other, Path):
        return settings
    if place.exists() or not other.exists():
        return settings
    report(f"only the embedded node has run here: this is its journal, of play money ({other})")
    return embedded


@contextlib.asynccontextmanager
async def opened_journal(settings: Settings) -> AsyncIterator[Database]:
    """Open the journal of the settings, which must exist, and close it after the block."""
    place = journal_place(settings)
    if place is None:
        raise CommandFailed("the journal is off (journal_url): no purchases are recorded")
    shown = without_password(str(place))
    path = journal_file(place)
    if path is not None:
        _check_file(path)
    try:
        database = await open_database(place)
        if database.replaced is not None:
            report(f"warning: {database.replaced}")
        try:
            yield database
        finally:
            await database.close()
    except (BadDatabaseUrl, TooNew) as error:
        raise CommandFailed(f"{shown}: {error}") from None
    except DatabaseUnavailable as error:
        raise CommandFailed(f"the journal {shown} cannot be used: {error.reason}") from None


def with_journal(
    *,
    also: Collection[str] = (),
    opened: Callable[[Settings], AbstractAsyncContextManager[object]] = opened_journal,
    reads_only: bool = False,
) -> Callable[[Callable[..., Awaitable[int | None]]], Callable[..., int]]:
    """Add to a command the flags that say which journal it is, and of the settings named ``also``.

    The command's first parameter is the journal, or what ``opened`` yields. It is called by keyword with that, with
    ``settings`` if it takes them, and its own parameters. With ``reads_only`` see ``read_only_settings``.
    """

    def decorate(command: Callable[..., Awaitable[int | None]]) -> Callable[..., int]:
        first, *others = [parameter.name for parameter in parameters_of(command)]

        def run(config: Path | None, flags: Mapping[str, object], **values: object) -> int:
            settings = load_settings(flags, config).settings
            if reads_only:
                settings = read_only_settings(settings)
            if "settings" in others:
                values["settings"] = settings

            async def work() -> int:
                async with opened(settings) as journal:
                    return await command(**{first: journal}, **values) or 0

            return asyncio.run(work())

        own = parameters_of(command, without=(first, "settings"))
        flagged = setting_flags(also=(*JOURNAL_SETTINGS, *also), groups=())
        return flagged(with_parameters(run, command, own))

    return decorate


def journal_file(place: Path | str) -> Path | None:
    """Return the file of a journal; None for one on a server."""
    if isinstance(place, Path):
        return place
    scheme, _, rest = place.partition("://")
    return Path(rest.removeprefix("/")) if scheme.startswith("sqlite") else None


def _check_file(path: Path) -> None:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise CommandFailed(
            f"there is no journal at {path}: no gateway with these settings has run yet "
            "(see journal_url; with --embedded, as ./scripts/serve has it, it is another file)"
        ) from None
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be read: {error.strerror}") from None
    if found.st_uid != os.geteuid():
        # SQLite would make files beside it that are ours, and the gateway could not write them.
        raise CommandFailed(f"{path} belongs to {user_name(found.st_uid)}: run this as that user")


def _job_id(text: str) -> str:
    lowered = text.strip().lower()
    if not _JOB_ID.fullmatch(lowered):
        raise CommandFailed("a job id is 64 hexadecimal digits", exit_code=USAGE_ERROR)
    return lowered


def read_job_prefix(text: str) -> str:
    """Read the id of a job that is only shown, or its beginning."""
    lowered = text.strip().lower().rstrip("…")
    if not _JOB_PREFIX.fullmatch(lowered):
        raise CommandFailed(
            "a job id is 64 hexadecimal digits; the first 8 or more of them are enough here", exit_code=USAGE_ERROR
        )
    return lowered


def _job_argument(read: Callable[[str], str]) -> object:
    return typer.Argument(metavar="JOB_ID", show_default=False, callback=read)


JobArgument = Annotated[str, _job_argument(_job_id)]
"""The whole id of a job, for commands that change the books."""
JobPrefixArgument = Annotated[str, _job_argument(read_job_prefix)]
"""The id of a job, or its beginning as tables on a terminal have it."""


def read_age(text: str) -> timedelta:
    """Read an age such as ``90d``, ``12h`` or ``2w``."""
    matched = _AGE.fullmatch(text.strip().lower())
    if matched is None or not int(matched[1]):
        raise CommandFailed(f'{text!r:.40} is not an age: write "90d", "12h" or "2w"', exit_code=USAGE_ERROR)
    return int(matched[1]) * _AGE_UNITS[matched[2]]


def _read_time(text: str, now: datetime, *, ahead: bool = False) -> datetime:
    """Read a date or a time (UTC where it names no zone), or an age, counted from ``now`` back or ahead."""
    try:
        at = datetime.fromisoformat(text.strip())
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        try:
            return now + read_age(text) if ahead else now - read_age(text)
        except (CommandFailed, OverflowError):
            option, year, age = ("--expires: ", 2027, "30d") if ahead else ("", 2026, "7d")
            example = f'"{year}-01-31", "{year}-01-31T12:00Z" or "{age}"'
            raise CommandFailed(f"{option}{text!r:.40} is not a time: write {example}", exit_code=USAGE_ERROR) from None


def read_expiry(text: str, now: datetime) -> datetime:
    """Read ``--expires``: a date, a time, or an age from ``now`` on."""
    at = _read_time(text, now, ahead=True)
    if at <= now:
        raise CommandFailed("--expires: this time is over", exit_code=USAGE_ERROR)
    return at


def _past(text: str) -> datetime:
    return _read_time(text, datetime.now(UTC))


SinceOption = Annotated[
    datetime | None, typer.Option(metavar="WHEN", help='Not before: "2026-01-31", or "7d" for days ago.', parser=_past)
]
UntilOption = Annotated[datetime | None, typer.Option(metavar="WHEN", help="Before.", parser=_past)]
