"""Keeps a node joined: dials in, serves, and dials in again with back-off and jitter."""

import asyncio
import random
import secrets
from collections.abc import Callable
from typing import Any, Final

import aiohttp
from structlog.typing import FilteringBoundLogger

from lcp_gateway.__about__ import __version__
from lcp_gateway.node_client.catalog import ModelCatalog
from lcp_gateway.node_client.options import JoinOptions
from lcp_gateway.node_client.session import Session, SessionOver
from lcp_gateway.node_client.statistics import Statistics
from lcp_gateway.node_protocol.frames import MAX_FRAME_BYTES
from lcp_gateway.node_protocol.messages import SUBPROTOCOL, Hello

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
    """Keeps one node joined to its gateway until ``stop`` is set."""

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
        self._session: Session | None = None
        self._was_welcome = False

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
        serving = asyncio.create_task(self._serve())
        try:
            await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            elif self._session is not None:
                self._tell("draining")
                await self._session.drain(self._options.drain_s)
        finally:
            for task in (refreshing, stopping, serving):
                task.cancel()
            await asyncio.gather(refreshing, stopping, serving, return_exceptions=True)
            await self._catalog.close()

    async def _serve(self) -> None:
        failures = 0
        while True:
            wait_s, failed = await self._once()
            failures = failures + 1 if failed else 0
            wait_s = max(wait_s * (0.5 + self._chance()), pause_s(max(failures, 1), self._chance()))
            await asyncio.sleep(wait_s)

    async def _once(self) -> tuple[float, bool]:
        """Dial and serve once; return how long the gateway asks to wait, and whether the node was not even welcome."""
        self._tell("dialling")
        session = None
        try:
            async with self._http() as http, await self._dial(http) as socket:
                session = self._session = Session(socket, self._hello(), self._catalog, self._statistics, self._log)
                await session.run()
            # It has drained.
            await asyncio.Event().wait()
        except SessionOver as over:
            self._was_welcome |= session is not None and session.was_welcome
            goodbye = over.goodbye
            if goodbye is not None and goodbye.reconnect_after_s < 0:
                raise CannotJoin(f"the gateway sent this node away ({goodbye.reason}): {goodbye.message}") from None
            self._tell("disconnected", problem=goodbye.reason if goodbye is not None else over.problem)
            is_failure = session is None or not session.was_welcome
            return (0.0 if goodbye is None else goodbye.reconnect_after_s), is_failure
        except aiohttp.WSServerHandshakeError as error:
            if error.status in _REFUSALS:
                problem = f"the gateway refuses this node with HTTP status {error.status}{_hint(error.status)}"
                if not self._was_welcome:
                    raise CannotJoin(problem) from None
                # It has worked before: perhaps the gateway is being set up anew.
                self._tell("refused", problem=problem)
                return _REFUSED_PAUSE_S, True
            self._tell("waiting", problem=f"the gateway answers with HTTP status {error.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._tell("waiting", problem=f"the gateway cannot be reached: {type(error).__name__}")
        finally:
            self._session = None
        return 0.0, True

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

    def _hello(self) -> Hello:
        options = self._options
        return Hello(
            name=options.name,
            instance=self._instance,
            agent=f"lcp-gateway/{__version__}",
            models=self._catalog.models,
            concurrent=options.concurrent,
            request_bytes=options.request_bytes,
        )

    async def _refresh(self) -> None:
        while True:
            # A backend that is just starting should not be missed for long.
            usual_s = self._options.refresh_s
            await asyncio.sleep(usual_s if self._catalog.models else min(usual_s, _EMPTY_REFRESH_S))
            if not await self._catalog.refresh():
                continue
            self._log.info("models", models=[model.id for model in self._catalog.models])
            if self._session is not None:
                try:
                    await self._session.send_models()
                except ConnectionError:
                    continue

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


def _hint(status: int) -> str:
    if status == 401:  # noqa: PLR2004 - the status of an unknown token
        return ": the token is not known there, or was revoked"
    return ""
