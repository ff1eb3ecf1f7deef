"""Talking to the daemon from a command: opened for a block, with errors turned into words and advice."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from lcp_gateway.config import Settings
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.upstreams.lcpd import LcpdUpstream

_POLL_S = 0.1
_T = TypeVar("_T")


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[LcpdUpstream]:
    """Open the daemon that the settings name, and close it after the block."""
    from lcp_gateway.app import lcpd_address  # noqa: PLC0415 - imports the whole gateway

    upstream = LcpdUpstream(lcpd_address(settings))
    try:
        yield upstream
    finally:
        await upstream.close()


async def once_up(settings: Settings, ask: Callable[[float], Awaitable[_T]]) -> _T:
    """Ask within ``preflight_timeout_s``. An embedded node, which has only just been started, is asked until it is up.

    Raises:
        UpstreamError: it did not answer.
    """
    deadline = time.monotonic() + settings.preflight_timeout_s
    while True:
        left_s = max(deadline - time.monotonic(), _POLL_S)
        try:
            return await ask(left_s)
        except UpstreamError as error:
            starting = settings.embedded and error.status == "UNAVAILABLE"
            if not starting or time.monotonic() + _POLL_S >= deadline:
                raise
        await asyncio.sleep(_POLL_S)


def describe(error: UpstreamError, settings: Settings) -> str:
    """Say what went wrong between us and the daemon, without gRPC's own lengthy words where there was no answer."""
    if error.status in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
        return f"the daemon at {settings.lcpd_grpc_addr} does not answer ({error.status})"
    return f"{error.message} ({error.status})"


def advice(error: UpstreamError, settings: Settings) -> str:
    """Say what to do about a daemon that did not answer as it should."""
    match error.status:
        case "UNAVAILABLE" | "DEADLINE_EXCEEDED" if settings.embedded:
            return "the embedded node did not start; its own message should stand above"
        case "UNAVAILABLE" | "DEADLINE_EXCEEDED":
            return (
                "is lcpd-grpcd running there, with TLS as lcpd_tls says? "
                "Set lcpd_grpc_addr to its address, or try --embedded"
            )
        case "UNAUTHENTICATED" | "PERMISSION_DENIED":
            return "set what the daemon asks for in lcpd_metadata"
        case "UNIMPLEMENTED":
            return "something else than lcpd-grpcd listens there: check lcpd_grpc_addr"
        case _:
            return "see the daemon's own log"
