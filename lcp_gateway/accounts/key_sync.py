"""The keys of customers, kept in memory as the store has them, and believed only while they were read a moment ago."""

import asyncio
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Final

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.keys import KeyCache, KeysStale
from lcp_gateway.accounts.repositories import KeyRepository

_KEYS_EVERY_S = 1.0
_STALE_S: Final = 5.0


def _clock() -> float:
    """Return seconds that also pass while the machine sleeps, where the system counts them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class KeySync:
    """Keeps the keys of the store in memory: at most a second behind what others change, at once for what it is told.

    A key that was revoked elsewhere is known as one only after it has been read. So no key of the store is accepted once
    the last read began more than ``stale_s`` ago, whatever keeps the next from its end; the operator's static keys come
    from the settings, and go on being accepted.
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
        self._one_at_a_time = asyncio.Lock()

    def use(self, static_keys: Iterable[str], stale_s: float) -> None:
        """Accept these keys of the operator from now on, and no others of the operator's, and believe keys so long."""
        self._cache.use_static(static_keys)
        self._stale_s = stale_s

    @property
    def age_s(self) -> float:
        """How long ago the last read of the keys that came to its end began."""
        return self._clock() - self._read_at

    @property
    def is_stale(self) -> bool:
        """Whether the keys were read too long ago to be accepted."""
        return self.age_s > self._stale_s

    def problems(self) -> Iterable[str]:
        """Yield why no key of the store is accepted now."""
        if self.is_stale:
            because = f": {self._problem}" if self._problem else ""
            yield (
                f"the keys of accounts were last read {self.age_s:.0f} s ago, and are accepted for "
                f"{self._stale_s:g} s (keys_stale_s){because}"
            )

    def find(self, text: str) -> Caller | None:
        """Return the caller that a key stands for now, or None.

        Raises:
            KeysStale: it is none of the operator's, and what the store has cannot be known.
        """
        caller = self._cache.check(text, datetime.now(UTC))
        if caller is None or caller.account_id is not None:
            self.check()
        return caller

    def check(self) -> None:
        """Let a credential pass whose standing is in the store.

        Raises:
            KeysStale: it cannot be known.
        """
        if self.is_stale:
            raise KeysStale(self.age_s, self._stale_s)

    async def load(self) -> None:
        """Read them all."""
        async with self._one_at_a_time:
            await self._load()

    async def refresh(self) -> None:
        """Read what has changed."""
        async with self._one_at_a_time:
            begun = self._clock()
            changes = await self._keys.changed_since(self._upto)
            if changes.upto < self._upto:
                # The database was put back to an earlier state, by a restore or a failover: its numbers count anew.
                self._log.warning("the database has gone back in time; all keys are read again")
                await self._load()
                return
            self._cache.apply(changes.records)
            self._upto, self._read_at = changes.upto, begun

    async def run(self) -> None:
        """Read what has changed every second, until cancelled."""
        while True:
            await asyncio.sleep(_KEYS_EVERY_S)
            try:
                await self.refresh()
            except self._unavailable as error:
                if not self._problem:
                    self._log.warning("keys cannot be read anew", problem=str(error))
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
