"""Keeps the customers' keys in memory in step with the database, and refuses them once the last read is too old."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.keys import KeyCache, KeysStale
from lcp_gateway.accounts.repositories import KeyRepository

_READ_EVERY_S = 1.0
_STALE_S: Final = 5.0


def _clock() -> float:
    """Return seconds that also pass while the machine sleeps, where the system counts them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class KeySync:
    """Reads changed keys every second, and at once on ``refresh``.

    A key that was revoked at another gateway is refused only after it has been read. So no stored key is accepted once the
    last successful read began more than ``stale_s`` ago, whatever delays the next; the operator's static keys come from the
    settings, and stay accepted.
    """

    def __init__(
        self,
        keys: KeyRepository,
        cache: KeyCache,
        log: FilteringBoundLogger,
        *,
        unavailable: tuple[type[Exception], ...],
        stale_s: float = _STALE_S,
        clock: Callable[[], float] = _clock,
    ) -> None:
        """``unavailable`` are the errors of a database that cannot be reached."""
        self._keys = keys
        self._cache = cache
        self._log = log
        self._unavailable = unavailable
        self._stale_s = stale_s
        self._clock = clock
        self._upto = 0
        self._read_at = -float("inf")
        self._problem = ""
        self._reading = asyncio.Lock()
        self._soon = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called after a change that this process made, where several processes are one gateway."""

    def refresh_soon(self) -> None:
        """Read the keys that changed now, rather than within a second: another process has changed one."""
        self._soon.set()

    async def changed(self) -> None:
        """Read the keys that changed, after a change that was made here.

        A database that has gone away since does not undo the change: ``run`` reads it later, and meanwhile the keys grow stale.
        """
        with suppress(*self._unavailable):
            await self.refresh()
        self.on_change()

    def use(self, static_keys: Iterable[str], stale_s: float) -> None:
        """Accept these static keys from now on and no other ones, and stored keys for ``stale_s`` after a read."""
        self._cache.use_static(static_keys)
        self._stale_s = stale_s

    @property
    def age_s(self) -> float:
        """Seconds since the last successful read began."""
        return self._clock() - self._read_at

    @property
    def is_stale(self) -> bool:
        """Whether the last read is too old for stored keys to be accepted."""
        return self.age_s > self._stale_s

    def problems(self) -> Iterable[str]:
        """Yield the reason why no stored key is accepted now."""
        if self.is_stale:
            because = f": {self._problem}" if self._problem else ""
            yield (
                f"the keys of accounts were last read {self.age_s:.0f} s ago, and are accepted for "
                f"{self._stale_s:g} s (keys_stale_s){because}"
            )

    def find(self, text: str) -> Caller | None:
        """Return the caller that a key authenticates now, or None.

        Raises:
            KeysStale: it is not a static key, and the last read is too old.
        """
        caller = self._cache.check(text, datetime.now(UTC))
        if caller is None or caller.account_id is not None:
            self.check()
        return caller

    def check(self) -> None:
        """Check that credentials which the database can revoke may be accepted.

        Raises:
            KeysStale: the last read is too old.
        """
        if self.is_stale:
            raise KeysStale(self.age_s, self._stale_s)

    async def load(self) -> None:
        """Read all keys."""
        async with self._reading:
            await self._load()

    async def refresh(self) -> None:
        """Read the keys that changed."""
        async with self._reading:
            begun = self._clock()
            changes = await self._keys.changed_since(self._upto)
            if changes.upto < self._upto:
                # The database was set back to an earlier state, by a restore or a failover: its change numbers start again.
                self._log.warning("the database has gone back in time; all keys are read again")
                await self._load()
                return
            self._cache.apply(changes.records)
            self._upto, self._read_at = changes.upto, begun

    async def run(self) -> None:
        """Read the keys that changed every second, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_READ_EVERY_S):
                    await self._soon.wait()
            self._soon.clear()
            try:
                await self.refresh()
            except self._unavailable as error:
                if not self._problem:
                    self._log.warning("keys cannot be refreshed", problem=str(error))
                self._problem = str(error)
            else:
                if self._problem:
                    self._log.info("keys are read again")
                self._problem = ""

    async def _load(self) -> None:
        begun = self._clock()
        changes = await self._keys.load_all()
        self._cache.replace_all(changes.records, upto=changes.upto)
        self._upto, self._read_at = changes.upto, begun
