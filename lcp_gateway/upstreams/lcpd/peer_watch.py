"""The catalog of peers: a snapshot that is refreshed in the background, and never with each request."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.routing.catalog import Catalog, Provider
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.adapter import LcpdUpstream, LocalInfo
from lcp_gateway.upstreams.lcpd.dialect import UnsupportedVersion

_RETRY_S = 1.0
# A request that finds no provider in a snapshot older than this refreshes it first.
_MISS_AFTER_S = 1.0


class PeerWatch:
    """Refreshes the catalog every ``refresh_s``, and at once for a request that misses in a stale one."""

    def __init__(
        self,
        upstream: LcpdUpstream,
        *,
        refresh_s: float,
        timeout_s: float,
        miss_after_s: float = _MISS_AFTER_S,
        on_refresh: Callable[[Catalog | None], None] = lambda _catalog: None,
        prepare: Callable[[Catalog], None] = lambda _catalog: None,
    ) -> None:
        """``on_refresh`` gets each new catalog, or None when the daemon could not be asked.

        ``prepare`` is called in a thread with a catalog of other providers than before, ahead of its first use: work that
        takes long with thousands of models does not hold up the event loop.
        """
        self._prepare = prepare
        self._upstream = upstream
        self._refresh_s = refresh_s
        self._miss_after_s = miss_after_s
        self._timeout_s = timeout_s
        self._on_refresh = on_refresh
        self._catalog = Catalog((), time.monotonic())
        self._info: LocalInfo | None = None
        self._problem: UpstreamError | None = UpstreamError(
            UpstreamStatus.UNAVAILABLE, "the daemon has not been asked yet"
        )
        self._refreshing: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()

    def use(self, *, refresh_s: float, timeout_s: float) -> None:
        """Apply changed settings from the next refresh on."""
        self._refresh_s = refresh_s
        self._timeout_s = timeout_s

    @property
    def transport(self) -> str:
        """The name of the transport to the daemon."""
        return self._upstream.transport

    @property
    def catalog(self) -> Catalog:
        """The last snapshot; it stays while the daemon is away."""
        return self._catalog

    @property
    def problem(self) -> UpstreamError | None:
        """Why the last refresh failed, or None."""
        return self._problem

    @property
    def info(self) -> LocalInfo | None:
        """The daemon's identity, once known."""
        return self._info

    @property
    def age_s(self) -> float:
        """The age of the snapshot."""
        return time.monotonic() - self._catalog.taken_at

    async def refresh_if_stale(self) -> Catalog:
        """Return a snapshot no older than ``miss_after_s``, or the last one if the daemon does not answer.

        Requests that come together share one refresh.
        """
        if self._problem is not None or self.age_s >= self._miss_after_s:
            await self.refresh()
        return self._catalog

    async def refresh(self) -> None:
        """Ask the daemon now. A failure is not raised but becomes ``problem``."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._ask())
        await asyncio.shield(self._refreshing)

    def refresh_soon(self) -> None:
        """Have ``run`` refresh now, unless a refresh is under way."""
        if self._refreshing is None:
            self._wanted.set()

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            self._wanted.clear()
            await self.refresh()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    self._refresh_s if self._problem is None else min(_RETRY_S, self._refresh_s)
                ):
                    await self._wanted.wait()

    async def _ask(self) -> None:
        try:
            await self._read()
        finally:
            # In the step in which the snapshot is there: a refresh that is wanted from then on is another one.
            self._refreshing = None

    async def _read(self) -> None:
        try:
            # Asked each time: a daemon can be exchanged for one of another version between two refreshes.
            self._info = await self._upstream.local_info(self._timeout_s)
            providers = await self._upstream.list_peers(self._timeout_s)
        except UpstreamError as error:
            self._problem = error
            if isinstance(error, UnsupportedVersion):
                # It answers, in a version in which nothing may be bought.
                self._catalog = Catalog((), self._catalog.taken_at)
            self._on_refresh(None)
            return
        if providers == self._catalog.providers:
            catalog = self._catalog.seen_again(time.monotonic())
        else:
            catalog = await asyncio.to_thread(self._index, providers)
        self._problem = None
        self._catalog = catalog
        self._on_refresh(self._catalog)

    def _index(self, providers: tuple[Provider, ...]) -> Catalog:
        catalog = Catalog(providers, time.monotonic())
        self._prepare(catalog)
        return catalog
