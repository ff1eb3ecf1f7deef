"""Limits of concurrent requests that use the database: per caller, and per group of callers.

For /api, receipts, L402 and jobs that ran elsewhere; purchases have limits of their own. Requests above the limit wait for a
moment, and are then refused with 429, so that a flood of one caller takes no database connection from the others.
"""

import asyncio
import functools
import ipaddress
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from aiohttp import web

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError
from lcp_gateway.http.server.proxies import read_address

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# Requests that may wait, for each that may run.
_WAITING_EACH: Final = 16
_WAIT_S: Final = 2.0
# A customer reads a page at most: a read that takes longer waits for a database that does not answer.
_READ_S: Final = 5.0
# The holder of an IPv6 address has very many of them.
_NETWORK_BITS: Final = 64


class Group(StrEnum):
    """Callers that share a limit; no group can block another."""

    OPERATOR = "operator"
    CUSTOMERS = "customers"
    ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class ApiCaller:
    """One caller as it is counted: an account, a key of the operator, or an address."""

    group: Group
    name: str


def caller_of(caller: Caller, remote: str | None) -> ApiCaller:
    """Return how a caller is counted; ``remote`` is the client's address, for a caller without a key."""
    if caller.account_id is not None:
        return ApiCaller(Group.CUSTOMERS, caller.account_id)
    if caller.key_id:
        return ApiCaller(Group.OPERATOR, caller.key_id)
    return anonymous_caller(remote)


def account_caller(account_id: str) -> ApiCaller:
    """Return how the holder of an account is counted."""
    return ApiCaller(Group.CUSTOMERS, account_id)


def anonymous_caller(remote: str | None) -> ApiCaller:
    """Return how a caller without a credential is counted: by its address, or its network of IPv6."""
    address = None if remote is None else read_address(remote)
    if isinstance(address, ipaddress.IPv6Address):
        network = ipaddress.ip_network((address, _NETWORK_BITS), strict=False)
        return ApiCaller(Group.ANONYMOUS, str(network))
    return ApiCaller(Group.ANONYMOUS, str(address or ""))


@dataclass(slots=True, eq=False)
class _Waiting:
    caller: ApiCaller
    turn: asyncio.Future[None]


class ApiLimits:
    """Runs ``per_caller`` requests of one caller at one time, and ``in_all`` of a group; some more wait, the rest is refused."""

    def __init__(self, per_caller: int, in_all: int, *, wait_s: float = _WAIT_S) -> None:
        self._wait_s = wait_s
        self._running: Counter[ApiCaller] = Counter()
        self._running_in: Counter[Group] = Counter()
        self._waiting: dict[Group, deque[_Waiting]] = {group: deque() for group in Group}
        self._waiting_of: Counter[ApiCaller] = Counter()
        self.use(per_caller, in_all)

    def use(self, per_caller: int, in_all: int) -> None:
        """Change the limits."""
        self._per_caller = per_caller
        self._in_all = max(per_caller, in_all)

    @asynccontextmanager
    async def place(self, caller: ApiCaller) -> AsyncIterator[None]:
        """Hold a place for the block; wait for it for a moment.

        Raises:
            ApiError: 429, no place became free.
        """
        if self._is_free(caller):
            self._take(caller)
        else:
            await self._wait(caller)
        try:
            yield
        finally:
            self._leave(caller)

    @asynccontextmanager
    async def turn(self, request: web.Request) -> AsyncIterator[None]:
        """Hold a place of a request's caller for one use of the database.

        Raises:
            ApiError: 429 or 503.
        """
        caller = caller_of(request[CONTEXT].caller, request.remote)
        async with self.place(caller):
            # Writes, and the operator's reads of all accounts, have no time limit.
            if request.method != "GET" or caller.group is Group.OPERATOR:
                yield
                return
            try:
                async with asyncio.timeout(_READ_S):
                    yield
            except TimeoutError:
                raise _too_slow() from None

    def bounded(self, handler: Handler) -> Handler:
        """Return a handler that runs within the limits of its request's caller."""

        @functools.wraps(handler)
        async def run(request: web.Request) -> web.StreamResponse:
            async with self.turn(request):
                return await handler(request)

        return run

    def _is_free(self, caller: ApiCaller) -> bool:
        return self._running[caller] < self._per_caller and self._running_in[caller.group] < self._in_all

    def _take(self, caller: ApiCaller) -> None:
        self._running[caller] += 1
        self._running_in[caller.group] += 1

    async def _wait(self, caller: ApiCaller) -> None:
        queue = self._waiting[caller.group]
        if self._waiting_of[caller] >= self._per_caller * _WAITING_EACH or len(queue) >= self._in_all * _WAITING_EACH:
            raise _too_many()
        waiting = _Waiting(caller, asyncio.get_running_loop().create_future())
        queue.append(waiting)
        self._waiting_of[caller] += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await waiting.turn
        except BaseException as error:
            if waiting.turn.done() and not waiting.turn.cancelled():
                # It was admitted at the moment in which its client left.
                self._leave(caller)
            else:
                queue.remove(waiting)
                self._no_longer_waits(caller)
            if isinstance(error, TimeoutError):
                raise _too_many() from None
            raise

    def _leave(self, caller: ApiCaller) -> None:
        self._running_in[caller.group] -= 1
        self._running[caller] -= 1
        if not self._running[caller]:
            # Callers are many: only those with a request now are kept.
            del self._running[caller]
        self._call_next(caller.group)

    def _call_next(self, group: Group) -> None:
        queue = self._waiting[group]
        for waiting in queue:
            if self._is_free(waiting.caller) and not waiting.turn.done():
                queue.remove(waiting)
                self._no_longer_waits(waiting.caller)
                self._take(waiting.caller)
                waiting.turn.set_result(None)
                return

    def _no_longer_waits(self, caller: ApiCaller) -> None:
        self._waiting_of[caller] -= 1
        if not self._waiting_of[caller]:
            del self._waiting_of[caller]


def _too_many() -> ApiError:
    return ApiError(
        429,
        "too many requests are asking for accounts, receipts or invoices at one time; nothing was paid, try again in a "
        "second",
        code="rate_limit_exceeded",
        retry=True,
        reason="api",
    )


def _too_slow() -> ApiError:
    return ApiError(
        503,
        f"the gateway's database did not answer within {_READ_S:g} s; nothing was paid",
        code="journal_unavailable",
        retry=True,
        reason="journal",
    )
