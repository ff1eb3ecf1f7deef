"""Which models are loaded: as many as may be, the least recently used one leaves first, and none while it is in use."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from lcp_gateway.local_models.llama_server import LlamaServer, LoadFailed
from lcp_gateway.local_models.options import LocalModel, LocalModelOptions

_MIB = 1024 * 1024
_TICK_S = 1.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_SETTLED_S = 30.0
_STOPPING_S = 5.0
# While one model is never idle, another that waits for its place would wait for ever: after this long, new requests to
# loaded models wait too.
_PATIENCE_S = 15.0

_log = logging.getLogger(__name__)


class Unavailable(Exception):
    """A model cannot be used now; the text says why in one line, ``retry_after_s`` when to ask again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(slots=True, eq=False)
class _Place:
    """A model with what runs for it. ``retry_at`` is on the pool's clock."""

    model: LocalModel
    server: LlamaServer | None = None
    loading: asyncio.Task[str] | None = None
    """Its result is why it failed, or empty."""
    users: int = 0
    waiters: int = 0
    last_used: float = 0.0
    loaded_at: float = 0.0
    failures: int = 0
    """In a row; a run of ``_SETTLED_S`` ends the row."""
    retry_at: float = 0.0
    why: str = ""
    """Why the last try failed; empty where it did not."""

    @property
    def idle(self) -> bool:
        return self.server is not None and not self.users and not self.waiters

    @property
    def state(self) -> str:
        if self.loading is not None:
            return "loading"
        if self.server is not None:
            return "loaded"
        return "failed" if self.why else "unloaded"


class ModelPool:
    """Loads models when they are asked for, within the bounds of the options, and unloads them.

    ``server_of`` makes the process of a model: (model, what to call at its end).
    """

    def __init__(
        self,
        options: LocalModelOptions,
        session: aiohttp.ClientSession,
        *,
        server_of: Callable[[LocalModel, Callable[[], None]], LlamaServer] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._server_of = server_of or (lambda model, on_exit: LlamaServer(model, options, session, on_exit))
        self._clock = clock
        self._places = {model.name: _Place(model) for model in options.models}
        self._changed = asyncio.Condition()
        self._waiting_since: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def states(self) -> dict[str, str]:
        """Return for each model ``unloaded``, ``loading``, ``loaded`` or ``failed``."""
        return {name: place.state for name, place in self._places.items()}

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[LlamaServer]:
        """Hold a model loaded while the block lasts; waits until it is loaded.

        Raises:
            KeyError: there is no such model.
            Unavailable: it failed to load, now or just before.
        """
        place = self._places[name]
        server = await self._loaded(place)
        place.users += 1
        try:
            yield server
        finally:
            place.users -= 1
            place.last_used = self._clock()
            if not place.users:
                self._notify()

    async def run(self) -> None:
        """Load what is to be loaded at the start, unload what is idle, and keep logs short, until cancelled."""
        while True:
            try:
                await self.tick()
            except Exception:  # noqa: BLE001 - the next look may succeed, and none would unload anything
                _log.exception("a look at the local models failed")
            await asyncio.sleep(_TICK_S)

    async def tick(self) -> None:
        """Do once what ``run`` does every second."""
        now, idle_s = self._clock(), self._options.idle_s
        for place in self._places.values():
            if place.server is not None:
                place.server.bound_log()
                if idle_s and place.idle and not self._options.preload and now - place.last_used >= idle_s:
                    await self._unload(place)
        if self._options.preload:
            for place in self._places.values():
                idle = place.server is None and place.loading is None and now >= place.retry_at
                if idle and self._count() < self._options.loaded_max:
                    self._begin(place)

    async def close(self) -> None:
        """End every process."""
        for place in self._places.values():
            if place.loading is not None:
                place.loading.cancel()
        await asyncio.gather(
            *(place.loading for place in self._places.values() if place.loading), return_exceptions=True
        )
        await asyncio.gather(*(self._unload(place) for place in self._places.values()))

    async def _loaded(self, place: _Place) -> LlamaServer:
        while True:
            if place.server is not None and place.server.running:
                if not self._another_waits_too_long(place):
                    return place.server
                async with self._changed:
                    await self._changed.wait()
                continue
            if place.loading is None and (pause_s := place.retry_at - self._clock()) > 0:
                raise Unavailable(place.why, pause_s)
            loading = place.loading or self._begin(place)
            # Others may wait for the same loading, and it goes on when this client leaves. A request that waits counts as a
            # user: else two models could take each other's place without a request having used them.
            place.waiters += 1
            try:
                await asyncio.wait({loading})
            finally:
                place.waiters -= 1
            if loading.cancelled():
                raise Unavailable("the server of local models is stopping", _STOPPING_S)
            if why := loading.result():
                raise Unavailable(why, max(1.0, place.retry_at - self._clock()))

    def _begin(self, place: _Place) -> asyncio.Task[str]:
        place.loading = asyncio.create_task(self._load(place), name="load_model")
        return place.loading

    async def _load(self, place: _Place) -> str:
        name = place.model.name
        server = self._server_of(place.model, lambda: self._ended(place, server))
        started = self._clock()
        try:
            await self._make_room(place)
            _log.info("loading %r", name)
            await server.start()
        except LoadFailed as error:
            self._failed(place, str(error), error.log_path)
            await server.stop()
            return str(error)
        except BaseException:
            await asyncio.shield(server.stop())
            raise
        else:
            if not server.running:
                self._failed(place, f"llama-server ended as soon as it had loaded {name!r:.80}", server.log_path)
                return place.why
            place.server, place.why = server, ""
            place.last_used = place.loaded_at = self._clock()
            _log.info("loaded %r in %.1f s", name, self._clock() - started)
            return ""
        finally:
            place.loading = None
            self._notify()

    async def _make_room(self, place: _Place) -> None:
        """Wait until another model may be loaded; those that no request uses leave for it."""
        size = _file_bytes(place.model)
        bound = self._options.memory_mib * _MIB
        if bound and size > bound:
            raise LoadFailed(
                f"{place.model.name!r:.80} needs {size // _MIB} MiB, more than the {self._options.memory_mib} MiB of "
                "`local_models_memory_mib`"
            )
        self._waiting_since[place.model.name] = self._clock()
        try:
            while not self._fits(place, size, bound):
                idle = [other for other in self._places.values() if other.idle]
                if idle:
                    await self._unload(min(idle, key=lambda other: other.last_used))
                    continue
                async with self._changed:
                    await self._changed.wait()
        finally:
            del self._waiting_since[place.model.name]
            self._notify()

    def _fits(self, place: _Place, size: int, bound: int) -> bool:
        # Those that wait for room, this one among them, hold none.
        if self._count() - len(self._waiting_since) >= self._options.loaded_max:
            return False
        loaded = [other.server for other in self._places.values() if other.server is not None and other is not place]
        return not bound or not loaded or size + sum(server.resident_bytes() for server in loaded) <= bound

    def _count(self) -> int:
        return sum(place.server is not None or place.loading is not None for place in self._places.values())

    def _another_waits_too_long(self, place: _Place) -> bool:
        now = self._clock()
        return any(now - since > _PATIENCE_S for name, since in self._waiting_since.items() if name != place.model.name)

    async def _unload(self, place: _Place) -> None:
        server, place.server = place.server, None
        if server is not None:
            await server.stop()
            _log.info("unloaded %r", place.model.name)
            self._notify()

    def _ended(self, place: _Place, server: LlamaServer) -> None:
        """A process has ended: by ``_unload``, which took it out before, or by itself."""
        if place.server is server:
            place.server = None
            self._failed(place, f"llama-server of {place.model.name!r:.80} ended by itself", server.log_path)
            self._notify()

    def _failed(self, place: _Place, why: str, log_path: Path | None = None) -> None:
        now = self._clock()
        if place.loaded_at and now - place.loaded_at >= _SETTLED_S:
            place.failures = 0
        # The first time at once: one that worked for long may well do so again.
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(place.failures - 1, 20), _LONGEST_PAUSE_S) if place.failures else 0.0
        place.failures += 1
        place.loaded_at = 0.0
        place.retry_at = now + pause_s
        place.why = why
        where = f"; its log is {log_path}" if log_path else ""
        _log.warning("%s%s; it is tried again in %g s at the earliest", why, where, pause_s)

    def _notify(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.ensure_future(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _file_bytes(model: LocalModel) -> int:
    """Return the size of a model's file, which is about what it takes in memory; 0 where it is not known yet."""
    try:
        return Path(model.path).stat().st_size if model.path else 0
    except OSError as error:
        raise LoadFailed(f"{model.path} cannot be read: {error.strerror}") from None
