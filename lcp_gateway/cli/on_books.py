"""Commands on the books of accounts: each is called with them open, in the journal that flags and settings name."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path

from lcp_gateway.cli.account_books import opened_books
from lcp_gateway.cli.flags import load_or_complain, setting_flags
from lcp_gateway.cli.journal import JOURNAL_SETTINGS


def on_books(
    *, also: Collection[str] = ()
) -> Callable[[Callable[..., Awaitable[int]]], Callable[..., int]]:
    """Give a command the flags that say which journal it is, and of the settings named ``also``.

    The command is called with ``books``, with ``settings`` if it takes them, and its own parameters, all by keyword.
    """

    def give(command: Callable[..., Awaitable[int]]) -> Callable[..., int]:
        parameters = inspect.signature(command, eval_str=True).parameters
        own = [
            parameter for name, parameter in parameters.items() if name not in {"books", "settings"}
        ]

        def run(config: Path | None, flags: Mapping[str, object], **values: object) -> int:
            settings = load_or_complain(flags, config).settings

            async def work() -> int:
                async with opened_books(settings) as books:
                    given = {"books": books, "settings": settings}
                    wanted = {name: one for name, one in given.items() if name in parameters}
                    return await command(**wanted, **values)

            return asyncio.run(work())

        run.__doc__ = command.__doc__
        run.__name__ = command.__name__
        run.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
        return setting_flags(also=(*JOURNAL_SETTINGS, *also), groups=())(run)

    return give
