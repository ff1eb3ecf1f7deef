"""Keeps a node joined: dials in, serves, and dials in again with back-off and jitter."""

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import aiohttp
from structlog.typing import FilteringBoundLogger

from lcp_gateway.__about__ import __version__
from lcp_gateway.node_client.catalog import ModelCatalog
from lcp_gateway.node_client.options import JoinOptions
from lcp_gateway.node_client.session import Session, SessionOver
from lcp_gateway.node_client.statistics import Statistics
from lcp_gateway.node_protocol.frames import MAX_FRAME_BYTES
from lcp_gateway.node_protocol.messages import SUBPROTOCOL, Hello, Welcome

_CONNECT_TIMEOUT_S: Final = 15.0
_LONGEST_PAUSE_S: Final = 15.0
_REFUSED_PAUSE_S: Final = 60.0
_EMPTY_REFRESH_S: Final = 1.0
_REFUSALS = frozenset({400, 401, 403, 404})


class CannotJoin(Exception):
    """The gateway does not take this node, and trying again by itself is of no use; the message says why."""


def pause_s(failures: int, chance: float) -> float:
    """Return how long to wait before dialling again: a random time of up to 1, 2, 4 … 15 seconds. ``chance`` is from 0 to 1."""
    return min(2.0 ** min(max(failures - 1, 0), 10), _LONGEST_PAUSE_S) * chance


class Joiner:
    """Keeps one node joined to its gateway until ``stop`` is set, with a connection to each of the gateway's workers."""

    def __init__(
        self,
        options: JoinOptions,
        catalog: ModelCatalog,
        statistics: Statistics,
        log: FilteringBoundLogger,
        *,
        chance: Callable[[], float] = random.random,  # noqa: S311 - spreads load, and hides nothing
    ) -> None:
        self._options = options
        self._catalog = catalog
        self._statistics = statistics
        self._log = log
        self._chance = chance
        self._instance = secrets.token_hex(8)
        self._room = asyncio.Semaphore(options.concurrent)
        self._sessions: dict[int, Session] = {}
        self._was_welcome = False
        self._workers = 1
        # One dials at a time: the next one says to which workers the others are connected.
        self._dialling = asyncio.Lock()
        self._lines: dict[int, asyncio.Task[None]] = {}
        self._failed: asyncio.Future[None]

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set and the running requests have ended.

        Raises:
            CannotJoin: the gateway refuses the node.
        """
        await self._catalog.refresh()
        if not self._catalog.models:
            self._log.warning("no model was found yet", looked_at=self._catalog.where())
        refreshing = asyncio.create_task(self._refresh())
        stopping = asyncio.create_task(stop.wait())
        self._failed = asyncio.get_running_loop().create_future()
        watched: list[asyncio.Future[Any]] = [stopping, refreshing, self._failed]
        self._open_lines()
        try:
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            for ended in (self._failed, refreshing):
                # These two end with an error alone.
                if ended.done():
                    ended.result()
            self._tell("draining")
            await asyncio.gather(*(one.drain(self._options.drain_s) for one in self._sessions.values()))
        finally:
            tasks = [*watched, *self._lines.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._catalog.close()

    def _open_lines(self) -> None:
        for line in range(self._workers):
            if line not in self._lines:
                task = self._lines[line] = asyncio.create_task(self._keep(line))
                task.add_done_callback(self._line_ended)

    def _line_ended(self, line: "asyncio.Task[None]") -> None:
        if not line.cancelled() and (error := line.exception()) is not None and not self._failed.done():
            self._failed.set_exception(error)

    async def _keep(self, line: int) -> None:
        """Keep one connection: the first one always, the others for as many workers as the gateway has."""
        failures = 0
        try:
            while line < self._workers:
                wait_s, failed = await self._once(line)
                failures = failures + 1 if failed else 0
                wait_s = max(wait_s * (0.5 + self._chance()), pause_s(max(failures, 1), self._chance()))
                await asyncio.sleep(wait_s)
        finally:
            self._lines.pop(line, None)

    async def _once(self, line: int) -> tuple[float, bool]:
        """Dial and serve once; return how long the gateway asks to wait, and whether the node was not even welcome."""
        if line == 0:
            self._tell("dialling")
        try:
            return await self._serve(line)
        except aiohttp.WSServerHandshakeError as error:
            if error.status in _REFUSALS:
                hint = (
                    ": the token is not known there, or was revoked" if error.status == HTTPStatus.UNAUTHORIZED else ""
                )
                problem = f"the gateway refuses this node with HTTP status {error.status}{hint}"
                if not self._was_welcome:
                    raise CannotJoin(problem) from None
                # It has worked before: perhaps the gateway is being set up anew.
                self._tell("refused", problem=problem)
                return _REFUSED_PAUSE_S, True
            self._tell("waiting", problem=f"the gateway answers with HTTP status {error.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._tell("waiting", problem=f"the gateway cannot be reached: {type(error).__name__}")
        return 0.0, True

    async def _serve(self, line: int) -> tuple[float, bool]:
        session = None
        await self._dialling.acquire()
        dialled = False

        def settled() -> None:
            nonlocal dialled
            if not dialled:
                dialled = True
                self._dialling.release()

        def welcomed(welcome: Welcome) -> None:
            settled()
            self._was_welcome, self._workers = True, welcome.workers
            self._open_lines()

        try:
            async with self._http() as http, await self._dial(http) as socket:
                session = self._sessions[line] = Session(
                    socket,
                    self._hello(line),
                    self._catalog,
                    self._statistics,
                    self._log,
                    room=self._room,
                    on_welcome=welcomed,
                )
                await session.run()
            # It has drained.
            await asyncio.Event().wait()
        except SessionOver as over:
            return self._ended(line, session, over)
        finally:
            settled()
            self._sessions.pop(line, None)
        return 0.0, True

    def _ended(self, line: int, session: Session | None, over: SessionOver) -> tuple[float, bool]:
        goodbye = over.goodbye
        if goodbye is not None and goodbye.reason == "already_here":
            # It is a matter of chance which worker takes the next connection.
            return 0.0, False
        others = {one.worker for number, one in self._sessions.items() if number != line}
        is_ours = session is not None and session.worker in others
        if goodbye is not None and goodbye.reconnect_after_s < 0 and not is_ours:
            raise CannotJoin(f"the gateway sent this node away ({goodbye.reason}): {goodbye.message}") from None
        self._tell("disconnected", problem=goodbye.reason if goodbye is not None else over.problem)
        is_failure = session is None or not session.was_welcome
        return (0.0 if goodbye is None else max(goodbye.reconnect_after_s, 0.0)), is_failure

    async def _dial(self, http: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            return await http.ws_connect(
                self._options.url,
                protocols=(SUBPROTOCOL,),
                headers={"Authorization": f"Bearer {self._options.token}"},
                max_msg_size=MAX_FRAME_BYTES + 1,
                compress=0,
            )

    def _http(self) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_refuse_redirect)
        return aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=self._options.proxy,
            trace_configs=[trace],
            headers={"User-Agent": f"lcp-gateway/{__version__}"},
        )

    def _hello(self, line: int) -> Hello:
        options = self._options
        return Hello(
            name=options.name,
            instance=self._instance,
            agent=f"lcp-gateway/{__version__}",
            models=self._catalog.models,
            concurrent=options.concurrent,
            request_bytes=options.request_bytes,
            held=tuple(one.worker for number, one in self._sessions.items() if number != line and one.worker >= 0),
        )

    async def _refresh(self) -> None:
        while True:
            # A backend that is just starting should not be missed for long.
            usual_s = self._options.refresh_s
            await asyncio.sleep(usual_s if self._catalog.models else min(usual_s, _EMPTY_REFRESH_S))
            if not await self._catalog.refresh():
                continue
            self._log.info("models", models=[model.id for model in self._catalog.models])
            for session in tuple(self._sessions.values()):
                with contextlib.suppress(ConnectionError):
                    await session.send_models()

    def _tell(self, state: str, *, problem: str = "") -> None:
        said = f"{state}: {problem}" if problem else state
        if said != self._statistics.state:
            self._statistics.state = said
            self._statistics.on_change()
            if problem:
                self._log.warning(state, problem=problem)
            else:
                self._log.info(state, gateway=self._statistics.gateway)


class _Redirected(aiohttp.ClientError):
    """The gateway redirects: the token would go elsewhere."""


async def _refuse_redirect(_session: Any, _context: Any, _params: Any) -> None:
    raise _Redirected
