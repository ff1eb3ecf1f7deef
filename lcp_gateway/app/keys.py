"""The keys of customers, kept in memory as the store has them."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.caller import Caller
from lcp_gateway.accounts.keys import KeyCache
from lcp_gateway.accounts.ports import KeyBook
from lcp_gateway.store.database import DatabaseUnavailable

_KEYS_EVERY_S = 1.0


class KeyKeeper:
    """Keeps the keys of the store in memory: at most a second behind what others change, at once for what it is told."""

    def __init__(self, keys: KeyBook, cache: KeyCache, log: FilteringBoundLogger) -> None:
        self._keys = keys
        self._cache = cache
        self._log = log
        self._upto = 0
        self._was_away = False

    def use(self, static_keys: Iterable[str]) -> None:
        """Let these keys of the operator in from now on, and no others of the operator's."""
        self._cache.use_static(static_keys)

    def find(self, text: str) -> Caller | None:
        """Give whom a key lets in now, or None."""
        return self._cache.check(text, datetime.now(UTC))

    async def load(self) -> None:
        """Read them all."""
        changes = await self._keys.load_all()
        self._cache.replace_all(changes.records)
        self._upto = changes.upto

    async def refresh(self) -> None:
        """Read what has changed."""
        changes = await self._keys.changed_since(self._upto)
        self._cache.apply(changes.records)
        self._upto = max(self._upto, changes.upto)

    async def run(self) -> None:
        """Read what has changed every second, until cancelled."""
        while True:
            await asyncio.sleep(_KEYS_EVERY_S)
            try:
                await self.refresh()
                self._was_away = False
            except DatabaseUnavailable as error:
                if not self._was_away:
                    self._was_away = True
                    self._log.warning("keys cannot be read anew", problem=str(error))
